//! The Python border of signflip: converts arguments, releases the GIL, maps errors. No logic.

use pyo3::prelude::*;

/// The extension module `signflip._core`.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
