//! `_core.Survey`: statistics of a corpus, and the pass that makes them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use numpy::{IntoPyArray, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use signflip::engine::site::Site;
use signflip::survey::document::{Document, DocumentHash};
use signflip::survey::histogram;
use signflip::survey::reach::Reach;
use signflip::survey::run::{Options, run, sites};
use signflip::survey::settings::{FORMAT, Settings};
use signflip::survey::stats::{Feature, SiteStats};
use signflip::survey::store;
use signflip::survey::topk::End;
use signflip::{Error, Result};

use crate::enter::enter;
use crate::error::{foreign, to_py};
use crate::model::Model;

/// Statistics of every feature of some sites.
#[pyclass(frozen, module = "signflip._core")]
pub struct Survey {
    inner: store::Survey,
}

/// Documents that Python hands out in batches: `next()` gives a list of `(ids, n_bos)`, or None at the end.
struct Batches {
    next: Py<PyAny>,
    ready: VecDeque<(Vec<u32>, u32)>,
    ended: bool,
}

impl Batches {
    fn document(&mut self) -> Result<Option<Document>> {
        while self.ready.is_empty() && !self.ended {
            type Batch = Option<Vec<(Vec<u32>, u32)>>;
            let batch = Python::attach(|py| self.next.call0(py)?.extract::<Batch>(py)).map_err(foreign)?;
            match batch {
                Some(batch) => self.ready.extend(batch),
                None => self.ended = true,
            }
        }
        Ok(self.ready.pop_front().map(|(ids, n_bos)| Document { ids, n_bos }))
    }
}

/// Full names of the sites that a survey of these names covers; the default ones for None.
#[pyfunction]
pub fn survey_sites(model: &Model, names: Option<Vec<String>>) -> PyResult<Vec<String>> {
    let found = sites(names.as_deref(), model.engine.as_ref()).map_err(to_py)?;
    Ok(found.into_iter().map(Site::name).collect())
}

/// Surveys a corpus: see `signflip.survey`.
#[pyfunction]
#[pyo3(signature = (model, next, progress, *, name, hash, dtype, bos, sites, context, prefix, out, max_tokens, top, histogram_every, batch_tokens, checkpoint))]
pub fn survey(
    py: Python<'_>,
    model: &Model,
    next: Py<PyAny>,
    progress: Py<PyAny>,
    name: &str,
    hash: String,
    dtype: String,
    bos: String,
    sites: Vec<String>,
    context: usize,
    prefix: Vec<u32>,
    out: Option<PathBuf>,
    max_tokens: Option<u64>,
    top: usize,
    histogram_every: u32,
    batch_tokens: usize,
    checkpoint: f64,
) -> PyResult<Survey> {
    let engine = &model.engine;
    let spec = serde_json::to_value(engine.spec()).map_err(|error| to_py(Error::Internal(error.to_string())))?;
    let settings = Settings {
        bos,
        context,
        dtype,
        format: FORMAT,
        histogram_every,
        model_hash: hash,
        prefix,
        signflip: env!("CARGO_PKG_VERSION").to_owned(),
        sites,
        spec,
        top,
    };
    let checkpoint = Duration::try_from_secs_f64(checkpoint)
        .map_err(|_| to_py(Error::argument("checkpoint", "seconds, at least 0", checkpoint)))?;
    let options = Options { out, max_tokens, batch_tokens, checkpoint };
    let mut batches = Batches { next, ready: VecDeque::new(), ended: false };
    let mut tell = |tokens: u64| Python::attach(|py| progress.call1(py, (tokens,)).map(|_| ())).map_err(foreign);
    let inner = enter(py, |call| {
        run(engine.as_ref(), &settings, name, &options, &mut || batches.document(), &mut tell, call.check)
    })?;
    Ok(Survey { inner })
}

