//! Objectives from Python, their scores and gradients.

use std::ops::Range;

use numpy::{PyArray1, PyArray2};
use pyo3::prelude::*;
use signflip::engine::request::Engine;
use signflip::engine::site::Site;
use signflip::search::{Objective, ObjectiveSpec, Objectives, gradient as core_gradient, score as core_score};
use signflip::{Error, Result};

use crate::array;
use crate::enter::enter;
use crate::error::to_py;
use crate::model::Model;

/// An objective as Python writes it down, checked against a model.
pub fn parse(json: &str, engine: &dyn Engine) -> PyResult<Objective> {
    let spec: ObjectiveSpec = serde_json::from_str(json)
        .map_err(|error| to_py(Error::argument("objective", "one that signflip wrote", error)))?;
    Objective::new(&spec, engine.spec()).map_err(to_py)
}

/// An objective of all, or (`of`: an index into a list) one each.
pub fn parse_all(json: &str, of: Option<Vec<usize>>, engine: &dyn Engine) -> PyResult<Objectives> {
    let Some(of) = of else { return Ok(Objectives::one(parse(json, engine)?)) };
    let specs: Vec<ObjectiveSpec> = serde_json::from_str(json)
        .map_err(|error| to_py(Error::argument("objective", "a list that signflip wrote", error)))?;
    let all: Result<Vec<Objective>> = specs.iter().map(|spec| Objective::new(spec, engine.spec())).collect();
    all.and_then(|all| Objectives::each(all, of)).map_err(to_py)
}

fn range((start, end): (usize, usize)) -> Range<usize> {
    start..end
}

/// The objective of each sequence, `[n]`. `free`: start and end of the free tokens of each, where known; `of`: which of
/// a list of objectives is that of each.
#[pyfunction]
#[pyo3(signature = (model, sequences, objective, free=None, of=None))]
pub fn score<'py>(
    py: Python<'py>,
    model: &Model,
    sequences: Vec<Vec<u32>>,
    objective: &str,
    free: Option<Vec<(usize, usize)>>,
    of: Option<Vec<usize>>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let engine = &*model.engine;
    let objectives = parse_all(objective, of, engine)?;
    let free: Option<Vec<Range<usize>>> = free.map(|free| free.into_iter().map(range).collect());
    let values = enter(py, |context| core_score(engine, &sequences, free.as_deref(), &objectives, context))?;
    Ok(array::vector(py, values))
}

/// An objective's value, and its derivative by each site: `[pos, width]` each.
#[pyfunction]
#[pyo3(signature = (model, tokens, objective, wrt, free=None))]
pub fn gradient<'py>(
    py: Python<'py>,
    model: &Model,
    tokens: Vec<u32>,
    objective: &str,
    wrt: Vec<String>,
    free: Option<(usize, usize)>,
) -> PyResult<(f32, Vec<Bound<'py, PyArray2<f32>>>)> {
    let engine = &*model.engine;
    let objective = parse(objective, engine)?;
    let sites: Result<Vec<Site>> = wrt.iter().map(|name| Site::parse(name, engine.spec())).collect();
    let (sites, free) = (sites.map_err(to_py)?, free.map(range));
    let (value, gradients) =
        enter(py, |context| core_gradient(engine, &tokens, free.as_ref(), &objective, &sites, context))?;
    let arrays = gradients.into_iter().map(|(_, output)| array::matrix(py, output.n_rows, output.n_cols, output.data));
    Ok((value, arrays.collect::<PyResult<_>>()?))
}
