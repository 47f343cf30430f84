//! The host step of a survey: sorts a batch's rows into counted ones and those counted apart, and counts them.

use std::sync::{Mutex, PoisonError};

use super::document::DocumentHash;
use super::settings::Settings;
use super::stats::{SiteStats, UnitRows};
use crate::engine::request::{Engine, Host, HostRows};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};
use crate::threads;

/// How many times the median norm of its context a residual's norm must exceed for its token to be a sink.
pub const SINK_RATIO: f64 = 10.0;

/// Values that a thread looks at at a time.
const CHUNK: usize = 1 << 16;

/// A context of a document, as it goes through the engine (behind the prefix).
#[derive(Clone, Debug)]
pub struct Unit {
    /// The document.
    pub document: DocumentHash,
    /// Which of its units.
    pub index: u32,
    /// Index of the first token in the document.
    pub start: u32,
    /// Leading tokens that the tokenizer put there itself.
    pub n_bos: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether the document ends here.
    pub last: bool,
}

/// Counts one batch.
pub struct Observer<'a> {
    sites: &'a [Site],
    stats: &'a mut [SiteStats],
    units: &'a [Unit],
    settings: &'a Settings,
    engine: &'a dyn Engine,
    /// First row of each unit.
    first_row: Vec<usize>,
    n_rows: usize,
    /// Rows as the sites of a layer see them: that layer, and the units.
    layer: Option<(usize, Vec<UnitRows>)>,
    /// A layer, and where its gates are open.
    gate: Option<(usize, Vec<bool>)>,
    /// Statistics that have been fed.
    fed: usize,
}

impl<'a> Observer<'a> {
    /// For a request of the prefix's segment, if there is a prefix, and one segment a unit; `stats[i]` are those of
    /// `sites[i]`.
    pub fn new(
        sites: &'a [Site],
        stats: &'a mut [SiteStats],
        units: &'a [Unit],
        settings: &'a Settings,
        engine: &'a dyn Engine,
    ) -> Self {
        let mut n_rows = settings.prefix.len();
        let mut first_row = Vec::with_capacity(units.len());
        for unit in units {
            first_row.push(n_rows);
            n_rows += unit.tokens.len();
        }
        Self { sites, stats, units, settings, engine, first_row, n_rows, layer: None, gate: None, fed: 0 }
    }

    /// Checks that the engine came past every site.
    pub fn finish(self) -> Result<()> {
        if self.fed == self.stats.len() {
            Ok(())
        } else {
            Err(Error::Internal(format!("the engine passed {} of {} surveyed sites", self.fed, self.stats.len())))
        }
    }

    /// A unit with every row but BOS and sinks; `norms` are the residual norms of its rows.
    fn unit_rows(&self, index: usize, norms: Option<&[f64]>) -> UnitRows {
        let (unit, first) = (&self.units[index], self.first_row[index]);
        let candidates = unit.n_bos as usize..unit.tokens.len();
        let limit = norms.map_or(f64::INFINITY, |norms| SINK_RATIO * median(&norms[candidates.clone()]));
        let counted = |offset: &usize| norms.is_none_or(|norms| norms[*offset] <= limit);
        let offsets: Vec<usize> = candidates.clone().filter(counted).collect();
        UnitRows {
            document: unit.document,
            rows: offsets.iter().map(|offset| (first + offset) as u32).collect(),
            positions: offsets.iter().map(|&offset| unit.start + offset as u32).collect(),
            last: unit.last,
            sampled: unit.document.sampled(unit.index, self.settings.histogram_every),
            n_sink: (candidates.len() - offsets.len()) as u32,
            n_bos: unit.n_bos,
            n_prefix: self.settings.prefix.len() as u32,
        }
    }

    /// Learns from the residual that enters a layer which tokens are sinks there.
    fn find_sinks(&mut self, site: Site, layer: usize, width: usize, data: &[f32]) -> Result<()> {
        let finite = |norms: &[f64]| norms.iter().all(|norm| norm.is_finite());
        let norms_of = |first: usize, n: usize| -> Vec<f64> {
            data[first * width..(first + n) * width].chunks_exact(width).map(norm).collect()
        };
        let units = threads::map(self.engine.pool(), self.units.len(), |i| {
            let norms = norms_of(self.first_row[i], self.units[i].tokens.len());
            finite(&norms).then(|| self.unit_rows(i, Some(&norms)))
        });
        match units.into_iter().collect::<Option<Vec<_>>>() {
            Some(units) if finite(&norms_of(0, self.settings.prefix.len())) => {
                self.layer = Some((layer, units));
                Ok(())
            }
            _ => Err(Error::Survey(format!("site {}: expected finite values, found NaN or infinity", site.name()))),
        }
    }