#[pymethods]
impl Survey {
    /// Reads a file and checks all that it says.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = enter(py, |_| match store::open(&path)? {
            (survey, None) => Ok(survey),
            (_, Some(_)) => Err(Error::Survey(format!(
                "{} is the state of an unfinished survey: call `survey` again with the same arguments to finish it",
                path.display()
            ))),
        })?;
        Ok(Self { inner })
    }

    /// Writes the file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        enter(py, |_| {
            store::probe(&path)?;
            store::save(&self.inner, None, &path)
        })
    }

    /// One survey of what these hold together.
    #[staticmethod]
    fn merge(py: Python<'_>, surveys: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let parts: Vec<&store::Survey> = surveys.iter().map(|survey| &survey.inner).collect();
        let inner = enter(py, |_| -> Result<store::Survey> {
            let Some((first, others)) = parts.split_first() else {
                return Err(Error::argument("surveys", "at least one", "none"));
            };
            let mut merged = (*first).clone();
            for other in others {
                merged.merge(other)?;
            }
            Ok(merged)
        })?;
        Ok(Self { inner })
    }

    /// What the survey rests on, as JSON.
    fn metadata(&self) -> PyResult<String> {
        self.inner.metadata(None).map_err(to_py)
    }

    /// A site's statistics by name, one entry a feature.
    fn arrays<'py>(&self, py: Python<'py>, site: usize) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.site(site)?;
        let out = PyDict::new(py);
        let floats = |get: fn(&Feature) -> f32| stats.features().map(get).collect::<Vec<_>>().into_pyarray(py);
        let counts = |get: fn(&Feature) -> u64| {
            stats.features().map(|feature| get(feature) as i64).collect::<Vec<_>>().into_pyarray(py)
        };
        out.set_item("min", floats(|feature| feature.min))?;
        out.set_item("max", floats(|feature| feature.max))?;
        out.set_item("positive", counts(|feature| feature.positive))?;
        out.set_item("negative", counts(|feature| feature.negative))?;
        out.set_item("units_positive", counts(|feature| feature.units_positive))?;
        out.set_item("units_negative", counts(|feature| feature.units_negative))?;
        let (mean, var): (Vec<f64>, Vec<f64>) = stats.moments().unzip();
        out.set_item("mean", mean.into_pyarray(py))?;
        out.set_item("var", var.into_pyarray(py))?;
        if stats.gated {
            out.set_item("acting_min", floats(|feature| feature.acting_min))?;
            out.set_item("acting_max", floats(|feature| feature.acting_max))?;
        }
        if let Some(reach) = &stats.reach {
            let flat: Vec<f64> = reach.iter().flat_map(|&(low, high)| [low, high]).collect();
            out.set_item("reach", flat.into_pyarray(py).reshape([reach.len(), 2])?)?;
        }
        Ok(out)
    }

    /// A quantile of every feature, from the histograms.
    fn quantile<'py>(&self, py: Python<'py>, site: usize, q: f64) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.site(site)?;
        let limit = |(histogram, feature): (&histogram::Histogram, &Feature)| {
            // The extremes are exact and of more tokens: a bucket's representative never leaves them.
            histogram.quantile(q).clamp(f64::from(feature.min), f64::from(feature.max))
        };
        let found: Vec<f64> = if stats.tally.n_histogram == 0 {
            vec![f64::NAN; stats.width]
        } else {
            stats.histograms().zip(stats.features()).map(limit).collect()
        };
        Ok(found.into_pyarray(py).into_any())
    }

    /// A feature's histogram: bounds `[n, 2]` of its buckets in order, and counts `[n]`.
    fn histogram<'py>(
        &self,
        py: Python<'py>,
        site: usize,
        feature: usize,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let entries = self.site(site)?.histograms().nth(feature).map(histogram::Histogram::entries);
        let entries: Vec<(u16, u64)> = entries.into_iter().flatten().collect();
        let bounds: Vec<f64> = entries.iter().flat_map(|&(bucket, _)| histogram::interval(bucket)).collect();
        let counts: Vec<i64> = entries.iter().map(|&(_, count)| count as i64).collect();
        let bounds = bounds.into_pyarray(py).reshape([entries.len(), 2])?;
        Ok((bounds.into_any(), counts.into_pyarray(py).into_any()))
    }

    /// The most extreme occurrences of every feature: values, positions, and documents as hexadecimal bytes, each
    /// `[width, kept]` (documents `[width, kept, 32]`).
    fn extremes<'py>(
        &self,
        py: Python<'py>,
        site: usize,
        top: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let stats = self.site(site)?;
        let end = if top { End::Top } else { End::Bottom };
        let all: Vec<_> = (0..stats.width).flat_map(|feature| stats.extremes(end, feature)).collect();
        let (width, kept) = (stats.width, all.len() / stats.width.max(1));
        let values: Vec<f32> = all.iter().map(|one| one.value).collect();
        let positions: Vec<i64> = all.iter().map(|one| i64::from(one.position)).collect();
        let documents: Vec<u8> = all.iter().flat_map(|one| one.document.hex().into_bytes()).collect();
        Ok((
            values.into_pyarray(py).reshape([width, kept])?.into_any(),
            positions.into_pyarray(py).reshape([width, kept])?.into_any(),
            documents.into_pyarray(py).reshape([width, kept, 32])?.into_any(),
        ))
    }
}

impl Survey {
    fn site(&self, index: usize) -> PyResult<&SiteStats> {
        let missing = || to_py(Error::Internal(format!("a survey has no site of index {index}")));
        self.inner.sites.get(index).ok_or_else(missing)
    }
}

/// The name of a document of these ids, as `top` and `bottom` give it.
#[pyfunction]
#[allow(clippy::needless_pass_by_value, reason = "extracted from Python")]
pub fn document_hash(ids: Vec<u32>) -> String {
    DocumentHash::of(&ids).hex()
}

/// `(lowest, highest)` value that every feature of a site can have, `[width, 2]`; None where no bound is known.
#[pyfunction]
pub fn reach<'py>(py: Python<'py>, model: &Model, site: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let engine = &model.engine;
    let site = Site::parse(site, engine.spec()).map_err(to_py)?;
    let found = enter(py, |call| Reach::new(engine.as_ref(), call.check).of(site))?;
    found
        .map(|reach| {
            let flat: Vec<f64> = reach.iter().flat_map(|&(low, high)| [low, high]).collect();
            Ok(flat.into_pyarray(py).reshape([reach.len(), 2])?.into_any())
        })
        .transpose()
}
