//! The one place where the core's errors become Python exceptions.

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use signflip::Error;

/// The exception of `signflip.errors` that [`Error::class`] names; an exception that Python code raised inside the
/// engine comes back unchanged.
pub fn to_py(err: Error) -> PyErr {
    let class = err.class();
    let message = err.to_string();
    match err {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Foreign(inner) => match inner.downcast::<PyErr>() {
            Ok(raised) => *raised,
            Err(other) => PyRuntimeError::new_err(other.to_string()),
        },
        _ => Python::attach(|py| {
            let exception = py.import("signflip.errors").and_then(|errors| errors.getattr(class)?.call1((message,)));
            match exception {
                Ok(exception) => PyErr::from_value(exception),
                Err(failed) => failed,
            }
        }),
    }
}
