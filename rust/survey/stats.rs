//! Statistics of every feature of a site: a commutative monoid, to the bit.

use std::sync::{Mutex, PoisonError};

use super::document::DocumentHash;
use super::fixed::{Fixed, mean_and_variance};
use super::histogram::{Histogram, Scratch};
use super::moments::{self, Columns, Moments, STRIP, Sums};
use super::topk::{End, Extremes, Occurrence};
use crate::cpu::Level;
use crate::error::{Error, Result};
use crate::threads;

/// Pieces of work a thread.
const TASKS: usize = 3;

/// Tokens and units of a site, counted ones and those counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tokens that the statistics hold.
    pub n_tokens: u64,
    /// Units with at least one such token.
    pub n_units: u64,
    /// Attention sinks, counted apart.
    pub n_sink: u64,
    /// BOS tokens of the tokenizer's, counted apart.
    pub n_bos: u64,
    /// Tokens of the given prefix, counted apart.
    pub n_prefix: u64,
    /// Counted tokens that the histograms hold.
    pub n_histogram: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.n_tokens += other.n_tokens;
        self.n_units += other.n_units;
        self.n_sink += other.n_sink;
        self.n_bos += other.n_bos;
        self.n_prefix = self.n_prefix.saturating_add(other.n_prefix);
        self.n_histogram += other.n_histogram;
    }
}

/// A context of one batch, as one site sees it.
#[derive(Clone, Debug, Default)]
pub struct UnitRows {
    /// The document it is a piece of.
    pub document: DocumentHash,
    /// The batch's rows that count, in position order.
    pub rows: Vec<u32>,
    /// The tokens' indices in the document, one a row.
    pub positions: Vec<u32>,
    /// Whether the document ends here.
    pub last: bool,
    /// Whether histograms count it.
    pub sampled: bool,
    /// Tokens counted apart.
    pub n_sink: u32,
    /// Tokens counted apart.
    pub n_bos: u32,
    /// Tokens counted apart.
    pub n_prefix: u32,
}

/// A column's statistics that are kept as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feature {
    /// Smallest value (infinity if nothing was counted).
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Sum of the values.
    pub sum: Fixed,
    /// Sum of their squares.
    pub squares: Fixed,
    /// Values above zero.
    pub positive: u64,
    /// Values below zero.
    pub negative: u64,
    /// Units that hold a value above zero.
    pub units_positive: u64,
    /// Units that hold a value below zero.
    pub units_negative: u64,
    /// Smallest value where the gate beside it is open (infinity if nowhere, or where there is no gate).
    pub acting_min: f32,
    /// Largest value where the gate beside it is open.
    pub acting_max: f32,
}

impl Feature {
    /// Of nothing.
    pub const EMPTY: Self = Self {
        min: f32::INFINITY,
        max: f32::NEG_INFINITY,
        sum: Fixed([0; 3]),
        squares: Fixed([0; 3]),
        positive: 0,
        negative: 0,
        units_positive: 0,
        units_negative: 0,
        acting_min: f32::INFINITY,
        acting_max: f32::NEG_INFINITY,
    };

    fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum.add(other.sum);
        self.squares.add(other.squares);
        self.positive += other.positive;
        self.negative += other.negative;
        self.units_positive += other.units_positive;
        self.units_negative += other.units_negative;
        self.acting_min = self.acting_min.min(other.acting_min);
        self.acting_max = self.acting_max.max(other.acting_max);
    }
}

/// Neighbouring columns of a site.
#[derive(Clone, Debug)]
struct Strip {
    features: Vec<Feature>,
    histograms: Vec<Histogram>,
    top: Extremes,
    bottom: Extremes,
    /// Sums of the document in progress.
    open: Sums,
}

/// Why a value could not be counted: the column, and whether it was not finite (else too large).
type Refused = (usize, bool);

impl Strip {
    fn new(len: usize, capacity: usize) -> Self {
        Self {
            features: vec![Feature::EMPTY; len],
            histograms: vec![Histogram::default(); len],
            top: Extremes::new(End::Top, len, capacity),
            bottom: Extremes::new(End::Bottom, len, capacity),
            open: Sums::ZERO,
        }
    }

    /// Counts a unit; its histograms are another matter.
    fn observe(
        &mut self,
        columns: Columns<'_>,
        gate: Option<Columns<'_, bool>>,
        unit: &UnitRows,
        level: Level,
    ) -> Result<(), Refused> {
        if !unit.rows.is_empty() {
            let mut seen = Moments::EMPTY;
            moments::accumulate(columns, &unit.rows, &mut seen, &mut self.open);
            if let Some(bad) = self.open.squares[..columns.len].iter().position(|x| !x.is_finite()) {
                return Err((columns.start + bad, true));
            }
            self.fold(&seen);
            self.extremes(columns, unit, &seen);
            if let Some(gate) = gate {
                self.acting(columns, gate, unit, &seen, level);
            }
        }
        if unit.last { self.close(columns.start) } else { Ok(()) }
    }

