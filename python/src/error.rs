//! The one conversion of the core's errors to Python exceptions.

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use signflip::Error;

/// The exception for an error: the class of `signflip.errors` that [`Error::class`] names, or, for an exception raised
/// by the caller's own code, that exception itself.
pub fn to_py(error: Error) -> PyErr {
    let error = match error {
        Error::Foreign(foreign) => match foreign.downcast::<PyErr>() {
            Ok(original) => return *original,
            Err(foreign) => Error::Foreign(foreign),
        },
        Error::Interrupted => return PyKeyboardInterrupt::new_err(()),
        other => other,
    };
    let message = error.to_string();
    Python::attach(|py| {
        let class = py.import("signflip.errors").and_then(|module| module.getattr(error.class()));
        match class.and_then(|class| class.call1((message.clone(),))) {
            Ok(exception) => PyErr::from_value(exception),
            Err(_) => PyRuntimeError::new_err(message),
        }
    })
}

/// Hands a Python exception through the core unchanged.
pub fn foreign(error: PyErr) -> Error {
    Error::Foreign(Box::new(error))
}
