//! NumPy arrays of the core's outputs, and token ids from Python.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use signflip::engine::request::{Output, Read};

/// An output as an array: `[rows, columns]`, or `[rows]` for reads of one number a row.
pub fn output<'py>(py: Python<'py>, output: Output, read: &Read) -> PyResult<Bound<'py, PyAny>> {
    let shape = [output.n_rows, output.n_cols];
    let flat = output.data.into_pyarray(py);
    match read {
        Read::Project { .. } | Read::LogProb { .. } => Ok(flat.into_any()),
        Read::Values { .. } | Read::Logits { .. } => Ok(flat.reshape(shape)?.into_any()),
    }
}

/// A matrix as an array.
pub fn matrix(py: Python<'_>, rows: usize, columns: usize, data: Vec<f32>) -> PyResult<Bound<'_, PyArray2<f32>>> {
    data.into_pyarray(py).reshape([rows, columns])
}

/// A vector as an array.
pub fn vector(py: Python<'_>, data: Vec<f32>) -> Bound<'_, PyArray1<f32>> {
    data.into_pyarray(py)
}
