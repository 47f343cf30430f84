//! Values, log-probabilities and gradients of many sequences, through the prefix forest.

use std::collections::HashMap;
use std::ops::Range;

use super::forest::{self, Forest, Path, Root, Sequence};
use super::objective::{Objective, Objectives, Reader, Slots};
use crate::engine::request::{
    Cache, Columns, Context, Engine, Gradients, Output, Parent, Read, Request, RowRef, Segment,
};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};

/// Tokens that one scoring request computes at most (if more than one sequence is in it).
const REQUEST_TOKENS: usize = 2048;
/// Tokens that one gradient request holds at most: it keeps what every layer computed.
const GRADIENT_TOKENS: usize = 512;

/// What sequences are computed on: an engine, the beginnings it need not compute again, and what can be read of them.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The model.
    pub engine: &'a dyn Engine,
    /// Keys and values that roots refer to.
    pub cache: Option<&'a Cache>,
    /// Where sequences begin.
    pub roots: &'a [Root],
    /// What is read of them.
    pub objectives: &'a [Objective],
}

/// A sequence, and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Item {
    /// Index of its root.
    pub root: usize,
    /// Index of its objective.
    pub objective: usize,
    /// All its tokens.
    pub tokens: Vec<u32>,
    /// Which of them are free, if known.
    pub free: Option<Range<usize>>,
    /// Whether the objective's value is wanted.
    pub value: bool,
    /// `(position, id)`: wanted is the log-probability of `id` at `position`, after the tokens in front of it.
    pub log_probs: Vec<(usize, u32)>,
}

/// What was wanted of an [`Item`].
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The objective's value, if it was wanted.
    pub value: Option<f32>,
    /// One a wanted log-probability.
    pub log_probs: Vec<f32>,
}

impl Item {
    /// How many leading tokens have to be there; the sequence's extensions need all.
    fn needed(&self, objectives: &[Objective]) -> Result<usize> {
        let mut end = self.log_probs.iter().map(|&(position, _)| position).max().unwrap_or(0);
        if self.value {
            end = end.max(objectives[self.objective].extent(&self.tokens, self.free.as_ref())?.end);
        }
        Ok(end)
    }
}

/// Computes what is wanted of each item. Returns the answers, and the number of tokens computed.
pub fn evaluate(ground: Ground<'_>, items: &[Item], context: &mut Context<'_>) -> Result<(Vec<Answer>, usize)> {
    let mut answers = vec![Answer::default(); items.len()];
    let beyond: Vec<usize> = ground.objectives.iter().map(Objective::beyond).collect();
    let views: Vec<Sequence<'_>> = items.iter().map(|i| Sequence { root: i.root, tokens: &i.tokens }).collect();
    let mut computed = 0;
    let mut batch: Vec<usize> = Vec::new();
    let mut size = 0;
    for at in forest::order(&views) {
        let item = &items[at];
        if item.needed(ground.objectives)? <= ground.roots[item.root].cut {
            continue;
        }
        let own = match batch.last().filter(|&&last| items[last].root == item.root) {
            Some(&last) => item.tokens.iter().zip(&items[last].tokens).skip_while(|(a, b)| a == b).count(),
            None => item.tokens.len() - ground.roots[item.root].cut,
        };
        let own = own + if item.value { beyond[item.objective] } else { 0 };
        if !batch.is_empty() && size + own > REQUEST_TOKENS {
            computed += run_batch(ground, items, &batch, &mut answers, context)?;
            batch.clear();
            size = 0;
        }
        size += own;
        batch.push(at);
    }
    if !batch.is_empty() {
        computed += run_batch(ground, items, &batch, &mut answers, context)?;
    }
    Ok((answers, computed))
}

