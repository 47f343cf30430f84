//! Text to token ids and back, by the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rayon::prelude::*;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};

/// Largest id a tokenizer may name: tables are indexed by id.
const MAX_ID: u32 = 1 << 24;

/// A tokenizer. Encoding never truncates or pads, whatever the file says of either.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// By id; ids may have holes.
    pieces: Vec<Option<Box<str>>>,
    /// Ids of special tokens, ascending.
    special: Vec<u32>,
    /// What the post-processor puts in front of a text.
    prefix: Vec<u32>,
}

impl Tokenizer {
    /// From the text of a `tokenizer.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        // The crate panics on some malformed files; syntax is checked first, so that its errors say where it broke.
        serde_json::from_str::<IgnoredAny>(json).map_err(|e| Error::Tokenizer(format!("expected JSON: {e}")))?;
        Self::new(guarded(|| json.parse())?)
    }

    /// From a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let json = std::str::from_utf8(&json)
            .map_err(|e| Error::Tokenizer(format!("{}: expected UTF-8: {e}", path.display())))?;
        Self::from_json(json).map_err(|e| match e {
            Error::Tokenizer(what) => Error::Tokenizer(format!("{}: {what}", path.display())),
            other => other,
        })
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        let mut pieces: Vec<Option<Box<str>>> = Vec::new();
        for (piece, id) in inner.get_vocab(true) {
            if id >= MAX_ID {
                return Err(Error::Tokenizer(format!("expected ids below {MAX_ID}, found {id} for {piece:?}")));
            }
            if pieces.len() <= id as usize {
                pieces.resize(id as usize + 1, None);
            }
            pieces[id as usize] = Some(piece.into_boxed_str());
        }
        if pieces.is_empty() {
            return Err(Error::Tokenizer("expected a vocabulary, found none".to_owned()));
        }
        let added = inner.get_added_tokens_decoder();
        let mut special: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special.sort_unstable();
        let mut tokenizer = Self { inner, pieces, special, prefix: Vec::new() };
        tokenizer.prefix = tokenizer.find_prefix()?;
        Ok(tokenizer)
    }

    /// What stands in front of a text's own ids: a post-processor gives no other way to ask.
    fn find_prefix(&self) -> Result<Vec<u32>> {
        let (with, own) = (self.encode("a", true)?, self.encode("a", false)?);
        let at = with.windows(own.len().max(1)).position(|window| window == own).unwrap_or(0);
        Ok(with[..at].to_vec())
    }

    /// Ids of a text. Special tokens written in it are parsed; with `add_special`, the post-processor adds its own (BOS).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(guarded(|| self.inner.encode_fast(text, add_special))?.get_ids().to_vec())
    }

    /// Text of ids, exactly: nothing is cleaned up, and special tokens are kept unless `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.piece(id).is_none()) {
            let size = self.pieces.len();
            return Err(Error::Tokens(format!("expected ids of the tokenizer (0 to {}), found {id}", size - 1)));
        }
        guarded(|| self.inner.decode(ids, skip_special))
    }

    /// [`Self::encode`] of many texts, in parallel.
    pub fn encode_batch(&self, texts: &[String], add_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, add_special)).collect()
    }

    /// [`Self::decode`] of many lists, in parallel.
    pub fn decode_batch(&self, lists: &[Vec<u32>], skip_special: bool) -> Result<Vec<String>> {
        lists.par_iter().map(|ids| self.decode(ids, skip_special)).collect()
    }

    /// Text of each id by itself.
    pub fn token_strings(&self, ids: &[u32]) -> Result<Vec<String>> {
        ids.iter().map(|&id| self.decode(&[id], false)).collect()
    }

    /// Whether decoding ids whole and encoding the text again, with no special tokens added, gives the same ids.
    pub fn round_trips(&self, ids: &[u32]) -> Result<bool> {
        Ok(self.encode(&self.decode(ids, false)?, false)? == ids)
    }

    /// [`Self::round_trips`] of many lists, in parallel.
    pub fn round_trips_batch(&self, lists: &[Vec<u32>]) -> Result<Vec<bool>> {
        lists.par_iter().map(|ids| self.round_trips(ids)).collect()
    }

    /// A token as the vocabulary writes it.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize)?.as_deref()
    }

    /// Id of a token as the vocabulary writes it.
    pub fn token_to_id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// One more than the largest id. The model's vocabulary may be larger: its further rows are padding.
    pub fn size(&self) -> usize {
        self.pieces.len()
    }

    /// Ids of special tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special
    }

    /// Ids that [`Self::encode`] puts in front of a text (BOS), often none.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }
}

/// Calls into the crate, whose panics on tokenizers that make no sense become errors like its own.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(_) => Err(Error::Tokenizer("malformed: the tokenizers crate cannot make sense of it".to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Words and spaces, a BOS in front.
    const WORDS: &str = r#"{
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "post_processor": {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"<s>": 0, "?": 1, "a": 2, "cat": 5}}
    }"#;

    #[test]
    fn begins_with_what_the_post_processor_adds_and_never_truncates() {
        let tokenizer = Tokenizer::from_json(WORDS).unwrap();
        assert_eq!(tokenizer.encode("a cat a", true).unwrap(), [0, 2, 5, 2]);
        assert_eq!(tokenizer.encode("<s> cat", false).unwrap(), [0, 5]);
        assert_eq!(tokenizer.prefix(), [0]);
        assert_eq!(tokenizer.special_ids(), [0]);
        assert_eq!(tokenizer.size(), 6);
        assert!(tokenizer.round_trips(&[2, 5]).unwrap());
    }

    #[test]
    fn ids_in_a_hole_of_the_vocabulary_are_refused() {
        let tokenizer = Tokenizer::from_json(WORDS).unwrap();
        assert_eq!(tokenizer.piece(3), None);
        assert!(matches!(tokenizer.decode(&[2, 3], false), Err(Error::Tokens(what)) if what.contains("found 3")));
    }

    #[test]
    fn files_that_make_no_sense_are_errors() {
        for json in ["", "{}", "[", r#"{"model": {"type": "BPE"}}"#, &WORDS.replace("WordLevel", "Nothing")] {
            assert!(matches!(Tokenizer::from_json(json), Err(Error::Tokenizer(_))), "{json}");
        }
    }
}
