//! Everything that a search has learnt of the prompts it met: no prompt is computed twice.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::contexts::Prompts;
use super::run::Aggregate;
use super::score::{self, Item};
use crate::engine::request::{Context, Engine};
use crate::error::{Error, Result};
use crate::model::tokenizer::Tokenizer;

/// Tells whether a whole prompt comes back as the same ids after decode and encode.
pub trait RoundTrip: Sync {
    /// Whether it does.
    fn ok(&self, ids: &[u32]) -> bool;
}

impl RoundTrip for Tokenizer {
    fn ok(&self, ids: &[u32]) -> bool {
        // What the tokenizer itself puts in front is no text: some write what follows it otherwise than a text's beginning.
        let text = ids.strip_prefix(self.prefix()).unwrap_or(ids);
        // Ids that the tokenizer does not have cannot come back.
        self.round_trips(text).unwrap_or(false)
    }
}

/// Counts of work done, and of work saved against a full forward of every drawn child in every context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Steps taken.
    pub steps: u64,
    /// Children drawn.
    pub children: u64,
    /// Children (and starts) seen before, whose results were looked up.
    pub looked_up: u64,
    /// Distinct prompts that the filters turned away.
    pub invalid: u64,
    /// Objective values computed (a prompt in one context each).
    pub values: u64,
    /// Cross-entropies computed (a prompt in one context each).
    pub cross_entropies: u64,
    /// Children whose lower bound was computed.
    pub bounded: u64,
    /// Of these, those dropped before their cross-entropy was computed.
    pub pruned: u64,
    /// Prompts differentiated (in one context each).
    pub gradients: u64,
    /// Tokens computed for values, cross-entropies and bounds, however few layers each went through.
    pub tokens: u64,
    /// Tokens computed for gradients.
    pub gradient_tokens: u64,
    /// Tokens computed once for the contexts.
    pub context_tokens: u64,
    /// Tokens that full forwards of every drawn child in every context would have computed.
    pub tokens_full: u64,
}

/// What is known of one prompt.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its free tokens.
    pub ids: Vec<u32>,
    /// Whether it passes the filters; `None` if not asked yet.
    pub valid: Option<bool>,
    /// The objective in each context.
    pub values: Vec<Option<f32>>,
    /// The cross-entropy in each context.
    pub entropies: Vec<Option<f32>>,
}

/// The prompts met, in order, and the means to learn more of them.
pub struct Ledger<'a> {
    /// The model.
    pub engine: &'a dyn Engine,
    /// The contexts, and what is raised in each.
    pub prompts: &'a Prompts<'a>,
    /// How contexts count together.
    pub aggregate: Aggregate,
    /// Which tokens may be used.
    pub allowed: &'a [bool],
    /// The retokenisation filter.
    pub round_trip: Option<&'a dyn RoundTrip>,
    /// Counts.
    pub work: Work,
    /// The prompts.
    pub records: Vec<Record>,
    /// The prompt of the highest value, among those known in every context.
    pub best: Option<usize>,
    index: HashMap<Vec<u32>, usize>,
    usable: u128,
}

impl<'a> Ledger<'a> {
    /// Nothing known yet.
    pub fn new(
        engine: &'a dyn Engine,
        prompts: &'a Prompts<'a>,
        aggregate: Aggregate,
        allowed: &'a [bool],
        round_trip: Option<&'a dyn RoundTrip>,
    ) -> Self {
        let work = Work { context_tokens: prompts.computed as u64, ..Work::default() };
        let (records, index) = (Vec::new(), HashMap::new());
        Self { engine, prompts, aggregate, allowed, round_trip, work, records, best: None, index, usable: 0 }
    }

    /// The prompt's place, new or known.
    pub fn intern(&mut self, ids: &[u32]) -> usize {
        if let Some(&at) = self.index.get(ids) {
            return at;
        }
        let at = self.records.len();
        let unknown = vec![None; self.prompts.len()];
        self.records.push(Record { ids: ids.to_vec(), valid: None, values: unknown.clone(), entropies: unknown });
        self.index.insert(ids.to_vec(), at);
        self.usable += u128::from(self.allows(ids));
        at
    }

    /// Puts back what a checkpoint held.
    pub fn restore(&mut self, records: Vec<Record>) {
        for record in records {
            let at = self.intern(&record.ids);
            self.records[at] = record;
            self.note_best(at);
        }
    }

