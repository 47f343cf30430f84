//! What a survey rests on, and in which form it is written down.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document::DocumentHash;
use crate::error::{Error, Result};

/// Version of the file format.
pub const FORMAT: u32 = 1;

/// Most documents of one survey: the fixed-point sums are wide enough for so many.
pub const MAX_DOCUMENTS: u64 = (1 << 31) - 1;

/// What has to be equal for two surveys to merge, or for one to be resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where BOS tokens come from: `tokenizer` (in front of each document), `prefix` (none but those of the given
    /// prefix) or `none`.
    pub bos: String,
    /// Tokens a context, the prefix included.
    pub context: usize,
    /// The engine's element type.
    pub dtype: String,
    /// [`FORMAT`].
    pub format: u32,
    /// Histograms count one unit in so many.
    pub histogram_every: u32,
    /// Names the weights.
    pub model_hash: String,
    /// Token ids in front of every context.
    pub prefix: Vec<u32>,
    /// Version of the library that counted.
    pub signflip: String,
    /// The surveyed sites, in forward order.
    pub sites: Vec<String>,
    /// The architecture.
    pub spec: Value,
    /// Occurrences kept at either end of each feature.
    pub top: usize,
}

impl Settings {
    /// Names what differs, if anything does.
    pub fn difference(&self, other: &Self) -> Result<Option<String>> {
        let (left, right) = (to_value(self)?, to_value(other)?);
        let (Value::Object(left), Value::Object(right)) = (left, right) else {
            return Err(Error::Internal("survey settings are not an object".to_owned()));
        };
        let different: Vec<String> = left
            .iter()
            .filter(|(key, value)| right.get(*key) != Some(value))
            .map(|(key, value)| {
                let other = right.get(key).map_or_else(String::new, |value| short(&canonical(value)));
                format!("{key} ({} and {other})", short(&canonical(value)))
            })
            .collect();
        Ok((!different.is_empty()).then(|| different.join(", ")))
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corpus {
    /// Sum of the documents' hashes, modulo 2¹²⁸: does not depend on their order.
    pub hash: DocumentHash,
    /// Documents with at least one token.
    pub n_documents: u64,
    /// Documents without tokens.
    pub n_empty: u64,
    /// Tokens of the documents, whether counted or counted apart; without prefixes.
    pub n_tokens: u64,
    /// Contexts.
    pub n_units: u64,
}

impl Corpus {
    /// Takes in what another survey read.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let n_documents = self.n_documents.saturating_add(other.n_documents);
        if n_documents > MAX_DOCUMENTS {
            return Err(Error::Survey(format!(
                "expected at most {MAX_DOCUMENTS} documents in a survey, found {n_documents}"
            )));
        }
        let add = |a: u64, b: u64| {
            a.checked_add(b).ok_or_else(|| Error::Survey("the counts of the surveys overflow 64 bits".to_owned()))
        };
        *self = Self {
            hash: self.hash.plus(other.hash),
            n_documents,
            n_empty: add(self.n_empty, other.n_empty)?,
            n_tokens: add(self.n_tokens, other.n_tokens)?,
            n_units: add(self.n_units, other.n_units)?,
        };
        Ok(())
    }
}

/// How far an unfinished survey has come, and in what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Order-dependent name of the documents begun so far, in hexadecimal digits.
    pub chain: String,
    /// Documents begun, those without tokens included.
    pub documents: u64,
    /// The token limit that the survey was started with.
    pub max_tokens: Option<u64>,
    /// Units of the last document that are counted; 0 if it was counted to its end.
    pub units: u32,
}

pub(super) fn to_value(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::Internal(format!("cannot write survey settings: {error}")))
}

/// One text for one value: keys sorted, no spaces.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let inner: Vec<String> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::String(key.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// The beginning of a text that may be long.
fn short(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
