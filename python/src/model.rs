//! `_core.Model`: a model on a device, and requests to it.

use std::sync::{Arc, LazyLock};

use numpy::{PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use signflip::cpu::Cpu;
use signflip::engine::Model as CoreModel;
use signflip::engine::request::{
    self, Columns, Context, Edit, EditOp, Engine, Host, HostRows, Parent, Read, Request, RowRef, Segment, Variant,
    WeightKind,
};
use signflip::engine::site::Site;
use signflip::model::spec::ModelSpec;
use signflip::threads::Threads;
use signflip::{Error, Result};

use crate::array;
use crate::enter::{enter, signals};
use crate::error::{foreign, to_py};
use crate::load::Checkpoint;

/// The threads of every CPU model of this process.
static THREADS: LazyLock<Result<Arc<Threads>>> = LazyLock::new(|| Threads::new(None).map(Arc::new));

fn threads() -> PyResult<Arc<Threads>> {
    match &*THREADS {
        Ok(threads) => Ok(Arc::clone(threads)),
        Err(error) => Err(to_py(Error::Device { device: "cpu".to_owned(), reason: error.to_string() })),
    }
}

/// Sets the number of worker threads of all CPU models.
#[pyfunction]
pub fn set_num_threads(n: usize) -> PyResult<()> {
    threads()?.set(n).map_err(to_py)
}

/// The number of worker threads in use.
#[pyfunction]
pub fn num_threads() -> PyResult<usize> {
    Ok(threads()?.pool().current_num_threads())
}

/// Keys and values of sequences that later requests continue.
#[pyclass(frozen, module = "signflip._core")]
pub struct Cache {
    inner: request::Cache,
}

/// A model on a device.
#[pyclass(frozen, module = "signflip._core")]
pub struct Model {
    pub engine: Arc<dyn Engine>,
}

#[pymethods]
impl Model {
    #[new]
    fn new(py: Python<'_>, checkpoint: &Checkpoint, device: &str, dtype: &str) -> PyResult<Self> {
        if dtype != "float32" {
            return Err(to_py(Error::argument("dtype", "\"float32\" on the CPU", format!("{dtype:?}"))));
        }
        if device != "cpu" {
            let reason = signflip::cuda_stub::unavailable_reason(device);
            return Err(to_py(Error::Device { device: device.to_owned(), reason }));
        }
        let threads = threads()?;
        let checkpoint = checkpoint.share();
        let engine: Arc<dyn Engine> = enter(py, move |context| {
            let nothing = || Ok(());
            let check = context.check.unwrap_or(&nothing);
            let model = CoreModel::load(Cpu::new(threads), checkpoint.as_ref(), check)?;
            Ok(Arc::new(model) as Arc<dyn Engine>)
        })?;
        Ok(Self { engine })
    }

    /// The architecture, as JSON.
    fn spec(&self) -> PyResult<String> {
        serde_json::to_string(self.engine.spec()).map_err(|error| to_py(Error::Internal(error.to_string())))
    }

    /// Names of all sites, in forward order.
    fn sites(&self) -> Vec<String> {
        Site::all(self.engine.spec()).into_iter().map(Site::name).collect()
    }

    /// Checks a site's name: `(point's order in a block, layer, heads or None, width)`; the key axis counts as 1 wide.
    fn site(&self, name: &str) -> PyResult<(usize, Option<usize>, usize)> {
        let spec = self.engine.spec();
        let site = Site::parse(name, spec).map_err(to_py)?;
        Ok((site.layer, site.heads(spec), site.width(spec, 1)))
    }

    /// Runs a request. See `signflip._request` for the arguments' form.
    #[pyo3(signature = (segments, reads, variants, cache=None, keep=false, keep_variant=0, hooks=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        segments: Vec<(i8, usize, usize, Vec<u32>)>,
        reads: &Bound<'py, PyList>,
        variants: &Bound<'py, PyList>,
        cache: Option<&Cache>,
        keep: bool,
        keep_variant: usize,
        hooks: Option<(Vec<String>, Py<PyAny>)>,
    ) -> PyResult<(Bound<'py, PyList>, Option<Cache>)> {
        let spec = self.engine.spec();
        let request = Request {
            segments: segments.into_iter().map(segment).collect(),
            cache: cache.map(|cache| cache.inner.clone()),
            variants: variants.iter().map(|edits| variant(&edits, spec)).collect::<PyResult<_>>()?,
            reads: reads.iter().map(|entry| read(&entry, spec)).collect::<PyResult<_>>()?,
            keep,
            keep_variant,
        };
        let mut host = match hooks {
            None => None,
            Some((names, callback)) => {
                let sites = names.iter().map(|name| Site::parse(name, spec)).collect::<Result<Vec<_>>>();
                Some(Hooks { sites: sites.map_err(to_py)?, callback })
            }
        };
        let response = py
            .detach(|| {
                let check = signals();
                let host = host.as_mut().map(|host| host as &mut dyn Host);
                self.engine.run(&request, &mut Context { check: Some(&check), host })
            })
            .map_err(to_py)?;
        let outputs = PyList::empty(py);
        for (output, read) in response.outputs.into_iter().zip(&request.reads) {
            outputs.append(array::output(py, output, read)?)?;
        }
        Ok((outputs, response.cache.map(|inner| Cache { inner })))
    }

    /// One row of a weight table, `[width]`.
    fn weight_row<'py>(&self, py: Python<'py>, kind: &str, layer: usize, row: usize) -> PyResult<Bound<'py, PyAny>> {
        let row = self.engine.weight_row(weight_kind(kind)?, layer, row).map_err(to_py)?;
        Ok(array::vector(py, row).into_any())
    }

    /// All rows of a weight table, `[rows, width]`.
    fn weight_matrix<'py>(&self, py: Python<'py>, kind: &str, layer: usize) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let spec = self.engine.spec();
        let kind = weight_kind(kind)?;
        let rows = match kind {
            WeightKind::In | WeightKind::InLinear | WeightKind::Out => spec.d_mlp,
            WeightKind::Embed => spec.d_vocab,
            WeightKind::Unembed => match spec.head {
                signflip::model::spec::Head::Unembed => spec.d_vocab,
                signflip::model::spec::Head::Reward { labels, .. } => labels,
            },
            WeightKind::Q => spec.q_width(),
            WeightKind::K | WeightKind::V => spec.kv_width(),
            _ => 1,
        };
        let engine = &self.engine;
        let data = enter(py, |_| {
            let mut data = Vec::new();
            for row in 0..rows {
                data.extend(engine.weight_row(kind, layer, row)?);
            }
            Ok(data)
        })?;
        array::matrix(py, rows, data.len() / rows.max(1), data)
    }
}