    /// Whether a prompt was met before.
    pub fn knows(&self, ids: &[u32]) -> bool {
        self.index.contains_key(ids)
    }

    fn allows(&self, ids: &[u32]) -> bool {
        ids.iter().all(|&id| self.allowed.get(id as usize).copied().unwrap_or(false))
    }

    /// Whether every prompt of allowed tokens has been met.
    pub fn exhausted(&self, tokens: usize) -> bool {
        let allowed = self.allowed.iter().filter(|&&ok| ok).count() as u128;
        let all = u32::try_from(tokens).ok().and_then(|tokens| allowed.checked_pow(tokens));
        all.is_some_and(|all| self.usable >= all)
    }

    /// Settles for each prompt whether it passes the filters.
    pub fn settle(&mut self, at: &[usize]) {
        use rayon::prelude::*;

        let mut open: Vec<usize> = at.iter().copied().filter(|&at| self.records[at].valid.is_none()).collect();
        open.sort_unstable();
        open.dedup();
        let (prompts, round_trip) = (self.prompts, self.round_trip);
        let records = &self.records;
        let check = |&at: &usize| {
            let ids = &records[at].ids;
            round_trip.is_none_or(|filter| (0..prompts.len()).all(|c| filter.ok(&prompts.whole(c, ids))))
        };
        let returns: Vec<bool> = match round_trip {
            Some(_) => self.engine.pool().install(|| open.par_iter().map(check).collect()),
            None => vec![true; open.len()],
        };
        for (at, returns) in open.into_iter().zip(returns) {
            let valid = returns && self.allows(&self.records[at].ids);
            self.records[at].valid = Some(valid);
            self.work.invalid += u64::from(!valid);
        }
    }

    /// Whether a settled prompt passes the filters.
    pub fn valid(&self, at: usize) -> bool {
        self.records[at].valid == Some(true)
    }

    /// Computes what is missing of the values, and of the cross-entropies where wanted, in some contexts.
    pub fn learn(
        &mut self,
        at: &[usize],
        contexts: &[usize],
        values: bool,
        entropies: bool,
        context: &mut Context<'_>,
    ) -> Result<()> {
        let mut wanted: Vec<usize> = at.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let mut items = Vec::new();
        let mut places = Vec::new();
        for &at in &wanted {
            for &c in contexts {
                let record = &self.records[at];
                let value = values && record.values[c].is_none();
                let entropy = entropies && record.entropies[c].is_none();
                if !value && !entropy {
                    continue;
                }
                let tokens = self.prompts.whole(c, &record.ids);
                let predicted = if entropy { self.prompts.predicted(c) } else { 0..0 };
                let log_probs = predicted.map(|position| (position, tokens[position])).collect();
                let free = Some(self.prompts.free(c));
                let (root, objective) = (self.prompts.root(c), self.prompts.objective(c));
                items.push(Item { root, objective, tokens, free, value, log_probs });
                places.push((at, c, entropy));
            }
        }
        let (answers, computed) = score::evaluate(self.prompts.ground(self.engine), &items, context)?;
        self.work.tokens += computed as u64;
        for ((at, c, entropy), answer) in places.into_iter().zip(answers) {
            if let Some(value) = answer.value {
                self.records[at].values[c] = Some(value);
                self.work.values += 1;
            }
            if entropy {
                let sum = answer.log_probs.iter().fold(0.0, |sum, &log_prob| sum + surprise(log_prob));
                self.records[at].entropies[c] = Some(mean_of(sum, answer.log_probs.len()));
                self.work.cross_entropies += 1;
            }
        }
        for &at in &wanted {
            self.note_best(at);
        }
        Ok(())
    }

    fn note_best(&mut self, at: usize) {
        if self.records[at].valid != Some(true) {
            return;
        }
        let Some(value) = self.value(at, None).filter(|value| !value.is_nan()) else { return };
        let beaten = self.best.and_then(|best| self.value(best, None));
        if beaten.is_none_or(|beaten| value > beaten || (value == beaten && Some(at) < self.best)) {
            self.best = Some(at);
        }
    }

    /// The objective over some contexts (all if `None`); unknown if it is in any of them.
    pub fn value(&self, at: usize, contexts: Option<&[usize]>) -> Option<f32> {
        let all = &self.records[at].values;
        match contexts {
            None => self.aggregate.of(all.iter().copied()),
            Some(some) => self.aggregate.of(some.iter().map(|&c| all[c])),
        }
    }

