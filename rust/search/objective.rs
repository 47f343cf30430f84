//! Objectives: one differentiable scalar of a sequence, a weighted sum of terms.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::forest::{self, Path};
use crate::engine::request::{Columns, Output, Read, RowRef};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};
use crate::model::spec::{Head, ModelSpec};

/// Where in the sequence a term is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Position {
    /// A token, from the front, or, negative, from the end of the whole sequence.
    At(i64),
    /// A rule that depends on the sequence.
    Rule(PositionRule),
}

/// Positions that depend on the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionRule {
    /// The highest value over the free tokens and all that follows them; over every token where no tokens are known to
    /// be free.
    Best,
    /// The mean over the tokens that follow the free ones.
    After,
}

/// What a term reads, as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TermSpec {
    /// One column of a site.
    Neuron {
        /// The site's name.
        site: String,
        /// The column.
        index: usize,
        /// Where.
        position: Position,
    },
    /// The inner product of a site's values with a vector.
    Direction {
        /// The site's name.
        site: String,
        /// As wide as the site.
        vector: Vec<f32>,
        /// Where.
        position: Position,
    },
    /// `logit[a] - logit[b]`.
    LogitDiff {
        /// The token to prefer.
        a: u32,
        /// The token to avoid.
        b: u32,
        /// Where.
        position: Position,
    },
    /// Log-probability of a continuation after the last token, summed over its tokens.
    LogProb {
        /// The continuation.
        target: Vec<u32>,
    },
    /// An output of a reward head, read at the last token that is not padding.
    Reward {
        /// The output.
        label: usize,
    },
}

/// A weighted sum of terms, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSpec {
    /// Weight and term.
    pub terms: Vec<(f64, TermSpec)>,
    /// Added to the sum.
    #[serde(default)]
    pub offset: f64,
}

#[derive(Clone, Debug)]
enum Kind {
    Neuron { site: Site, index: u32 },
    Direction { site: Site, vector: Arc<[f32]> },
    LogitDiff { columns: [u32; 2] },
    LogProb { target: Arc<[u32]> },
    Reward { label: u32, pad: Option<u32> },
}

#[derive(Clone, Debug)]
struct Term {
    weight: f64,
    kind: Kind,
    position: Position,
}

/// An objective checked against a model.
#[derive(Clone, Debug)]
pub struct Objective {
    terms: Vec<Term>,
    offset: f64,
    depth: f64,
}

fn site(name: &str, spec: &ModelSpec) -> Result<Site> {
    let site = Site::parse(name, spec)?;
    if site.point == Point::Pattern {
        let what = "its width depends on the prompt, so a column of it names no feature; read a head's output, hook_z";
        return Err(Error::Site { name: name.to_owned(), what: what.to_owned() });
    }
    Ok(site)
}

fn token(id: u32, spec: &ModelSpec) -> Result<u32> {
    if (id as usize) < spec.d_vocab {
        return Ok(id);
    }
    Err(Error::Tokens(format!("id {id} in the objective is outside the vocabulary of {} ids", spec.d_vocab)))
}