fn weight_kind(name: &str) -> PyResult<WeightKind> {
    Ok(match name {
        "in" => WeightKind::In,
        "in_linear" => WeightKind::InLinear,
        "out" => WeightKind::Out,
        "mlp_norm_gain" => WeightKind::MlpNormGain,
        "mlp_norm_bias" => WeightKind::MlpNormBias,
        "in_bias" => WeightKind::InBias,
        "in_linear_bias" => WeightKind::InLinearBias,
        "embed" => WeightKind::Embed,
        "unembed" => WeightKind::Unembed,
        "final_norm_gain" => WeightKind::FinalNormGain,
        "final_norm_bias" => WeightKind::FinalNormBias,
        "q" => WeightKind::Q,
        "k" => WeightKind::K,
        "v" => WeightKind::V,
        "attn_norm_gain" => WeightKind::AttnNormGain,
        "attn_norm_bias" => WeightKind::AttnNormBias,
        other => return Err(to_py(Error::argument("kind", "a weight table's name", format!("{other:?}")))),
    })
}

fn segment((kind, index, keep, tokens): (i8, usize, usize, Vec<u32>)) -> Segment {
    let parent = match kind {
        0 => Parent::Segment { index, keep },
        1 => Parent::Cached { index, keep },
        _ => Parent::Root,
    };
    Segment { parent, tokens }
}

/// The rows of an int64 array `[n, N]`.
fn indices<const N: usize>(rows: &Bound<'_, PyAny>) -> PyResult<Vec<[usize; N]>> {
    let rows: PyReadonlyArray2<'_, i64> = rows.extract()?;
    if !rows.is_c_contiguous() || rows.shape()[1] != N {
        return Err(PyTypeError::new_err(format!("rows must be a C-contiguous int64 array [n, {N}]")));
    }
    let cell = |value: i64| {
        usize::try_from(value).map_err(|_| to_py(Error::Internal(format!("a row reference holds {value}"))))
    };
    let row = |row: &[i64]| {
        let mut out = [0; N];
        for (to, &from) in out.iter_mut().zip(row) {
            *to = cell(from)?;
        }
        Ok(out)
    };
    rows.as_slice()?.chunks_exact(N).map(row).collect()
}