fn run_batch(
    ground: Ground<'_>,
    items: &[Item],
    batch: &[usize],
    answers: &mut [Answer],
    context: &mut Context<'_>,
) -> Result<usize> {
    let mut sequences: Vec<(usize, Vec<u32>)> = Vec::new();
    for &at in batch {
        let item = &items[at];
        sequences.push((item.root, item.tokens[..item.needed(ground.objectives)?].to_vec()));
        if item.value {
            let extensions = ground.objectives[item.objective].extensions();
            sequences.extend(extensions.map(|extension| (item.root, [&item.tokens, extension].concat())));
        }
    }
    let views: Vec<Sequence<'_>> = sequences.iter().map(|(root, tokens)| Sequence { root: *root, tokens }).collect();
    let Forest { segments, paths } = forest::build(ground.roots, &views);
    let computed = segments.iter().map(|segment| segment.tokens.len()).sum();

    let mut reader = Reader::new(ground.objectives);
    let mut rows: Vec<RowRef> = Vec::new();
    let mut targets: Vec<u32> = Vec::new();
    let mut index: HashMap<(RowRef, u32), usize> = HashMap::new();
    let mut places: Vec<(Option<Slots>, Vec<usize>)> = Vec::with_capacity(batch.len());
    let mut paths = paths.iter();
    for &at in batch {
        let item = &items[at];
        let lost = || Error::Internal("a sequence has no path through its forest".to_owned());
        let path = paths.next().ok_or_else(lost)?;
        let slots = if item.value {
            let extensions = ground.objectives[item.objective].extensions().count();
            let extended: Vec<Path> = paths.by_ref().take(extensions).cloned().collect();
            Some(reader.add(item.objective, &item.tokens, item.free.as_ref(), path, &extended)?)
        } else {
            None
        };
        let mut place = |&(position, id): &(usize, u32)| {
            let row = forest::row(path, position - 1);
            *index.entry((row, id)).or_insert_with(|| {
                rows.push(row);
                targets.push(id);
                rows.len() - 1
            })
        };
        places.push((slots, item.log_probs.iter().map(&mut place).collect()));
    }
    let mut reads = reader.reads();
    if !rows.is_empty() {
        reads.push(Read::LogProb { rows, targets });
    }
    let request = Request { segments, cache: ground.cache.cloned(), reads, ..Request::default() };
    let outputs = ground.engine.run(&request, context)?.outputs;
    for (&at, (slots, log_probs)) in batch.iter().zip(&places) {
        answers[at] = Answer {
            value: slots.as_ref().map(|slots| reader.value(slots, &outputs)),
            log_probs: match outputs.last() {
                Some(last) => log_probs.iter().map(|&row| last.data[row]).collect(),
                None => Vec::new(),
            },
        };
    }
    Ok(computed)
}

/// A sequence whose objective, less `penalty` times its cross-entropy, is differentiated.
#[derive(Clone, Debug)]
pub struct GradientItem {
    /// Index of its root.
    pub root: usize,
    /// Index of its objective.
    pub objective: usize,
    /// All its tokens.
    pub tokens: Vec<u32>,
    /// Which of them are free.
    pub free: Range<usize>,
    /// Factor on the objective.
    pub weight: f64,
    /// Factor on the summed log-probabilities of the free tokens (those that follow something).
    pub entropy_weight: f64,
}

/// The derivative by one sequence's free tokens.
#[derive(Clone, Debug)]
pub struct TokenGradient {
    /// By the embedding of each free token, `[free, d_model]`.
    pub embed: Vec<f32>,
    /// The normalised last residual (before gain and bias) at the token in front of each free one, `[free, d_model]`;
    /// zeros where nothing is in front; empty without an entropy weight.
    pub normalized: Vec<f32>,
}

/// Gradients of many sequences, each on its own rows. Returns them, and the number of tokens computed.
pub fn token_gradients(
    ground: Ground<'_>,
    items: &[GradientItem],
    context: &mut Context<'_>,
) -> Result<(Vec<TokenGradient>, usize)> {
    let mut out = Vec::with_capacity(items.len());
    let mut computed = 0;
    let mut rest = items;
    while !rest.is_empty() {
        let mut size = 0;
        let fits = |item: &&GradientItem| {
            let beyond = ground.objectives[item.objective].beyond();
            size += item.tokens.len() - ground.roots[item.root].cut + beyond;
            size <= GRADIENT_TOKENS
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, later) = rest.split_at(count);
        computed += gradient_batch(ground, batch, &mut out, context)?;
        rest = later;
    }
    Ok((out, computed))
}

