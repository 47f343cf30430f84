//! Stands in for the CUDA backend where it is compiled out: says why, and never panics.

/// Why a device other than the CPU cannot be used by this build.
pub fn unavailable_reason(device: &str) -> String {
    if device == "cuda" || device.strip_prefix("cuda:").is_some_and(|ordinal| ordinal.parse::<u32>().is_ok()) {
        "this build of signflip has no CUDA backend; use \"cpu\"".to_owned()
    } else {
        "expected \"cpu\" or \"cuda:N\"".to_owned()
    }
}