    fn count(&mut self, site: Site, index: usize, width: usize, data: &[f32]) -> Result<()> {
        let everything: Vec<UnitRows>;
        let units = match &self.layer {
            _ if !judged(site) => {
                everything = (0..self.units.len()).map(|i| self.unit_rows(i, None)).collect();
                &everything
            }
            Some((layer, units)) if *layer == site.layer => units,
            _ => return Err(Error::Internal(format!("site {} came before its layer's residual", site.name()))),
        };
        let stats = &mut self.stats[index];
        if stats.width != width {
            return Err(Error::Internal(format!("site {} has width {width}, not {}", site.name(), stats.width)));
        }
        self.fed += 1;
        let gate = match &self.gate {
            _ if !stats.gated => None,
            Some((layer, gate)) if *layer == site.layer && gate.len() == data.len() => Some(gate.as_slice()),
            _ => return Err(Error::Internal(format!("site {} came before its gate", site.name()))),
        };
        stats.observe(units, data, gate, self.engine.pool())
    }

    /// Whether a site is the gate of a surveyed one.
    fn gates(&self, site: Site) -> bool {
        site.point == Point::Pre && self.sites.contains(&Site { point: Point::PreLinear, ..site })
    }

    /// The layer that a residual enters, if the sinks of a surveyed site depend on it.
    fn enters(&self, site: Site) -> Option<usize> {
        let n_layers = self.engine.spec().n_layers;
        let layer = match site.point {
            Point::ResidPre => site.layer,
            Point::ResidPost if site.layer + 1 == n_layers => n_layers,
            _ => return None,
        };
        self.sites.iter().any(|&other| other.layer == layer && judged(other)).then_some(layer)
    }
}

/// Whether a site lies behind a residual that can hold a sink: the embeddings do not.
fn judged(site: Site) -> bool {
    !matches!(site.point, Point::Embed | Point::PosEmbed)
}

/// Euclidean norm in float64: eight lanes, then the lanes in order.
fn norm(row: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    for chunk in row.chunks(8) {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>().sqrt()
}

/// The middle value, or the mean of the two middle ones.
fn median(values: &[f64]) -> f64 {
    if values.is_empty() {
        return f64::INFINITY;
    }
    let mut values = values.to_vec();
    let (even, half) = (values.len().is_multiple_of(2), values.len() / 2);
    let (below, &mut upper, _) = values.select_nth_unstable_by(half, f64::total_cmp);
    match below.iter().copied().max_by(f64::total_cmp) {
        Some(lower) if even => f64::midpoint(lower, upper),
        _ => upper,
    }
}

impl Host for Observer<'_> {
    fn wants(&self, site: Site) -> bool {
        self.enters(site).is_some() || self.gates(site) || self.sites.contains(&site)
    }

    fn step(&mut self, site: Site, rows: &HostRows<'_>, width: usize, data: &mut [f32]) -> Result<()> {
        let lead = usize::from(!self.settings.prefix.is_empty());
        let in_order = rows.rows.len() == self.n_rows
            && data.len() == self.n_rows * width
            && self.units.iter().zip(&self.first_row).enumerate().all(|(i, (unit, &first))| {
                let rows = &rows.rows[first..first + unit.tokens.len()];
                rows.iter().enumerate().all(|(at, row)| (row.variant, row.segment, row.offset) == (0, i + lead, at))
            });
        if !in_order {
            return Err(Error::Internal(format!("site {} came with rows out of order", site.name())));
        }
        // A residual that leaves the last layer is one of that layer's own sites first.
        let enters = self.enters(site);
        if let Some(layer) = enters.filter(|&layer| layer == site.layer) {
            self.find_sinks(site, layer, width, data)?;
        }
        if self.gates(site) {
            let (layer, gate) = self.gate.get_or_insert_default();
            *layer = site.layer;
            // The memory of the layer before: new memory would have to be faulted in.
            gate.resize(data.len(), false);
            let parts: Vec<Mutex<&mut [bool]>> = gate.chunks_mut(CHUNK).map(Mutex::new).collect();
            threads::each(self.engine.pool(), parts.len(), |i| {
                let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
                part.iter_mut().zip(&data[i * CHUNK..]).for_each(|(open, &x)| *open = x > 0.0);
            });
        }
        if let Some(index) = self.sites.iter().position(|&other| other == site) {
            self.count(site, index, width, data)?;
        }
        match enters.filter(|&layer| layer != site.layer) {
            Some(layer) => self.find_sinks(site, layer, width, data),
            None => Ok(()),
        }
    }
}
