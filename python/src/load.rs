//! `_core.Checkpoint`: an opened checkpoint, from a folder or from tensors that Python provides.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use signflip::model::families;
use signflip::model::source::TensorSource;
use signflip::model::weights::{Checkpoint as Weights, HostLinear, HostNorm};
use signflip::{Error, Result};

use crate::error::to_py;

/// Tensors that a Python function gives one at a time, so that a quantised file never stands in memory whole.
struct Provided {
    get: Py<PyAny>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl TensorSource for Provided {
    fn name(&self) -> String {
        "tensors".to_owned()
    }

    fn label(&self, tensor: &str) -> String {
        tensor.to_owned()
    }

    fn tensors(&self) -> Vec<&str> {
        self.shapes.keys().map(String::as_str).collect()
    }

    fn shape(&self, tensor: &str) -> Result<Option<Vec<usize>>> {
        Ok(self.shapes.get(tensor).cloned())
    }

    fn read(&self, tensor: &str) -> Result<Cow<'_, [f32]>> {
        let copy = |py: Python<'_>| {
            let given = self.get.bind(py).call1((tensor,)).map_err(|e| Error::Foreign(Box::new(e)))?;
            let array = given.cast::<PyArrayDyn<f32>>().map_err(|_| {
                let found = given.get_type().to_string();
                Error::checkpoint(tensor, format!("expected a float32 array, found another dtype or {found}"))
            })?;
            // `to_vec` of an array in another order would hand back the elements in that order.
            if !array.is_c_contiguous() {
                return Err(Error::checkpoint(tensor, "expected a C-contiguous array, found another order"));
            }
            array.to_vec().map_err(|e| Error::checkpoint(tensor, e.to_string()))
        };
        Python::attach(copy).map(Cow::Owned)
    }
}

/// An opened checkpoint: config read, every tensor's presence, shape and dtype checked, weights read when asked for.
#[pyclass(frozen, module = "signflip._core")]
pub struct Checkpoint {
    inner: Arc<dyn Weights + Send + Sync>,
}

impl Checkpoint {
    /// The checkpoint itself, for the model that is built from it.
    pub(crate) fn share(&self) -> Arc<dyn Weights + Send + Sync> {
        Arc::clone(&self.inner)
    }
}

#[pymethods]
impl Checkpoint {
    /// Opens a Hugging Face folder.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(move || families::open_folder(&path)).map_err(to_py)?;
        Ok(Self { inner: Arc::from(opened) })
    }

    /// Opens tensors given by `get(name)`, a C-contiguous float32 array of the shape stated for that name.
    #[staticmethod]
    fn from_tensors(
        py: Python<'_>,
        config_json: &str,
        get: Py<PyAny>,
        shapes: BTreeMap<String, Vec<usize>>,
    ) -> PyResult<Self> {
        let open = || {
            let config = serde_json::from_str(config_json)
                .map_err(|e| Error::checkpoint("config.json", format!("expected JSON: {e}")))?;
            families::open(&config, Box::new(Provided { get, shapes }))
        };
        Ok(Self { inner: Arc::from(py.detach(open).map_err(to_py)?) })
    }

    /// The architecture.
    fn spec<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let json = serde_json::to_string(self.inner.spec())
            .map_err(|e| to_py(Error::Internal(format!("spec to JSON: {e}"))))?;
        py.import("json")?.call_method1("loads", (json,))
    }

    /// Weights of one block, as `[outputs, inputs]` matrices, biases, and gains, by the engine's names.
    fn block_weights<'py>(&self, py: Python<'py>, layer: usize) -> PyResult<Bound<'py, PyDict>> {
        let n_layers = self.inner.spec().n_layers;
        if layer >= n_layers {
            return Err(to_py(Error::argument("layer", format!("0 to {}", n_layers - 1), layer)));
        }
        let block = py.detach(|| self.inner.block(layer)).map_err(to_py)?;
        let out = PyDict::new(py);
        put_norm(&out, "attn_norm", block.attn_norm)?;
        put_norm(&out, "mlp_norm", block.mlp_norm)?;
        for (name, linear) in [
            ("q", Some(block.q)),
            ("k", Some(block.k)),
            ("v", Some(block.v)),
            ("o", Some(block.o)),
            ("input", Some(block.input)),
            ("linear", block.linear),
            ("out", Some(block.out)),
        ] {
            if let Some(linear) = linear {
                put_linear(&out, name, &linear)?;
            }
        }
        Ok(out)
    }

    /// Weights outside the blocks; `head` only where it is not the embedding.
    fn outer_weights<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let width = self.inner.spec().d_model;
        let outer = py.detach(|| self.inner.outer()).map_err(to_py)?;
        let out = PyDict::new(py);
        put_matrix(&out, "embed", outer.embed.to_vec(), width)?;
        if let Some(positions) = outer.pos_embed {
            put_matrix(&out, "pos_embed", positions.into_owned(), width)?;
        }
        put_norm(&out, "final_norm", outer.final_norm)?;
        if let Some(head) = &outer.head {
            put_linear(&out, "head", head)?;
        }
        Ok(out)
    }

    fn __repr__(&self) -> String {
        let spec = self.inner.spec();
        format!("Checkpoint({}, {} layers, d_model {})", spec.family, spec.n_layers, spec.d_model)
    }
}

fn put_vector(out: &Bound<'_, PyDict>, name: &str, values: Vec<f32>) -> PyResult<()> {
    out.set_item(name, PyArray1::from_vec(out.py(), values))
}

fn put_matrix(out: &Bound<'_, PyDict>, name: &str, values: Vec<f32>, columns: usize) -> PyResult<()> {
    let rows = values.len() / columns;
    out.set_item(name, PyArray1::from_vec(out.py(), values).reshape([rows, columns])?)
}

fn put_norm(out: &Bound<'_, PyDict>, name: &str, norm: HostNorm) -> PyResult<()> {
    put_vector(out, &format!("{name}.gain"), norm.gain)?;
    norm.bias.map_or(Ok(()), |bias| put_vector(out, &format!("{name}.bias"), bias))
}

fn put_linear(out: &Bound<'_, PyDict>, name: &str, linear: &HostLinear<'_>) -> PyResult<()> {
    let view = linear.view();
    let element = |output, input| view.data[output * view.output_stride + input * view.input_stride];
    let values = (0..view.outputs).flat_map(|o| (0..view.inputs).map(move |i| (o, i))).map(|(o, i)| element(o, i));
    put_matrix(out, &format!("{name}.weight"), values.collect(), view.inputs)?;
    linear.bias.clone().map_or(Ok(()), |bias| put_vector(out, &format!("{name}.bias"), bias))
}