    /// The mean cross-entropy over some contexts (all if `None`); unknown if it is in any of them.
    pub fn entropy(&self, at: usize, contexts: Option<&[usize]>) -> Option<f32> {
        let all = &self.records[at].entropies;
        match contexts {
            None => Aggregate::Mean.of(all.iter().copied()),
            Some(some) => Aggregate::Mean.of(some.iter().map(|&c| all[c])),
        }
    }

    /// A lower bound on the cross-entropy of each child `(parent, swapped position, child)`: its terms up to the swap
    /// are known from the parent alone, and the rest are not negative. Summed in the order of the cross-entropy itself,
    /// so that it holds in floating point too.
    pub fn entropy_bounds(
        &mut self,
        children: &[(usize, usize, usize)],
        contexts: &[usize],
        context: &mut Context<'_>,
    ) -> Result<Vec<f32>> {
        let mut parents: Vec<usize> = children.iter().map(|&(parent, ..)| parent).collect();
        parents.sort_unstable();
        parents.dedup();
        let mut items: Vec<Item> = Vec::new();
        for &parent in &parents {
            for &c in contexts {
                let tokens = self.prompts.whole(c, &self.records[parent].ids);
                let free = Some(self.prompts.free(c));
                let (root, objective) = (self.prompts.root(c), self.prompts.objective(c));
                items.push(Item { root, objective, tokens, free, value: false, log_probs: Vec::new() });
            }
        }
        // Per child and context: which of the item's log-probabilities are its first terms.
        let mut terms: Vec<Vec<(usize, Range<usize>, Option<usize>)>> = Vec::with_capacity(children.len());
        let mut prefix: Vec<usize> = vec![0; items.len()];
        for &(parent, swap, _) in children {
            let first = parents.partition_point(|&p| p < parent) * contexts.len();
            for (i, &c) in contexts.iter().enumerate() {
                let predicted = self.prompts.predicted(c);
                let position = self.prompts.free(c).start + swap;
                prefix[first + i] = prefix[first + i].max(position.saturating_sub(predicted.start));
            }
        }
        for (item, (slot, count)) in items.iter_mut().zip(prefix.iter().enumerate()) {
            let start = self.prompts.predicted(contexts[slot % contexts.len()]).start;
            item.log_probs = (start..start + count).map(|position| (position, item.tokens[position])).collect();
        }
        for &(parent, swap, child) in children {
            let first = parents.partition_point(|&p| p < parent) * contexts.len();
            let mut own = Vec::with_capacity(contexts.len());
            for (i, &c) in contexts.iter().enumerate() {
                let predicted = self.prompts.predicted(c);
                let position = self.prompts.free(c).start + swap;
                let item = &mut items[first + i];
                let new = (position >= predicted.start).then(|| {
                    item.log_probs.push((position, self.records[child].ids[swap]));
                    item.log_probs.len() - 1
                });
                own.push((first + i, 0..position.saturating_sub(predicted.start), new));
            }
            terms.push(own);
        }
        let (answers, computed) = score::evaluate(self.prompts.ground(self.engine), &items, context)?;
        self.work.tokens += computed as u64;
        self.work.bounded += children.len() as u64;
        Ok(terms
            .into_iter()
            .map(|own| {
                let bounds = own.into_iter().zip(contexts).map(|((item, range, new), &c)| {
                    let known = &answers[item].log_probs;
                    let first = range.chain(new).fold(0.0, |sum, at| sum + surprise(known[at]));
                    Some(mean_of(first, self.prompts.predicted(c).len()))
                });
                Aggregate::Mean.of(bounds).unwrap_or(0.0)
            })
            .collect())
    }

    /// What `fresh` prompts may be drawn from.
    pub fn allowed_ids(&self) -> Result<Vec<u32>> {
        let ids: Vec<u32> = (0..self.allowed.len() as u32).filter(|&id| self.allowed[id as usize]).collect();
        if ids.is_empty() {
            return Err(Error::Search("the filters leave no token of the vocabulary to search with".to_owned()));
        }
        Ok(ids)
    }
}

/// `-log p`, never negative: rounding can leave a log-probability a hair above 0.
fn surprise(log_prob: f32) -> f64 {
    if log_prob > 0.0 { 0.0 } else { -f64::from(log_prob) }
}

fn mean_of(sum: f64, count: usize) -> f32 {
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}
