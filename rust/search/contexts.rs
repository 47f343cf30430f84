//! The text round the free tokens, with what is in front of them computed once a run.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::forest::{self, Root, Sequence};
use super::objective::{Objective, Objectives};
use super::score::Ground;
use crate::engine::request::{Cache, Context, Engine, Request};
use crate::error::{Error, Result};

/// What stands before and after the free tokens, in ids of the whole prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextTokens {
    /// Before; the document separator or BOS included, if the prompt has one.
    pub before: Vec<u32>,
    /// After.
    pub after: Vec<u32>,
}

/// Contexts made ready for a search on one engine.
pub struct Prompts<'a> {
    objectives: &'a Objectives,
    contexts: Vec<ContextTokens>,
    tokens: usize,
    roots: Vec<Root>,
    root_of: Vec<usize>,
    cache: Option<Cache>,
    /// Tokens computed to make ready.
    pub computed: usize,
}

impl<'p> Prompts<'p> {
    /// Computes the keys and values of what stands in front of the free tokens, as far as no read needs its rows again.
    pub fn prepare(
        engine: &dyn Engine,
        contexts: &[ContextTokens],
        tokens: usize,
        objectives: &'p Objectives,
        context: &mut Context<'_>,
    ) -> Result<Self> {
        if contexts.is_empty() {
            return Err(Error::argument("contexts", "at least one", "none"));
        }
        let spec = engine.spec();
        objectives.check(contexts.len())?;
        let mut cuts: Vec<(usize, &[u32])> = Vec::with_capacity(contexts.len());
        for (i, ContextTokens { before, after }) in contexts.iter().enumerate() {
            let objective: &Objective = objectives.of(i);
            if let Some(id) = before.iter().chain(after).find(|&&id| id as usize >= spec.d_vocab) {
                let vocabulary = spec.d_vocab;
                return Err(Error::Tokens(format!(
                    "id {id} in a context is outside the vocabulary of {vocabulary} ids"
                )));
            }
            let beyond = objective.extensions().map(<[u32]>::len).max().unwrap_or(0);
            let found = before.len() + tokens + after.len() + beyond;
            if found > spec.n_ctx {
                return Err(Error::ContextLength { found, limit: spec.n_ctx });
            }
            let whole = [before.as_slice(), &vec![0; tokens], after].concat();
            let free = before.len()..before.len() + tokens;
            // The last token of `before` predicts the first free one, so its row is wanted too.
            let cut = objective.extent(&whole, Some(&free))?.start.min(before.len().saturating_sub(1));
            cuts.push((cut, &before[..cut]));
        }
        let mut distinct: Vec<&[u32]> = cuts.iter().map(|(_, front)| *front).filter(|f| !f.is_empty()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let views: Vec<Sequence<'_>> = distinct.iter().map(|tokens| Sequence { root: 0, tokens }).collect();
        let forest = forest::build(&[Root::EMPTY], &views);
        let computed = forest.segments.iter().map(|segment| segment.tokens.len()).sum();
        let cache = if forest.segments.is_empty() {
            None
        } else {
            let request = Request { segments: forest.segments, keep: true, ..Request::default() };
            let kept = engine.run(&request, context)?.cache;
            Some(kept.ok_or_else(|| Error::Internal("keys and values were to be kept and are not there".to_owned()))?)
        };
        let mut roots: Vec<Root> = distinct
            .iter()
            .zip(&forest.paths)
            .map(|(front, path)| Root {
                cut: front.len(),
                cached: path.last().map(|&(segment, start)| (segment, front.len() - start)),
            })
            .collect();
        let empty = roots.len();
        roots.push(Root::EMPTY);
        let root_of = cuts.iter().map(|(_, front)| distinct.binary_search(front).unwrap_or(empty)).collect();
        Ok(Self { objectives, contexts: contexts.to_vec(), tokens, roots, root_of, cache, computed })
    }

    /// What sequences are computed on.
    pub fn ground<'a>(&'a self, engine: &'a dyn Engine) -> Ground<'a> {
        Ground { engine, cache: self.cache.as_ref(), roots: &self.roots, objectives: self.objectives.distinct() }
    }

    /// Number of contexts.
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Whether there are none; never so.
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// The index of a context's objective.
    pub fn objective(&self, context: usize) -> usize {
        self.objectives.index(context)
    }

    /// The largest share of a full forward that an objective needs.
    pub fn depth(&self) -> f64 {
        self.objectives.depth()
    }

    /// The root of a context.
    pub fn root(&self, context: usize) -> usize {
        self.root_of[context]
    }

    /// A whole prompt.
    pub fn whole(&self, context: usize, free: &[u32]) -> Vec<u32> {
        let ContextTokens { before, after } = &self.contexts[context];
        [before.as_slice(), free, after].concat()
    }

    /// Where the free tokens are in a whole prompt.
    pub fn free(&self, context: usize) -> Range<usize> {
        let start = self.contexts[context].before.len();
        start..start + self.tokens
    }

    /// The free tokens that are predicted: those with something in front of them.
    pub fn predicted(&self, context: usize) -> Range<usize> {
        let free = self.free(context);
        free.start.max(1)..free.end.max(1)
    }

    /// Tokens of a whole prompt with what is read behind it.
    pub fn length(&self, context: usize) -> usize {
        let ContextTokens { before, after } = &self.contexts[context];
        before.len() + self.tokens + after.len()
    }
}
