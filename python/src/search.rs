//! `_core.search`: one search, from start or checkpoint to result.

use pyo3::prelude::*;
use signflip::Error;
use signflip::search::contexts::ContextTokens;
use signflip::search::ledger::RoundTrip;
use signflip::search::{Progress, Settings, search as core_search};

use crate::enter::enter;
use crate::error::{foreign, to_py};
use crate::model::Model;
use crate::objective::parse_all;
use crate::tokenizer::Tokenizer;

/// Runs a search and returns its result as JSON.
///
/// `contexts` are (before, after) ids; `of`: which of a list of objectives is that of each; `settings` is JSON; `allowed`
/// has one byte a token; `tokenizer`, where given, turns away prompts that do not come back from decode and encode;
/// `progress(step, best)` is called after each step.
#[pyfunction]
#[pyo3(signature = (model, objective, contexts, settings, allowed, tokenizer=None, progress=None, of=None))]
pub fn search(
    py: Python<'_>,
    model: &Model,
    objective: &str,
    contexts: Vec<(Vec<u32>, Vec<u32>)>,
    settings: &str,
    allowed: &[u8],
    tokenizer: Option<&Tokenizer>,
    progress: Option<Py<PyAny>>,
    of: Option<Vec<usize>>,
) -> PyResult<String> {
    let engine = &*model.engine;
    let objectives = parse_all(objective, of, engine)?;
    let mut settings: Settings =
        serde_json::from_str(settings).map_err(|error| to_py(Error::argument("settings", "valid settings", error)))?;
    settings.allowed = allowed.iter().map(|&flag| flag != 0).collect();
    let contexts: Vec<ContextTokens> =
        contexts.into_iter().map(|(before, after)| ContextTokens { before, after }).collect();
    let tokenizer = tokenizer.map(Tokenizer::share);
    let result = enter(py, |context| {
        let round_trip = tokenizer.as_deref().map(|tokenizer| tokenizer as &dyn RoundTrip);
        let mut report = |Progress { step, best }: Progress| match &progress {
            None => Ok(()),
            Some(call) => Python::attach(|py| call.call1(py, (step, best)).map(|_| ())).map_err(foreign),
        };
        core_search(engine, &objectives, &contexts, &settings, round_trip, &mut report, context)
    })?;
    serde_json::to_string(&result).map_err(|error| to_py(Error::Internal(error.to_string())))
}
