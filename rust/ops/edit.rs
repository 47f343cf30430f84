//! Edits of one value.

use crate::engine::request::EditOp;

/// The edited value; `limits` is `(given, given)` but for a clamp, where it is the lower and the upper limit.
pub fn forward(op: EditOp, x: f64, limits: (f64, f64)) -> f64 {
    match op {
        EditOp::Set => limits.0,
        EditOp::Add => x + limits.0,
        EditOp::Scale => x * limits.0,
        EditOp::Clamp => {
            if x.is_nan() {
                x
            } else {
                x.max(limits.0).min(limits.1)
            }
        }
    }
}
