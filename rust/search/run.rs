//! One search: its settings, its state, its loop, its result.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::candidates::Proposals;
use super::checkpoint::Checkpoint;
use super::contexts::{ContextTokens, Prompts};
use super::front;
use super::ledger::{Ledger, RoundTrip, Work};
use super::objective::Objectives;
use super::rng::{Rng, Stream};
use super::{epo, gcg};
use crate::engine::request::{Context, Engine};
use crate::error::{Error, Result};

/// How contexts count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their mean (float64 in order, rounded once).
    Mean,
    /// The lowest.
    Worst,
}

impl Aggregate {
    /// Over contexts; unknown if any is.
    pub fn of(self, values: impl Iterator<Item = Option<f32>>) -> Option<f32> {
        let values: Vec<f32> = values.collect::<Option<_>>()?;
        match self {
            Self::Mean => Some((values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64) as f32),
            Self::Worst => values.into_iter().reduce(|a, b| if a.is_nan() || a < b { a } else { b }),
        }
    }

    /// The first context of the lowest value.
    pub fn worst(values: &[Option<f32>]) -> Option<usize> {
        let known = values.iter().enumerate().filter_map(|(c, value)| value.map(|value| (c, value)));
        known.reduce(|a, b| if a.1.is_nan() || a.1 <= b.1 { a } else { b }).map(|(c, _)| c)
    }
}

/// A family of search steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Evolutionary prompt optimisation (Thompson, Straznickas and Sklar 2024): a population along the front of value
    /// against fluency.
    Epo,
    /// Greedy coordinate gradient (Zou et al. 2023): one prompt, value alone.
    Gcg,
}

/// Which form of a method's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// This project's.
    Default,
    /// That of the authors' released code.
    Code,
    /// That of the paper's text.
    Paper,
}

/// What a search is to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The method.
    pub method: Method,
    /// Its form.
    pub variant: Variant,
    /// Number of free tokens.
    pub tokens: usize,
    /// Steps at most.
    pub steps: u32,
    /// Children a step.
    pub width: usize,
    /// Tokens proposed a position.
    pub topk: usize,
    /// Slots of the population (EPO).
    pub population: usize,
    /// How contexts count together.
    pub aggregate: Aggregate,
    /// Seed of every draw.
    pub seed: u64,
    /// The search ends once a value reaches this.
    pub stop_at: Option<f32>,
    /// Whether children that cannot be chosen are dropped early. The result is the same.
    pub prune: bool,
    /// Contexts that children are first scored on; 0: all. For [`Variant::Default`] alone.
    pub screen: usize,
    /// Steps in a row without a change in the population, after which it is drawn afresh ([`Variant::Default`]).
    pub patience: u32,
    /// Where to start; members beyond these repeat them. Empty: at random.
    pub start: Vec<Vec<u32>>,
    /// Whether a start that the filters turn away is an error; else a random one takes its place.
    pub start_required: bool,
    /// One flag a token: whether it may be used.
    #[serde(skip)]
    pub allowed: Vec<bool>,
    /// Where the state is kept, and taken up again.
    pub checkpoint: Option<PathBuf>,
    /// What makes this search this one, in words of the caller's: a checkpoint of another is refused.
    pub identity: String,
    /// Least time between two checkpoints, seconds.
    pub checkpoint_every: f64,
}

/// What a callback learns after each step.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps taken.
    pub step: u32,
    /// The highest value so far.
    pub best: Option<f32>,
}

/// What a step did beyond choosing among parents and children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first population.
    Start,
    /// An ordinary step.
    Step,
    /// All slots were given the prompt best at one penalty.
    Restart,
    /// The population stood still and was drawn afresh.
    Fresh,
}

/// The population after a step: places in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// One place a slot.
    pub members: Vec<usize>,
}

/// One prompt of a result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The free tokens.
    pub tokens: Vec<u32>,
    /// The objective, over all contexts.
    pub value: Option<f32>,
    /// Mean cross-entropy of the free tokens that have something in front of them, nats a token, over all contexts.
    pub cross_entropy: Option<f32>,
}