    fn count(&mut self, columns: Columns<'_>, rows: &[u32], tools: &mut Tools) {
        if rows.is_empty() {
            return;
        }
        moments::buckets(columns, rows, &mut tools.keys);
        for (histogram, keys) in self.histograms.iter_mut().zip(tools.keys.chunks_exact(rows.len())) {
            tools.scratch.count(histogram, keys);
        }
    }

    fn fold(&mut self, seen: &Moments) {
        for (j, feature) in self.features.iter_mut().enumerate() {
            feature.min = feature.min.min(seen.min[j]);
            feature.max = feature.max.max(seen.max[j]);
            feature.positive += u64::from(seen.positive[j]);
            feature.negative += u64::from(seen.negative[j]);
            feature.units_positive += u64::from(seen.positive[j] > 0);
            feature.units_negative += u64::from(seen.negative[j] > 0);
        }
    }

    /// Looks at single values only where an extreme of the unit could be kept.
    fn extremes(&mut self, columns: Columns<'_>, unit: &UnitRows, seen: &Moments) {
        for (kept, best) in [(&mut self.top, &seen.max), (&mut self.bottom, &seen.min)] {
            if !(0..columns.len).any(|j| kept.admits(j, best[j], &unit.document)) {
                continue;
            }
            for (&row, &position) in unit.rows.iter().zip(&unit.positions) {
                let row = columns.row(row);
                let mut reaching = kept.reaching(row);
                while reaching > 0 {
                    let j = reaching.trailing_zeros() as usize;
                    reaching &= reaching - 1;
                    let value = row[j] + 0.0;
                    if kept.admits(j, value, &unit.document) {
                        kept.insert(j, Occurrence { value, position, document: unit.document });
                    }
                }
            }
        }
    }

    /// Extremes where the gate is open, looked for only where an extreme of the unit goes beyond them.
    fn acting(&mut self, columns: Columns<'_>, gate: Columns<'_, bool>, unit: &UnitRows, seen: &Moments, level: Level) {
        let beyond = |(j, f): (usize, &Feature)| seen.min[j] < f.acting_min || seen.max[j] > f.acting_max;
        if !self.features.iter().enumerate().any(beyond) {
            return;
        }
        let (mut min, mut max) = ([f32::INFINITY; STRIP], [f32::NEG_INFINITY; STRIP]);
        moments::open_extremes(level, columns, gate, &unit.rows, &mut min, &mut max);
        for (j, feature) in self.features.iter_mut().enumerate() {
            feature.acting_min = feature.acting_min.min(min[j]);
            feature.acting_max = feature.acting_max.max(max[j]);
        }
    }

    /// Rounds the sums of the document in progress to fixed point and starts the next.
    fn close(&mut self, start: usize) -> Result<(), Refused> {
        for (j, feature) in self.features.iter_mut().enumerate() {
            let sum = Fixed::from_f64(self.open.sum[j]).ok_or((start + j, false))?;
            feature.sum.add(sum);
            feature.squares.add(Fixed::from_f64(self.open.squares[j]).ok_or((start + j, false))?);
        }
        self.open = Sums::ZERO;
        Ok(())
    }

    fn merge(&mut self, other: &Self) {
        for (mine, others) in self.features.iter_mut().zip(&other.features) {
            mine.merge(others);
        }
        for (mine, others) in self.histograms.iter_mut().zip(&other.histograms) {
            mine.merge(others);
        }
        self.top.merge(&other.top);
        self.bottom.merge(&other.bottom);
    }
}

/// Buffers of one thread.
#[derive(Default)]
struct Tools {
    scratch: Scratch,
    keys: Vec<u16>,
}

/// Statistics of all features of one site.
#[derive(Clone, Debug)]
pub struct SiteStats {
    /// The site's name.
    pub name: String,
    /// Number of features.
    pub width: usize,
    /// Tokens and units.
    pub tally: Tally,
    /// What the norm in front of the site permits at all, `(lowest, highest)` a feature, where it is known.
    pub reach: Option<Vec<(f64, f64)>>,
    /// Whether a gate multiplies it: then its extremes where the gate is open are kept too.
    pub gated: bool,
    strips: Vec<Strip>,
}

impl SiteStats {
    /// Of nothing; `capacity` occurrences are kept at either end.
    pub fn new(name: String, width: usize, capacity: usize, gated: bool) -> Self {
        let strips = (0..width).step_by(STRIP).map(|start| Strip::new(STRIP.min(width - start), capacity)).collect();
        Self { name, width, tally: Tally::default(), reach: None, gated, strips }
    }