/// `[n, 3]` of (variant, segment, offset).
fn row_refs(rows: &Bound<'_, PyAny>) -> PyResult<Vec<RowRef>> {
    let rows = indices::<3>(rows)?;
    Ok(rows.into_iter().map(|[variant, segment, offset]| RowRef { variant, segment, offset }).collect())
}

/// An int64 array `[n, 2]` of (segment, offset), or a list of such pairs.
fn cells(rows: &Bound<'_, PyAny>) -> PyResult<Vec<(usize, usize)>> {
    if rows.is_instance_of::<PyList>() {
        return rows.extract();
    }
    Ok(indices::<2>(rows)?.into_iter().map(|[segment, offset]| (segment, offset)).collect())
}

/// A float32 array `[n]`, or any sequence of numbers.
fn floats(values: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    match values.extract::<PyReadonlyArray1<'_, f32>>() {
        Ok(array) => Ok(array.as_array().to_vec()),
        Err(_) => values.extract(),
    }
}

fn columns(columns: Option<Vec<u32>>) -> Columns {
    columns.map_or(Columns::All, Columns::Some)
}

fn read(entry: &Bound<'_, PyAny>, spec: &ModelSpec) -> PyResult<Read> {
    let kind: String = entry.get_item(0)?.extract()?;
    let rows = row_refs(&entry.get_item(1)?)?;
    let site = || -> PyResult<Site> {
        let name: String = entry.get_item(2)?.extract()?;
        Site::parse(&name, spec).map_err(to_py)
    };
    Ok(match kind.as_str() {
        "values" => Read::Values { rows, site: site()?, columns: columns(entry.get_item(3)?.extract()?) },
        "project" => {
            let vector: Vec<f32> = entry.get_item(3)?.extract()?;
            Read::Project { rows, site: site()?, vector: vector.into() }
        }
        "logits" => Read::Logits { rows, columns: columns(entry.get_item(2)?.extract()?) },
        _ => Read::LogProb { rows, targets: entry.get_item(2)?.extract()? },
    })
}

/// A list of edits `(site, op, columns | None, cells | None, values)`.
fn variant(edits: &Bound<'_, PyAny>, spec: &ModelSpec) -> PyResult<Variant> {
    type Fields<'py> = (String, String, Option<Vec<u32>>, Option<Bound<'py, PyAny>>, Bound<'py, PyAny>);
    let edits: Vec<Fields<'_>> = edits.extract()?;
    let edits = edits.into_iter().map(|(site, op, columns, rows, values)| {
        let op = match op.as_str() {
            "set" => EditOp::Set,
            "add" => EditOp::Add,
            "scale" => EditOp::Scale,
            "clamp" => EditOp::Clamp,
            other => return Err(to_py(Error::Internal(format!("an edit operation {other:?}")))),
        };
        let site = Site::parse(&site, spec).map_err(to_py)?;
        Ok(Edit { site, op, columns, rows: rows.as_ref().map(cells).transpose()?, values: floats(&values)? })
    });
    Ok(Variant { edits: edits.collect::<PyResult<_>>()? })
}

/// A Python function `fn(name, values [rows, width]) -> values | None` as a host step.
struct Hooks {
    sites: Vec<Site>,
    callback: Py<PyAny>,
}

impl Host for Hooks {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn step(&mut self, site: Site, rows: &HostRows<'_>, width: usize, data: &mut [f32]) -> Result<()> {
        Python::attach(|py| -> PyResult<()> {
            let values = array::matrix(py, rows.rows.len(), width, data.to_vec())?;
            let changed = self.callback.bind(py).call1((PyString::new(py, &site.name()), values))?;
            if !changed.is_none() {
                let changed: PyReadonlyArray2<'_, f32> = changed.extract()?;
                if changed.is_c_contiguous() && changed.shape() == [rows.rows.len(), width] {
                    data.copy_from_slice(changed.as_slice()?);
                } else {
                    return Err(PyTypeError::new_err(
                        "a hook must return C-contiguous float32 of the shape it was given",
                    ));
                }
            }
            Ok(())
        })
        .map_err(foreign)
    }
}

/// What this extension was built as and runs on.
#[pyfunction]
pub fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
    info.set_item("cpu_features", signflip::cpu::features())?;
    info.set_item("kernels", Cpu::new(threads()?).instructions())?;
    info.set_item("threads", num_threads()?)?;
    info.set_item("cuda", signflip::cuda_stub::unavailable_reason("cuda:0"))?;
    Ok(info)
}