fn gradient_batch(
    ground: Ground<'_>,
    batch: &[GradientItem],
    out: &mut Vec<TokenGradient>,
    context: &mut Context<'_>,
) -> Result<usize> {
    let d_model = ground.engine.spec().d_model;
    let mut segments: Vec<Segment> = Vec::new();
    let mut from: Vec<usize> = Vec::new();
    let mut reader = Reader::new(ground.objectives);
    let mut entropy_rows: Vec<RowRef> = Vec::new();
    let mut targets: Vec<u32> = Vec::new();
    let mut starts: Vec<usize> = Vec::with_capacity(batch.len());
    let mut slots: Vec<(Option<Slots>, Range<usize>)> = Vec::with_capacity(batch.len());
    let mut total = 0;
    for item in batch {
        let (root, objective) = (ground.roots[item.root], &ground.objectives[item.objective]);
        let mut end = if item.entropy_weight == 0.0 { 0 } else { item.free.end };
        if item.weight != 0.0 {
            end = end.max(objective.extent(&item.tokens, Some(&item.free))?.end);
        }
        let extensions: Vec<&[u32]> = if item.weight == 0.0 { Vec::new() } else { objective.extensions().collect() };
        // The free tokens have rows of their own even if nothing that is read follows them.
        let end = if extensions.is_empty() { end.max(item.free.end) } else { item.tokens.len() };
        let base = segments.len();
        let parent = root.cached.map_or(Parent::Root, |(index, keep)| Parent::Cached { index, keep });
        segments.push(Segment { parent, tokens: item.tokens[root.cut..end].to_vec() });
        from.push(item.free.start - root.cut);
        starts.push(total + item.free.start - root.cut);
        total += end - root.cut;
        let path: Path = vec![(base, root.cut)];
        let mut extended: Vec<Path> = Vec::new();
        for extension in extensions {
            extended.push(vec![(base, root.cut), (segments.len(), end)]);
            segments.push(Segment {
                parent: Parent::Segment { index: base, keep: end - root.cut },
                tokens: extension.to_vec(),
            });
            from.push(0);
            total += extension.len();
        }
        let values = if item.weight == 0.0 {
            None
        } else {
            Some(reader.add(item.objective, &item.tokens, Some(&item.free), &path, &extended)?)
        };
        let first = entropy_rows.len();
        if item.entropy_weight != 0.0 {
            for position in item.free.clone().filter(|&position| position > 0) {
                entropy_rows.push(forest::row(&path, position - 1));
                targets.push(item.tokens[position]);
            }
        }
        slots.push((values, first..entropy_rows.len()));
    }
    let mut reads = reader.reads();
    let entropy_read = reads.len();
    if !entropy_rows.is_empty() {
        let site = Site { layer: ground.engine.spec().n_layers, point: Point::Normalized };
        reads.push(Read::LogProb { rows: entropy_rows.clone(), targets });
        reads.push(Read::Values { site, rows: entropy_rows, columns: Columns::All });
    }
    let request = Request { segments, cache: ground.cache.cloned(), reads, ..Request::default() };
    let mut seed = |outputs: &[Output]| {
        let mut seeds: Vec<Vec<f32>> = outputs.iter().map(|output| vec![0.0; output.data.len()]).collect();
        for (item, (values, entropy)) in batch.iter().zip(&slots) {
            if let Some(values) = values {
                reader.seed(values, outputs, item.weight, &mut seeds);
            }
            for row in entropy.clone() {
                seeds[entropy_read][row] = item.entropy_weight as f32;
            }
        }
        Ok(seeds)
    };
    let (response, gradients) = ground.engine.gradient(&request, &[Site::EMBED], Some(&from), &mut seed, context)?;
    let Some((_, embed)) = gradients.first() else {
        return Err(Error::Internal("a gradient by the embedding was asked for and is not there".to_owned()));
    };
    for ((item, (_, entropy)), start) in batch.iter().zip(&slots).zip(starts) {
        let n = item.free.len();
        let mut normalized = Vec::new();
        if !entropy.is_empty() {
            normalized = vec![0.0; (n - entropy.len()) * d_model];
            for row in entropy.clone() {
                normalized.extend_from_slice(response.outputs[entropy_read + 1].row(row));
            }
        }
        out.push(TokenGradient { embed: embed.data[start * d_model..(start + n) * d_model].to_vec(), normalized });
    }
    Ok(total)
}