/// One step of a result's history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Past {
    /// What happened.
    pub event: Event,
    /// The members chosen, one a slot: indices into [`SearchResult::prompts`].
    pub members: Vec<usize>,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps were taken.
    Steps,
    /// A value reached `stop_at`.
    Reached,
    /// Every prompt of allowed tokens was met.
    Exhausted,
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct SearchResult {
    /// The prompt of the highest value of all that were scored in every context.
    pub best: Found,
    /// Its whole prompts, one a context.
    pub sequences: Vec<Vec<u32>>,
    /// Where the free tokens are in each: start and end.
    pub spans: Vec<(usize, usize)>,
    /// The front of value against cross-entropy over all members ever chosen, and the best: lowest cross-entropy first.
    pub front: Vec<Found>,
    /// The distinct prompts that were chosen.
    pub prompts: Vec<Found>,
    /// The chosen ones, step by step; the first entry is the start.
    pub history: Vec<Past>,
    /// Why it ended.
    pub ended: Ended,
    /// Work done and saved.
    pub work: Work,
}

/// A slot of the population: a prompt, and the penalty that its proposals were, or will be, made with.
pub(super) type Slot = (usize, f64);

/// A search under way.
pub(super) struct Run<'a> {
    pub settings: &'a Settings,
    pub rng: Rng,
    pub ledger: Ledger<'a>,
    pub proposals: Proposals,
    /// Steps taken.
    pub step: u32,
    /// The population.
    pub slots: Vec<Slot>,
    /// Steps in a row without a change.
    pub unchanged: u32,
    pub history: Vec<Entry>,
}

/// A child: its parent's place, the position swapped, and its own place.
pub(super) type Child = (usize, usize, usize);

/// Raises an objective, of all contexts or of each, over token sequences.
///
/// `contexts`: what stands round the free tokens; `round_trip`: the retokenisation filter, if wanted; `progress` is
/// called after each step.
pub fn search(
    engine: &dyn Engine,
    objectives: &Objectives,
    contexts: &[ContextTokens],
    settings: &Settings,
    round_trip: Option<&dyn RoundTrip>,
    progress: &mut dyn FnMut(Progress) -> Result<()>,
    context: &mut Context<'_>,
) -> Result<SearchResult> {
    check(engine, contexts, settings)?;
    let prompts = Prompts::prepare(engine, contexts, settings.tokens, objectives, context)?;
    let ledger = Ledger::new(engine, &prompts, settings.aggregate, &settings.allowed, round_trip);
    ledger.allowed_ids()?;
    let proposals = Proposals::new(&ledger, settings.topk)?;
    let rng = Rng::new(settings.seed);
    let (slots, history) = (Vec::new(), Vec::new());
    let mut run = Run { settings, rng, ledger, proposals, step: 0, slots, unchanged: 0, history };
    let mut keeper = Checkpoint::new(settings);
    if !keeper.take_up(&mut run, context)? {
        run.start(context)?;
        keeper.keep(&run, true)?;
    }
    let ended = loop {
        progress(Progress { step: run.step, best: run.ledger.best.and_then(|at| run.ledger.value(at, None)) })?;
        if let Some(ended) = run.ended() {
            break ended;
        }
        match settings.method {
            Method::Epo => epo::step(&mut run, context)?,
            Method::Gcg => gcg::step(&mut run, context)?,
        }
        run.step += 1;
        run.ledger.work.steps += 1;
        keeper.keep(&run, false)?;
    };
    run.result(ended, context)
}

fn check(engine: &dyn Engine, contexts: &[ContextTokens], settings: &Settings) -> Result<()> {
    let at_least_one = |name: &'static str, value: usize| {
        if value == 0 { Err(Error::argument(name, "at least 1", value)) } else { Ok(()) }
    };
    at_least_one("tokens", settings.tokens)?;
    at_least_one("width", settings.width)?;
    at_least_one("topk", settings.topk)?;
    at_least_one("population", settings.population)?;
    at_least_one("patience", settings.patience as usize)?;
    let spec = engine.spec();
    if spec.head != crate::model::spec::Head::Unembed && settings.method == Method::Epo {
        let found = "a reward model, which predicts no tokens";
        return Err(Error::argument("method", "\"gcg\" where there is no cross-entropy", found));
    }
    if settings.allowed.len() != spec.d_vocab {
        let expected = format!("one flag a token ({})", spec.d_vocab);
        return Err(Error::argument("allowed", expected, settings.allowed.len()));
    }
    if settings.screen != 0 && settings.variant != Variant::Default {
        return Err(Error::argument("screen", "0 for a published variant", settings.screen));
    }
    if settings.screen > contexts.len() {
        let expected = format!("at most the number of contexts ({})", contexts.len());
        return Err(Error::argument("screen", expected, settings.screen));
    }
    if settings.stop_at.is_some_and(f32::is_nan) {
        return Err(Error::argument("stop_at", "a number", "NaN"));
    }
    for start in &settings.start {
        if start.len() != settings.tokens {
            return Err(Error::argument("start", format!("{} tokens", settings.tokens), start.len()));
        }
        if let Some(id) = start.iter().find(|&&id| id as usize >= spec.d_vocab) {
            let vocabulary = spec.d_vocab;
            return Err(Error::Tokens(format!("id {id} in the start is outside the vocabulary of {vocabulary} ids")));
        }
    }
    Ok(())
}