impl Objective {
    /// Checks an objective's sites, columns, widths and ids.
    pub fn new(objective: &ObjectiveSpec, spec: &ModelSpec) -> Result<Self> {
        if objective.terms.is_empty() {
            return Err(Error::argument("objective", "at least one term", "none"));
        }
        let language = || match spec.head {
            Head::Unembed => Ok(()),
            Head::Reward { .. } => Err(Error::argument(
                "objective",
                "a term that a reward model has (neuron, direction, reward)",
                "logits",
            )),
        };
        let mut terms = Vec::with_capacity(objective.terms.len());
        for (weight, term) in &objective.terms {
            if !weight.is_finite() {
                return Err(Error::argument("objective", "finite weights", weight));
            }
            let last = Position::At(-1);
            let (kind, position) = match term {
                TermSpec::Neuron { site: name, index, position } => {
                    let site = site(name, spec)?;
                    let width = site.width(spec, 0);
                    if *index >= width {
                        let what = format!("expected an index below its width of {width}, found {index}");
                        return Err(Error::Site { name: name.clone(), what });
                    }
                    (Kind::Neuron { site, index: *index as u32 }, *position)
                }
                TermSpec::Direction { site: name, vector, position } => {
                    let site = site(name, spec)?;
                    let width = site.width(spec, 0);
                    if vector.len() != width {
                        let what = format!("expected a vector of its width of {width}, found {} values", vector.len());
                        return Err(Error::Site { name: name.clone(), what });
                    }
                    if !vector.iter().all(|value| value.is_finite()) {
                        return Err(Error::argument("vector", "finite values", "NaN or infinity"));
                    }
                    (Kind::Direction { site, vector: vector.as_slice().into() }, *position)
                }
                TermSpec::LogitDiff { a, b, position } => {
                    language()?;
                    (Kind::LogitDiff { columns: [token(*a, spec)?, token(*b, spec)?] }, *position)
                }
                TermSpec::LogProb { target } => {
                    language()?;
                    if target.is_empty() {
                        return Err(Error::Tokens(
                            "expected at least one token to continue with, found none".to_owned(),
                        ));
                    }
                    for &id in target {
                        token(id, spec)?;
                    }
                    (Kind::LogProb { target: target.as_slice().into() }, last)
                }
                TermSpec::Reward { label } => match spec.head {
                    Head::Reward { labels, pad } if *label < labels => {
                        (Kind::Reward { label: *label as u32, pad }, last)
                    }
                    Head::Reward { labels, .. } => {
                        return Err(Error::argument("label", format!("an output below {labels}"), label));
                    }
                    Head::Unembed => {
                        let found = "a language model, which has none";
                        return Err(Error::argument("objective", "a reward model's head for a reward", found));
                    }
                },
            };
            terms.push(Term { weight: *weight, kind, position });
        }
        let layers = spec.n_layers.max(1) as f64;
        let depth = terms.iter().map(|term| match term.kind {
            Kind::Neuron { site, .. } | Kind::Direction { site, .. } => {
                let within = match site.point {
                    Point::Embed | Point::PosEmbed | Point::ResidPre => 0.0,
                    Point::Q | Point::K | Point::V | Point::RotQ | Point::RotK => 0.2,
                    Point::Z | Point::Pattern | Point::AttnOut | Point::ResidMid => 0.4,
                    Point::Pre | Point::PreLinear => 0.5,
                    _ => 1.0,
                };
                ((site.layer as f64 + within) / layers).min(1.0)
            }
            _ => 1.0,
        });
        let depth = depth.fold(0.0, f64::max);
        Ok(Self { terms, offset: objective.offset, depth })
    }

    /// Share of a full forward that must run before the objective is known; an estimate, for choices of speed alone.
    pub fn depth(&self) -> f64 {
        self.depth
    }

    /// What must follow a sequence for each term to be read: the continuation without its last token.
    pub fn extensions(&self) -> impl Iterator<Item = &[u32]> {
        self.terms.iter().filter_map(|term| match &term.kind {
            Kind::LogProb { target } if target.len() > 1 => Some(&target[..target.len() - 1]),
            _ => None,
        })
    }

    /// Tokens of all extensions.
    pub fn beyond(&self) -> usize {
        self.extensions().map(<[u32]>::len).sum()
    }

    /// The positions of a sequence that a term reads. `free` are the free tokens, where known.
    fn rows(term: &Term, tokens: &[u32], free: Option<&Range<usize>>) -> Result<Range<usize>> {
        let len = tokens.len();
        if let Kind::Reward { pad, .. } = term.kind {
            let last = match pad {
                Some(pad) => tokens.iter().rposition(|&id| id != pad).unwrap_or(0),
                None => len - 1,
            };
            return Ok(last..last + 1);
        }
        match term.position {
            Position::At(at) => {
                let index = if at < 0 { at + len as i64 } else { at };
                if index < 0 || index >= len as i64 {
                    let expected = format!("an index into the sequence of {len} tokens");
                    return Err(Error::argument("position", expected, at));
                }
                Ok(index as usize..index as usize + 1)
            }
            Position::Rule(PositionRule::Best) => Ok(free.map_or(0, |free| free.start)..len),
            Position::Rule(PositionRule::After) => match free {
                Some(free) if free.end < len => Ok(free.end..len),
                Some(_) => {
                    Err(Error::argument("position", "a context with text after the free tokens for \"after\"", "none"))
                }
                None => Err(Error::argument(
                    "position",
                    "an index or \"best\" (\"after\" needs contexts, or the sequences of a search's result)",
                    "\"after\"",
                )),
            },
        }
    }

