//! A small made-up language model behind the engine's interface, for tests of the search alone: a token's state is a
//! decaying sum over its prefix, so rows are pure, and gradients have a closed form.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::request::{
    Cache, CachedSegment, Columns, Context, Engine, Gradients, Output, Parent, Read, Request, Response, RowRef, Table,
    TokenScore, TopTokens, WeightKind, validate,
};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};
use crate::model::spec::{Activation, Head, ModelSpec, NormKind, Positions};

const DECAY: f64 = 0.7;
type Rows = Vec<Vec<f64>>;

pub(super) struct Fake {
    spec: ModelSpec,
    embed: Rows,
    unembed: Rows,
    neurons: Rows,
    gain: Vec<f64>,
    bias: Vec<f64>,
    pool: rayon::ThreadPool,
    pub(super) tokens: AtomicUsize,
    pub(super) fail_after: AtomicUsize,
}

/// Where a row's state lies: a segment's (or a cached segment's) row.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Own(usize),
    Cached,
}

impl Fake {
    pub(super) fn new(seed: u32, vocabulary: usize) -> Self {
        let (d_model, d_mlp) = (6, 10);
        let mut state = u64::from(seed) * 2 + 1;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1_u64 << 31) as f64 * 2.0 - 1.0
        };
        let mut matrix =
            |rows: usize| -> Rows { (0..rows).map(|_| (0..d_model).map(|_| uniform()).collect()).collect() };
        let (embed, unembed, neurons) = (matrix(vocabulary), matrix(vocabulary), matrix(d_mlp));
        let (gain, bias) = (matrix(1).remove(0), matrix(1).remove(0));
        let spec = ModelSpec {
            family: "fake".to_owned(),
            n_layers: 2,
            d_model,
            d_mlp,
            n_heads: 1,
            n_kv_heads: 1,
            d_head: 6,
            d_vocab: vocabulary,
            n_ctx: 64,
            act_fn: "relu".to_owned(),
            activation: Activation::Relu,
            gated: false,
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            positions: Positions::Rotary { inverse_frequencies: vec![1.0] },
            attn_scale: vec![1.0; 2],
            head: Head::Unembed,
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let fail_after = AtomicUsize::new(usize::MAX);
        Self { spec, embed, unembed, neurons, gain, bias, pool, tokens: AtomicUsize::new(0), fail_after }
    }

    fn starts(request: &Request) -> Vec<usize> {
        let mut next = 0;
        request
            .segments
            .iter()
            .map(|s| {
                let at = next;
                next += s.tokens.len();
                at
            })
            .collect()
    }

    fn states(&self, request: &Request) -> (Rows, Vec<Before>) {
        let starts = Self::starts(request);
        let mut rows: Rows = Vec::new();
        let mut before = Vec::new();
        for segment in &request.segments {
            for (offset, &token) in segment.tokens.iter().enumerate() {
                let (previous, link) = match segment.parent {
                    _ if offset > 0 => (Some(rows[rows.len() - 1].clone()), Before::Own(rows.len() - 1)),
                    Parent::Root => (None, Before::Nothing),
                    Parent::Segment { index, keep } => {
                        let at = starts[index] + keep - 1;
                        (Some(rows[at].clone()), Before::Own(at))
                    }
                    Parent::Cached { index, keep } => {
                        let cache = request.cache.as_ref().unwrap();
                        let store = cache.store.downcast_ref::<Vec<Rows>>().unwrap();
                        (Some(store[index][keep - 1].clone()), Before::Cached)
                    }
                };
                let embed = &self.embed[token as usize];
                let state = embed.iter().enumerate().map(|(d, e)| e + previous.as_ref().map_or(0.0, |p| DECAY * p[d]));
                rows.push(state.collect());
                before.push(link);
            }
        }
        (rows, before)
    }

    fn hidden(state: &[f64]) -> Vec<f64> {
        state.iter().map(|s| s.tanh()).collect()
    }

    fn logits(&self, state: &[f64]) -> Vec<f64> {
        let h: Vec<f64> =
            Self::hidden(state).iter().enumerate().map(|(d, x)| x * self.gain[d] + self.bias[d]).collect();
        self.unembed.iter().map(|u| dot(u, &h)).collect()
    }

    fn log_probs(&self, state: &[f64]) -> Vec<f64> {
        let logits = self.logits(state);
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - lse).collect()
    }

    /// All columns of a site.
    fn site(&self, site: Site, state: &[f64]) -> Vec<f64> {
        let hidden = Self::hidden(state);
        match site.point {
            Point::Embed => state.to_vec(),
            Point::Normalized => hidden,
            _ => self.neurons.iter().map(|w| dot(w, &hidden)).collect(),
        }
    }

    fn answer(&self, read: &Read, at: &dyn Fn(&RowRef) -> usize, states: &Rows) -> Output {
        let pick = |all: &[f64], columns: &Columns| match columns {
            Columns::All => all.to_vec(),
            Columns::Some(some) => some.iter().map(|&c| all[c as usize]).collect(),
        };
        let rows: Vec<Vec<f64>> = match read {
            Read::Values { site, rows, columns } => {
                rows.iter().map(|row| pick(&self.site(*site, &states[at(row)]), columns)).collect()
            }
            Read::Project { site, rows, vector } => {
                let vector: Vec<f64> = vector.iter().map(|&v| f64::from(v)).collect();
                rows.iter().map(|row| vec![dot(&self.site(*site, &states[at(row)]), &vector)]).collect()
            }
            Read::Logits { rows, columns } => {
                rows.iter().map(|row| pick(&self.logits(&states[at(row)]), columns)).collect()
            }
            Read::LogProb { rows, targets } => {
                let one = |(row, &id): (&RowRef, &u32)| vec![self.log_probs(&states[at(row)])[id as usize]];
                rows.iter().zip(targets).map(one).collect()
            }
        };
        let n_cols = rows.first().map_or(0, Vec::len);
        Output { n_rows: rows.len(), n_cols, data: rows.into_iter().flatten().map(|v| v as f32).collect() }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Engine for Fake {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(&self, request: &Request, context: &mut Context<'_>) -> Result<Response> {
        validate(request, &self.spec)?;
        if let Some(check) = context.check {
            check()?;
        }
        if self.fail_after.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(Error::Interrupted);
        }
        let starts = Self::starts(request);
        let (states, _) = self.states(request);
        self.tokens.fetch_add(states.len(), Ordering::Relaxed);
        let at = |row: &RowRef| starts[row.segment] + row.offset;
        let outputs = request.reads.iter().map(|read| self.answer(read, &at, &states)).collect();
        let cache = request.keep.then(|| {
            assert!(request.cache.is_none());
            let mut kept: Vec<CachedSegment> = Vec::new();
            let mut store: Vec<Rows> = Vec::new();
            for (segment, &start) in request.segments.iter().zip(&starts) {
                let parent = match segment.parent {
                    Parent::Segment { index, keep } => Some((index, keep)),
                    _ => None,
                };
                let position = parent.map_or(0, |(index, keep)| kept[index].position + keep);
                let tokens = segment.tokens.clone();
                store.push(states[start..start + tokens.len()].to_vec());
                kept.push(CachedSegment { parent, position, tokens, chunk: 0, row: 0 });
            }
            Cache { segments: Arc::new(kept), store: Arc::new(store) }
        });
        Ok(Response { outputs, cache })
    }

    fn gradient(
        &self,
        request: &Request,
        wrt: &[Site],
        _from: Option<&[usize]>,
        seed: &mut dyn FnMut(&[Output]) -> Result<Vec<Vec<f32>>>,
        context: &mut Context<'_>,
    ) -> Result<(Response, Gradients)> {
        assert_eq!(wrt, [Site::EMBED]);
        let response = self.run(request, context)?;
        let seeds = seed(&response.outputs)?;
        let starts = Self::starts(request);
        let (states, before) = self.states(request);
        let d_model = self.spec.d_model;
        let mut by_state: Rows = vec![vec![0.0; d_model]; states.len()];
        for ((read, seed), output) in request.reads.iter().zip(&seeds).zip(&response.outputs) {
            assert_eq!(seed.len(), output.data.len());
            for (r, row) in read.rows().iter().enumerate() {
                let at = starts[row.segment] + row.offset;
                let hidden = Self::hidden(&states[at]);
                let own = &seed[r * output.n_cols..(r + 1) * output.n_cols];
                // By the hidden values, then through tanh.
                let mut by_hidden = vec![0.0; d_model];
                let spread = |columns: &Columns, width: usize| -> Vec<f64> {
                    let mut all = vec![0.0; width];
                    match columns {
                        Columns::All => all.iter_mut().zip(own).for_each(|(a, &s)| *a += f64::from(s)),
                        Columns::Some(some) => {
                            some.iter().zip(own).for_each(|(&c, &s)| all[c as usize] += f64::from(s));
                        }
                    }
                    all
                };
                let from_logits = |by_logits: &[f64], by_hidden: &mut [f64]| {
                    for (u, g) in self.unembed.iter().zip(by_logits) {
                        (0..d_model).for_each(|d| by_hidden[d] += g * u[d] * self.gain[d]);
                    }
                };
                let from_site = |site: Site, by_site: &[f64], by_hidden: &mut [f64]| match site.point {
                    Point::Normalized => (0..d_model).for_each(|d| by_hidden[d] += by_site[d]),
                    _ => {
                        for (w, g) in self.neurons.iter().zip(by_site) {
                            (0..d_model).for_each(|d| by_hidden[d] += g * w[d]);
                        }
                    }
                };
                match read {
                    Read::Values { site, columns, .. } => {
                        from_site(*site, &spread(columns, site.width(&self.spec, 0)), &mut by_hidden);
                    }
                    Read::Project { site, vector, .. } => {
                        let all: Vec<f64> = vector.iter().map(|&v| f64::from(v) * f64::from(own[0])).collect();
                        from_site(*site, &all, &mut by_hidden);
                    }
                    Read::Logits { columns, .. } => {
                        from_logits(&spread(columns, self.spec.d_vocab), &mut by_hidden);
                    }
                    Read::LogProb { targets, .. } => {
                        let scale = f64::from(own[0]);
                        let mut by_logits: Vec<f64> =
                            self.log_probs(&states[at]).iter().map(|l| -scale * l.exp()).collect();
                        by_logits[targets[r] as usize] += scale;
                        from_logits(&by_logits, &mut by_hidden);
                    }
                }
                for d in 0..d_model {
                    by_state[at][d] += by_hidden[d] * (1.0 - hidden[d] * hidden[d]);
                }
            }
        }
        for at in (0..states.len()).rev() {
            if let Before::Own(previous) = before[at] {
                let flowing = by_state[at].clone();
                by_state[previous].iter_mut().zip(flowing).for_each(|(p, g)| *p += DECAY * g);
            }
        }
        let data = by_state.into_iter().flatten().map(|v| v as f32).collect();
        Ok((response, vec![(Site::EMBED, Output { n_rows: states.len(), n_cols: d_model, data })]))
    }

    fn top_tokens(&self, terms: &[TokenScore<'_>], rows: usize, allowed: &[bool], k: usize) -> Result<TopTokens> {
        let d_model = self.spec.d_model;
        let (mut ids, mut scores) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let range: Range<usize> = row * d_model..(row + 1) * d_model;
            let mut all: Vec<(f32, u32)> = Vec::new();
            for id in (0..self.spec.d_vocab).filter(|&id| allowed[id]) {
                let mut score = 0.0;
                for term in terms {
                    let table = if term.table == Table::Embed { &self.embed } else { &self.unembed };
                    let x: Vec<f64> = term.x[range.clone()].iter().map(|&v| f64::from(v)).collect();
                    score += f64::from(term.scale[row]) * dot(&table[id], &x);
                }
                all.push((score as f32, id as u32));
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(k);
            ids.push(all.iter().map(|&(_, id)| id).collect());
            scores.push(all.iter().map(|&(score, _)| score).collect());
        }
        Ok(TopTokens { ids, scores })
    }

    fn weight_row(&self, kind: WeightKind, _layer: usize, _row: usize) -> Result<Vec<f32>> {
        let row = if kind == WeightKind::FinalNormGain { &self.gain } else { &self.bias };
        Ok(row.iter().map(|&v| v as f32).collect())
    }

    fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }
}