impl Run<'_> {
    /// Contexts that members are known in.
    pub fn all_contexts(&self) -> Range<usize> {
        0..self.ledger.prompts.len()
    }

    fn ended(&self) -> Option<Ended> {
        let best = self.ledger.best.and_then(|at| self.ledger.value(at, None));
        if self.settings.stop_at.zip(best).is_some_and(|(stop_at, best)| best >= stop_at) {
            return Some(Ended::Reached);
        }
        if self.step >= self.settings.steps {
            return Some(Ended::Steps);
        }
        self.ledger.exhausted(self.settings.tokens).then_some(Ended::Exhausted)
    }

    /// The penalty of each slot.
    pub fn penalties(&self) -> Vec<f64> {
        match self.settings.method {
            Method::Gcg => vec![0.0],
            Method::Epo => epo::penalties(self.settings),
        }
    }

    fn start(&mut self, context: &mut Context<'_>) -> Result<()> {
        let penalties = self.penalties();
        let mut members = Vec::with_capacity(penalties.len());
        let given: Vec<usize> = self.settings.start.iter().map(|ids| self.ledger.intern(ids)).collect();
        self.ledger.settle(&given);
        if let Some(&at) = given.iter().find(|&&at| !self.ledger.valid(at)).filter(|_| self.settings.start_required) {
            let ids = &self.ledger.records[at].ids;
            return Err(Error::Search(format!("the filters turn away the start {ids:?}")));
        }
        let given: Vec<usize> = given.into_iter().filter(|&at| self.ledger.valid(at)).collect();
        for m in 0..penalties.len() {
            members.push(if given.is_empty() { self.draw(Stream::Start, m, false)? } else { given[m % given.len()] });
        }
        self.enter(Event::Start, members, &penalties, context)
    }

    /// Draws a fresh population.
    pub fn fresh(&mut self, context: &mut Context<'_>) -> Result<()> {
        let penalties = self.penalties();
        let members = (0..penalties.len()).map(|m| self.draw(Stream::Fresh, m, true)).collect::<Result<Vec<_>>>()?;
        self.unchanged = 0;
        self.enter(Event::Fresh, members, &penalties, context)
    }

    fn enter(&mut self, event: Event, members: Vec<usize>, penalties: &[f64], context: &mut Context<'_>) -> Result<()> {
        let all: Vec<usize> = self.all_contexts().collect();
        self.ledger.learn(&members, &all, true, self.settings.method == Method::Epo, context)?;
        self.slots = members.iter().copied().zip(penalties.iter().copied()).collect();
        self.history.push(Entry { event, members });
        Ok(())
    }

    /// A random prompt that passes the filters, `unseen` if one is soon found.
    fn draw(&mut self, stream: Stream, member: usize, unseen: bool) -> Result<usize> {
        const ATTEMPTS: u32 = 1024;
        let allowed = self.ledger.allowed_ids()?;
        let mut seen = None;
        for attempt in 0..ATTEMPTS {
            let (first, second) = match stream {
                Stream::Fresh => (self.step, member as u32 + 65536 * attempt),
                _ => (attempt, member as u32),
            };
            let draw = |token| allowed[self.rng.below(first, second, stream, token, allowed.len())];
            let ids: Vec<u32> = (0..self.settings.tokens as u32).map(draw).collect();
            let known = self.ledger.knows(&ids);
            let at = self.ledger.intern(&ids);
            self.ledger.settle(&[at]);
            if self.ledger.valid(at) {
                if !(known && unseen) {
                    return Ok(at);
                }
                seen = seen.or(Some(at));
            }
        }
        seen.ok_or_else(|| {
            Error::Search(format!(
                "none of {ATTEMPTS} random prompts of {} allowed tokens passes the filters (after decode and encode of \
                 the whole prompt the ids must be the same; does a context end within a word, or with a space?)",
                self.settings.tokens
            ))
        })
    }

    /// Draws a step's children. `position`: chooses where child `c` differs, if not at random.
    pub fn children(
        &mut self,
        position: Option<&dyn Fn(usize) -> usize>,
        context: &mut Context<'_>,
    ) -> Result<Vec<Child>> {
        let ranks = self.proposals.of(&mut self.ledger, &self.slots, context)?;
        let (n, width) = (self.settings.tokens, self.settings.width);
        let mut children = Vec::with_capacity(width);
        for c in 0..width {
            let slot = c % self.slots.len();
            let parent = self.slots[slot].0;
            let (drawn, _) = self.rng.pair(self.step, c as u32, Stream::Child, 0, n, 1);
            let swap = position.map_or(drawn, |position| position(c));
            let tokens = &ranks[slot][swap];
            let mut ids = self.ledger.records[parent].ids.clone();
            if !tokens.is_empty() {
                let (_, rank) = self.rng.pair(self.step, c as u32, Stream::Child, 0, n, tokens.len());
                ids[swap] = tokens[rank];
            }
            let known = self.ledger.knows(&ids);
            children.push((parent, swap, self.ledger.intern(&ids)));
            let full: usize = self.all_contexts().map(|c| self.ledger.prompts.length(c)).sum();
            let work = &mut self.ledger.work;
            work.children += 1;
            work.looked_up += u64::from(known);
            work.tokens_full += full as u64;
        }
        let places: Vec<usize> = children.iter().map(|&(.., at)| at).collect();
        self.ledger.settle(&places);
        Ok(children)
    }

    /// The contexts that this step's children are screened on, if they are.
    pub fn screened(&self) -> Option<Vec<usize>> {
        let (count, total) = (self.settings.screen, self.ledger.prompts.len());
        if count == 0 || count >= total {
            return None;
        }
        // The first `count` of a Fisher-Yates shuffle, then in order.
        let mut all: Vec<usize> = (0..total).collect();
        for i in 0..count {
            let j = i + self.rng.below(self.step, i as u32, Stream::Contexts, 0, total - i);
            all.swap(i, j);
        }
        all.truncate(count);
        all.sort_unstable();
        Some(all)
    }

    /// Ends a step of the default variant: notes whether the population changed, and draws it afresh if it stood still.
    pub fn settle_change(&mut self, changed: bool, context: &mut Context<'_>) -> Result<()> {
        self.unchanged = if changed { 0 } else { self.unchanged + 1 };
        let stands_still = self.settings.variant == Variant::Default && self.unchanged >= self.settings.patience;
        // A population drawn after the last step would never have children.
        if stands_still && self.step + 1 < self.settings.steps && !self.ledger.exhausted(self.settings.tokens) {
            self.fresh(context)?;
        }
        Ok(())
    }

    fn result(mut self, ended: Ended, context: &mut Context<'_>) -> Result<SearchResult> {
        let mut chosen: Vec<usize> = self.history.iter().flat_map(|entry| entry.members.iter().copied()).collect();
        let best =
            self.ledger.best.ok_or_else(|| Error::Search("no prompt had a value that is a number".to_owned()))?;
        chosen.push(best);
        let mut seen = std::collections::HashSet::new();
        chosen.retain(|&at| seen.insert(at));
        if self.ledger.engine.spec().head == crate::model::spec::Head::Unembed {
            let all: Vec<usize> = self.all_contexts().collect();
            self.ledger.learn(&chosen, &all, false, true, context)?;
        }
        let found = |at: usize| Found {
            tokens: self.ledger.records[at].ids.clone(),
            value: self.ledger.value(at, None),
            cross_entropy: self.ledger.entropy(at, None),
        };
        let points: Vec<(f32, f32)> = chosen
            .iter()
            .map(|&at| {
                let usable = self.ledger.valid(at);
                let value = self.ledger.value(at, None).filter(|_| usable).unwrap_or(f32::NAN);
                (value, self.ledger.entropy(at, None).unwrap_or(0.0))
            })
            .collect();
        let places: std::collections::HashMap<usize, usize> =
            chosen.iter().enumerate().map(|(i, &at)| (at, i)).collect();
        let past = |entry: &Entry| Past {
            event: entry.event,
            members: entry.members.iter().filter_map(|at| places.get(at).copied()).collect(),
        };
        let prompts = self.ledger.prompts;
        let spans = self.all_contexts().map(|c| (prompts.free(c).start, prompts.free(c).end)).collect();
        Ok(SearchResult {
            best: found(best),
            sequences: self.all_contexts().map(|c| prompts.whole(c, &self.ledger.records[best].ids)).collect(),
            spans,
            front: front::pareto(&points).into_iter().map(|i| found(chosen[i])).collect(),
            prompts: chosen.iter().map(|&at| found(at)).collect(),
            history: self.history.iter().map(past).collect(),
            ended,
            work: self.ledger.work,
        })
    }
}