/// The objective of each sequence: one of all, or one each. A value is the same, to the bit, whatever else is scored.
///
/// `free`: which tokens are free, one range a sequence, where known ([`super::objective::PositionRule`]).
pub fn score(
    engine: &dyn Engine,
    sequences: &[Vec<u32>],
    free: Option<&[Range<usize>]>,
    objectives: &Objectives,
    context: &mut Context<'_>,
) -> Result<Vec<f32>> {
    objectives.check(sequences.len())?;
    if let Some(free) = free
        && free.len() != sequences.len()
    {
        let expected = format!("one range a sequence ({})", sequences.len());
        return Err(Error::argument("free", expected, free.len()));
    }
    let mut items = Vec::with_capacity(sequences.len());
    for (i, tokens) in sequences.iter().enumerate() {
        let free = free.map(|free| free[i].clone());
        check(engine, objectives.of(i), tokens, free.as_ref(), i)?;
        let objective = objectives.index(i);
        items.push(Item { root: 0, objective, tokens: tokens.clone(), free, value: true, log_probs: Vec::new() });
    }
    let ground = Ground { engine, cache: None, roots: &[Root::EMPTY], objectives: objectives.distinct() };
    let (answers, _) = evaluate(ground, &items, context)?;
    let lost = || Error::Internal("a sequence was not scored".to_owned());
    answers.into_iter().map(|answer| answer.value.ok_or_else(lost)).collect()
}

/// A sequence's ids, length and free range.
fn check(
    engine: &dyn Engine,
    objective: &Objective,
    tokens: &[u32],
    free: Option<&Range<usize>>,
    sequence: usize,
) -> Result<()> {
    let spec = engine.spec();
    if tokens.is_empty() {
        return Err(Error::Tokens(format!("expected at least one token in sequence {sequence}, found none")));
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= spec.d_vocab) {
        let vocabulary = spec.d_vocab;
        return Err(Error::Tokens(format!(
            "id {id} in sequence {sequence} is outside the vocabulary of {vocabulary} ids"
        )));
    }
    let found = tokens.len() + objective.extensions().map(<[u32]>::len).max().unwrap_or(0);
    if found > spec.n_ctx {
        return Err(Error::ContextLength { found, limit: spec.n_ctx });
    }
    if let Some(free) = free.filter(|free| free.start > free.end || free.end > tokens.len()) {
        let expected = format!("a range within the sequence of {} tokens", tokens.len());
        return Err(Error::argument("free", expected, format!("{}..{}", free.start, free.end)));
    }
    Ok(())
}

/// An objective's value, and its derivative by each site asked for: one row a given token.
pub fn gradient(
    engine: &dyn Engine,
    tokens: &[u32],
    free: Option<&Range<usize>>,
    objective: &Objective,
    wrt: &[Site],
    context: &mut Context<'_>,
) -> Result<(f32, Gradients)> {
    check(engine, objective, tokens, free, 0)?;
    let sequences: Vec<Vec<u32>> = std::iter::once(tokens.to_vec())
        .chain(objective.extensions().map(|extension| [tokens, extension].concat()))
        .collect();
    let views: Vec<Sequence<'_>> = sequences.iter().map(|tokens| Sequence { root: 0, tokens }).collect();
    // The given tokens sort before what continues them, so they are the first segment, whole.
    let Forest { segments, paths } = forest::build(&[Root::EMPTY], &views);
    let mut reader = Reader::new(std::slice::from_ref(objective));
    let slots = reader.add(0, tokens, free, &paths[0], &paths[1..])?;
    let request = Request { segments, reads: reader.reads(), ..Request::default() };
    let mut value = f32::NAN;
    let mut seed = |outputs: &[Output]| {
        value = reader.value(&slots, outputs);
        let mut seeds: Vec<Vec<f32>> = outputs.iter().map(|output| vec![0.0; output.data.len()]).collect();
        reader.seed(&slots, outputs, 1.0, &mut seeds);
        Ok(seeds)
    };
    let (_, mut gradients) = engine.gradient(&request, wrt, None, &mut seed, context)?;
    for (_, output) in &mut gradients {
        output.n_rows = tokens.len();
        output.data.truncate(tokens.len() * output.n_cols);
    }
    Ok((value, gradients))
}