    /// The positions that terms read in a sequence: from the first to behind the last, whatever the free tokens are.
    pub fn extent(&self, tokens: &[u32], free: Option<&Range<usize>>) -> Result<Range<usize>> {
        let mut extent = tokens.len()..0;
        for term in &self.terms {
            let mut rows = Self::rows(term, tokens, free)?;
            if let (Kind::Reward { pad: Some(pad), .. }, Some(free)) = (&term.kind, free) {
                // Free tokens may be padding themselves; then the row lies in front of them.
                rows.start = tokens[..free.start].iter().rposition(|id| id != pad).unwrap_or(0);
                rows.end = tokens.len();
            }
            extent = extent.start.min(rows.start)..extent.end.max(rows.end);
        }
        Ok(extent)
    }
}

/// Objectives, and by which of them each of several contexts (or sequences) is read.
#[derive(Clone, Debug)]
pub struct Objectives {
    distinct: Vec<Objective>,
    of: Option<Vec<usize>>,
}

impl Objectives {
    /// One of all.
    pub fn one(objective: Objective) -> Self {
        Self { distinct: vec![objective], of: None }
    }

    /// `of`: an index into `distinct` a context.
    pub fn each(distinct: Vec<Objective>, of: Vec<usize>) -> Result<Self> {
        if let Some(index) = of.iter().find(|&&index| index >= distinct.len()) {
            let expected = format!("indices below the number of objectives ({})", distinct.len());
            return Err(Error::argument("objective", expected, index));
        }
        Ok(Self { distinct, of: Some(of) })
    }

    /// The objectives.
    pub fn distinct(&self) -> &[Objective] {
        &self.distinct
    }

    /// Which of them is a context's.
    pub fn index(&self, context: usize) -> usize {
        self.of.as_ref().map_or(0, |of| of[context])
    }

    /// A context's.
    pub fn of(&self, context: usize) -> &Objective {
        &self.distinct[self.index(context)]
    }

    /// Whether there is one a context.
    pub(super) fn check(&self, contexts: usize) -> Result<()> {
        match &self.of {
            Some(of) if of.len() != contexts => {
                Err(Error::argument("objective", format!("one, or one each ({contexts})"), of.len()))
            }
            _ => Ok(()),
        }
    }

    /// The largest [`Objective::depth`].
    pub fn depth(&self) -> f64 {
        self.distinct.iter().map(Objective::depth).fold(0.0, f64::max)
    }
}

/// The reads of objectives over many sequences; a row that several sequences of one objective share is read once.
pub struct Reader<'a> {
    objectives: &'a [Objective],
    /// Where the reads of each objective begin, once a sequence has it.
    starts: Vec<Option<usize>>,
    /// One read a term of these.
    reads: Vec<TermRows<'a>>,
}

struct TermRows<'a> {
    term: &'a Term,
    rows: Vec<RowRef>,
    targets: Vec<u32>,
    index: HashMap<(RowRef, u32), usize>,
}

impl TermRows<'_> {
    fn place(&mut self, row: RowRef, target: u32) -> usize {
        *self.index.entry((row, target)).or_insert_with(|| {
            self.rows.push(row);
            self.targets.push(target);
            self.rows.len() - 1
        })
    }
}

/// What one sequence reads.
pub struct Slots {
    objective: usize,
    /// The objective's first read.
    start: usize,
    /// Output rows: one list a term.
    rows: Vec<Vec<usize>>,
}

impl<'a> Reader<'a> {
    /// No sequences yet.
    pub fn new(objectives: &'a [Objective]) -> Self {
        Self { objectives, starts: vec![None; objectives.len()], reads: Vec::new() }
    }

    /// Adds a sequence: `path` holds its own tokens, `extended` those of each of [`Objective::extensions`].
    pub fn add(
        &mut self,
        objective: usize,
        tokens: &[u32],
        free: Option<&Range<usize>>,
        path: &Path,
        extended: &[Path],
    ) -> Result<Slots> {
        let terms = &self.objectives[objective].terms;
        let reads = &mut self.reads;
        let start = *self.starts[objective].get_or_insert_with(|| {
            let unread = |term| TermRows { term, rows: Vec::new(), targets: Vec::new(), index: HashMap::new() };
            reads.extend(terms.iter().map(unread));
            reads.len() - terms.len()
        });
        let mut extended = extended.iter();
        let rows = reads[start..start + terms.len()]
            .iter_mut()
            .map(|read| {
                let term = read.term;
                if let Kind::LogProb { target } = &term.kind {
                    let path = if target.len() > 1 { extended.next().unwrap_or(path) } else { path };
                    let last = tokens.len() - 1;
                    let place = |(i, &id): (usize, &u32)| read.place(forest::row(path, last + i), id);
                    return Ok(target.iter().enumerate().map(place).collect());
                }
                let rows = Objective::rows(term, tokens, free)?;
                Ok(rows.map(|position| read.place(forest::row(path, position), 0)).collect())
            })
            .collect::<Result<_>>()?;
        Ok(Slots { objective, start, rows })
    }

