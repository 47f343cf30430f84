//! `_core.Tokenizer`: text to token ids and back.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyString;
use signflip::Error;
use signflip::model::tokenizer::Tokenizer as Inner;

use crate::error::to_py;

/// A tokenizer, from a `tokenizer.json`. Threads may share it.
#[pyclass(frozen, module = "signflip._core")]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

impl Tokenizer {
    /// The tokenizer itself, for the search.
    #[allow(dead_code, reason = "used by the search's filter")]
    pub(crate) fn share(&self) -> Arc<Inner> {
        Arc::clone(&self.inner)
    }
}

#[pymethods]
impl Tokenizer {
    /// From the text of a `tokenizer.json`.
    #[staticmethod]
    fn from_json(py: Python<'_>, json: &str) -> PyResult<Self> {
        let inner = py.detach(|| Inner::from_json(json)).map_err(to_py)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// From a `tokenizer.json`.
    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(move || Inner::from_file(&path)).map_err(to_py)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ids of a text; with `add_special_tokens`, those that the tokenizer itself adds (BOS) too.
    #[pyo3(signature = (text, add_special_tokens = true))]
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyString>, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let text = text_of(text)?;
        py.detach(|| self.inner.encode(&text, add_special_tokens)).map_err(to_py)
    }

    /// Text of ids, exactly.
    #[pyo3(signature = (ids, skip_special_tokens = false))]
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, skip_special_tokens: bool) -> PyResult<String> {
        let ids = ids_of(ids)?;
        py.detach(|| self.inner.decode(&ids, skip_special_tokens)).map_err(to_py)
    }

    /// `encode` of many texts, in parallel.
    #[pyo3(signature = (texts, add_special_tokens = true))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        add_special_tokens: bool,
    ) -> PyResult<Vec<Vec<u32>>> {
        let texts = texts.try_iter()?.map(|text| text_of(text?.cast()?)).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.inner.encode_batch(&texts, add_special_tokens)).map_err(to_py)
    }

    /// `decode` of many lists of ids, in parallel.
    #[pyo3(signature = (lists, skip_special_tokens = false))]
    fn decode_batch(
        &self,
        py: Python<'_>,
        lists: &Bound<'_, PyAny>,
        skip_special_tokens: bool,
    ) -> PyResult<Vec<String>> {
        let lists = lists_of(lists)?;
        py.detach(|| self.inner.decode_batch(&lists, skip_special_tokens)).map_err(to_py)
    }

    /// Text of each id by itself.
    fn token_strings(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        self.inner.token_strings(&ids_of(ids)?).map_err(to_py)
    }

    /// Whether decoding the ids and encoding the text again gives the same ids.
    fn round_trips(&self, ids: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.inner.round_trips(&ids_of(ids)?).map_err(to_py)
    }

    /// `round_trips` of many lists of ids, in parallel.
    fn round_trips_batch(&self, py: Python<'_>, lists: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let lists = lists_of(lists)?;
        py.detach(|| self.inner.round_trips_batch(&lists)).map_err(to_py)
    }

    /// A token as the vocabulary writes it, None for an id that it does not have.
    fn id_to_piece(&self, token: i64) -> Option<&str> {
        self.inner.piece(u32::try_from(token).ok()?)
    }

    /// Id of a token as the vocabulary writes it.
    fn token_to_id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// One more than the largest id.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.size()
    }

    /// Ids of special tokens, ascending.
    #[getter]
    fn special_ids(&self) -> Vec<u32> {
        self.inner.special_ids().to_vec()
    }

    /// Ids that `encode` puts in front of a text (BOS), often none.
    #[getter]
    fn prefix_ids(&self) -> Vec<u32> {
        self.inner.prefix().to_vec()
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer({} ids, prefix {:?})", self.inner.size(), self.inner.prefix())
    }
}

/// A Python string, which may hold surrogates that no text has.
fn text_of(text: &Bound<'_, PyString>) -> PyResult<String> {
    let found = |e| to_py(Error::Tokenizer(format!("expected text that UTF-8 can hold: {e}")));
    text.to_str().map(str::to_owned).map_err(found)
}

fn ids_of(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let id = |id: PyResult<Bound<'_, PyAny>>| {
        let id = id?;
        // Integers of any size, Python's or numpy's.
        let wide = id.extract::<i64>();
        wide.ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| match id.repr() {
            Ok(found) => to_py(Error::Tokens(format!("expected whole numbers from 0 on, found {found}"))),
            Err(e) => e,
        })
    };
    ids.try_iter()?.map(id).collect()
}

fn lists_of(lists: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u32>>> {
    lists.try_iter()?.map(|ids| ids_of(&ids?)).collect()
}
