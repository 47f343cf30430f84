//! The Python border of signflip: converts arguments, releases the GIL, maps errors. No logic.
#![allow(clippy::needless_pass_by_value, reason = "pyo3 extracts arguments by value")]

mod array;
mod enter;
mod error;
mod load;
mod model;
mod objective;
mod search;
mod survey;
mod tokenizer;

use pyo3::prelude::*;

/// The extension module `signflip._core`.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::load::Checkpoint;
    #[pymodule_export]
    use super::model::{Cache, Model, build_info, num_threads, set_num_threads};
    #[pymodule_export]
    use super::objective::{gradient, score};
    #[pymodule_export]
    use super::search::search;
    #[pymodule_export]
    use super::survey::{Survey, document_hash, reach, survey, survey_sites};
    #[pymodule_export]
    use super::tokenizer::Tokenizer;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