    /// The reads, one a term of each objective that a sequence has.
    pub fn reads(&self) -> Vec<Read> {
        self.reads
            .iter()
            .map(|read| {
                let rows = read.rows.clone();
                match &read.term.kind {
                    Kind::Neuron { site, index } => {
                        Read::Values { site: *site, rows, columns: Columns::Some(vec![*index]) }
                    }
                    Kind::Direction { site, vector } => Read::Project { site: *site, rows, vector: Arc::clone(vector) },
                    Kind::LogitDiff { columns } => Read::Logits { rows, columns: Columns::Some(columns.to_vec()) },
                    Kind::LogProb { .. } => Read::LogProb { rows, targets: read.targets.clone() },
                    Kind::Reward { label, .. } => Read::Logits { rows, columns: Columns::Some(vec![*label]) },
                }
            })
            .collect()
    }

    /// The value of a sequence, from the outputs of [`Reader::reads`]: summed in float64, rounded once.
    pub fn value(&self, slots: &Slots, outputs: &[Output]) -> f32 {
        let objective = &self.objectives[slots.objective];
        let mut sum = 0.0_f64;
        for ((term, rows), output) in objective.terms.iter().zip(&slots.rows).zip(&outputs[slots.start..]) {
            sum += term.weight * term_value(term, rows, output);
        }
        (sum + objective.offset) as f32
    }

    /// Adds `scale` times the derivative of a sequence's value by each output to `seeds` (shaped like the outputs).
    pub fn seed(&self, slots: &Slots, outputs: &[Output], scale: f64, seeds: &mut [Vec<f32>]) {
        let terms = self.objectives[slots.objective].terms.iter();
        let places = outputs[slots.start..].iter().zip(&mut seeds[slots.start..]);
        for ((term, slots), (output, seeds)) in terms.zip(&slots.rows).zip(places) {
            let factor = scale * term.weight;
            match (&term.kind, term.position) {
                (Kind::LogProb { .. }, _) => slots.iter().for_each(|&row| seeds[row] += factor as f32),
                (_, Position::Rule(PositionRule::Best)) => {
                    if let Some((row, _)) = best(term, slots, output) {
                        add(term, row, factor, output, seeds);
                    }
                }
                _ => {
                    let share = factor / slots.len() as f64;
                    for &row in slots {
                        add(term, row, share, output, seeds);
                    }
                }
            }
        }
    }
}

/// The scalar at one row.
fn at(term: &Term, row: usize, output: &Output) -> f64 {
    let row = output.row(row);
    match term.kind {
        Kind::LogitDiff { .. } => f64::from(row[0]) - f64::from(row[1]),
        _ => f64::from(row[0]),
    }
}

fn add(term: &Term, row: usize, factor: f64, output: &Output, seeds: &mut [f32]) {
    let start = row * output.n_cols;
    seeds[start] += factor as f32;
    if matches!(term.kind, Kind::LogitDiff { .. }) {
        seeds[start + 1] -= factor as f32;
    }
}

/// The first of the highest rows; none if all are NaN.
fn best(term: &Term, slots: &[usize], output: &Output) -> Option<(usize, f64)> {
    let values = slots.iter().map(|&row| (row, at(term, row, output))).filter(|(_, value)| !value.is_nan());
    values.reduce(|best, next| if next.1 > best.1 { next } else { best })
}

fn term_value(term: &Term, slots: &[usize], output: &Output) -> f64 {
    let values = slots.iter().map(|&row| at(term, row, output));
    match (&term.kind, term.position) {
        (Kind::LogProb { .. }, _) => values.sum(),
        (_, Position::Rule(PositionRule::Best)) => best(term, slots, output).map_or(f64::NAN, |(_, value)| value),
        _ => values.sum::<f64>() / slots.len() as f64,
    }
}