    /// Counts a batch, `data` being `[rows, width]`, and `gate` of the same shape where the gate is open, if the site is
    /// gated. Units are in corpus order; a document's pieces are consecutive, in this batch or over several.
    pub fn observe(
        &mut self,
        units: &[UnitRows],
        data: &[f32],
        gate: Option<&[bool]>,
        pool: &rayon::ThreadPool,
    ) -> Result<()> {
        let (width, level) = (self.width, Level::detect());
        let sampled: Vec<u32> =
            units.iter().filter(|unit| unit.sampled).flat_map(|unit| unit.rows.iter().copied()).collect();
        // A thread's strips take a unit in turn, so that its rows are read through once while they are near.
        let together = self.strips.len().div_ceil(TASKS * pool.current_num_threads()).max(1);
        let parts: Vec<Mutex<&mut [Strip]>> = self.strips.chunks_mut(together).map(Mutex::new).collect();
        let refused = threads::map(pool, parts.len(), |part| {
            let mut strips = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
            let first = part * together * STRIP;
            let of = |i: usize, len| (first + i * STRIP, len);
            // The lowest, not the first met: that would depend on how the work was cut.
            let mut lowest: Option<Refused> = None;
            for unit in units {
                for (i, strip) in strips.iter_mut().enumerate() {
                    let (start, len) = of(i, strip.features.len());
                    let gate = gate.map(|data| Columns { data, width, start, len });
                    if let Err(refused) = strip.observe(Columns { data, width, start, len }, gate, unit, level) {
                        lowest = Some(lowest.map_or(refused, |other| other.min(refused)));
                    }
                }
            }
            let mut tools = Tools::default();
            for (i, strip) in strips.iter_mut().enumerate() {
                let (start, len) = of(i, strip.features.len());
                strip.count(Columns { data, width, start, len }, &sampled, &mut tools);
            }
            lowest
        });
        let refused = refused.into_iter().flatten().min();
        if let Some((feature, not_finite)) = refused {
            let what = if not_finite {
                "expected finite values, found NaN or infinity".to_owned()
            } else {
                format!(
                    "expected the squares of a document's values to sum to less than {:e}, found more",
                    Fixed::LIMIT
                )
            };
            return Err(Error::Survey(format!("site {} feature {feature}: {what}", self.name)));
        }
        for unit in units {
            let n_tokens = unit.rows.len() as u64;
            self.tally.add(&Tally {
                n_tokens,
                n_units: u64::from(n_tokens > 0),
                n_sink: u64::from(unit.n_sink),
                n_bos: u64::from(unit.n_bos),
                n_prefix: u64::from(unit.n_prefix),
                n_histogram: if unit.sampled { n_tokens } else { 0 },
            });
        }
        Ok(())
    }

    /// Takes in what another survey of the same site counted. Neither may have a document in progress.
    pub fn merge(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.reach = match (self.reach.take(), &other.reach) {
            // Each bound holds; where the last bits differ (another machine's arithmetic), so does the tighter one.
            (Some(mine), Some(others)) => {
                Some(mine.iter().zip(others).map(|(a, b)| (a.0.max(b.0), a.1.min(b.1))).collect())
            }
            (mine, others) => mine.or_else(|| others.clone()),
        };
        for (mine, others) in self.strips.iter_mut().zip(&other.strips) {
            mine.merge(others);
        }
    }

    /// The features in order.
    pub fn features(&self) -> impl Iterator<Item = &Feature> {
        self.strips.iter().flat_map(|strip| &strip.features)
    }

    /// Mean and population variance of every feature (NaN if nothing was counted).
    pub fn moments(&self) -> impl Iterator<Item = (f64, f64)> {
        self.features().map(|feature| mean_and_variance(self.tally.n_tokens, feature.sum, feature.squares))
    }

    /// The histograms in order.
    pub fn histograms(&self) -> impl Iterator<Item = &Histogram> {
        self.strips.iter().flat_map(|strip| &strip.histograms)
    }

    /// A feature's most extreme occurrences, most extreme first.
    pub fn extremes(&self, end: End, feature: usize) -> &[Occurrence] {
        let strip = &self.strips[feature / STRIP];
        match end {
            End::Top => strip.top.column(feature % STRIP),
            End::Bottom => strip.bottom.column(feature % STRIP),
        }
    }

    /// Sums of the document in progress, `(values, squares)` a feature.
    pub(super) fn open_sums(&self) -> impl Iterator<Item = (f64, f64)> {
        self.strips.iter().flat_map(|strip| {
            strip.open.sum.iter().zip(&strip.open.squares).take(strip.features.len()).map(|(&a, &b)| (a, b))
        })
    }

    /// Restores one feature from a file.
    pub(super) fn restore(
        &mut self,
        index: usize,
        feature: Feature,
        histogram: Histogram,
        occurrences: impl Iterator<Item = (End, Occurrence)>,
        open: (f64, f64),
    ) {
        let (strip, j) = (&mut self.strips[index / STRIP], index % STRIP);
        strip.features[j] = feature;
        strip.histograms[j] = histogram;
        for (end, occurrence) in occurrences {
            match end {
                End::Top => strip.top.insert(j, occurrence),
                End::Bottom => strip.bottom.insert(j, occurrence),
            }
        }
        (strip.open.sum[j], strip.open.squares[j]) = open;
    }
}
