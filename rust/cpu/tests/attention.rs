use proptest::prelude::*;

use super::*;
use crate::backend::{AttentionGradients, AttentionPlan, AttentionShape, KeyValues, Pass, Run, Span};
use crate::ops::attention;

/// A token: a segment and an offset in it.
type Token = (usize, usize);

/// A forest of segments; `parent` is a segment and how many of its tokens are kept.
struct Forest {
    shape: AttentionShape,
    parents: Vec<Option<(usize, usize)>>,
    lens: Vec<usize>,
    /// Segments before this one are in the cache: chunk 1.
    cached: usize,
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    dz: Vec<Vec<f32>>,
}

/// Rows of the buffers, and the plan over them.
struct Layout {
    plan: AttentionPlan,
    /// Which token each query row is.
    queries: Vec<Token>,
    /// Tokens of each chunk's rows.
    chunks: [Vec<Token>; 2],
}

impl Forest {
    fn new(seed: u64, n: usize, cached: usize, longest: usize, shape: AttentionShape) -> Self {
        let mut random = Random(seed);
        let lens: Vec<usize> = (0..n).map(|_| 1 + random.below(longest)).collect();
        let parents = (0..n)
            .map(|i| {
                (i > 0 && random.below(4) > 0).then(|| {
                    let parent = random.below(i);
                    (parent, 1 + random.below(lens[parent]))
                })
            })
            .collect();
        let mut rows = |heads: usize| -> Vec<Vec<f32>> {
            lens.iter().map(|len| random.values(len * heads * shape.d_head)).collect()
        };
        let (q, k, v) = (rows(shape.n_heads), rows(shape.n_kv_heads), rows(shape.n_kv_heads));
        let dz = rows(shape.n_heads);
        Self { shape, parents, lens, cached: cached.min(n - 1), q, k, v, dz }
    }

    /// Every token up to and with the segment's own.
    fn chain(&self, segment: usize) -> Vec<Token> {
        let mut chain = match self.parents[segment] {
            None => Vec::new(),
            Some((parent, keep)) => {
                let mut above = self.chain(parent);
                above.truncate(above.len() - self.lens[parent] + keep);
                above
            }
        };
        chain.extend((0..self.lens[segment]).map(|offset| (segment, offset)));
        chain
    }

    fn row<'a>(&self, data: &'a [Vec<f32>], token: Token) -> &'a [f32] {
        let width = data[token.0].len() / self.lens[token.0];
        &data[token.0][token.1 * width..][..width]
    }

    fn buffer(&self, data: &[Vec<f32>], tokens: &[Token]) -> Buffer {
        Buffer::from_slice(&tokens.iter().flat_map(|&t| self.row(data, t).to_vec()).collect::<Vec<_>>())
    }

    /// One span a segment, one run a stretch of consecutive rows; or both cut at random.
    fn forest(&self, cut: Option<u64>) -> Layout {
        let mut random = Random(cut.unwrap_or(0));
        let own = |range: std::ops::Range<usize>| -> Vec<Token> {
            range.flat_map(|s| (0..self.lens[s]).map(move |o| (s, o))).collect()
        };
        let chunks = [own(self.cached..self.lens.len()), own(0..self.cached)];
        let mut layout = Layout { plan: AttentionPlan::default(), queries: chunks[0].clone(), chunks };
        for segment in self.cached..self.lens.len() {
            let chain = self.chain(segment);
            let before = chain.len() - self.lens[segment];
            let mut first = 0;
            while first < self.lens[segment] {
                let left = self.lens[segment] - first;
                let count = if cut.is_some() { 1 + random.below(left) } else { left };
                let stretch = &chain[..before + first + count];
                layout.push_span(stretch, before + first, || cut.is_some() && random.below(3) == 0);
                first += count;
            }
        }
        layout
    }

    /// Every chain by itself, nothing shared; the queries of all its tokens.
    fn flat(&self) -> Layout {
        let mut layout =
            Layout { plan: AttentionPlan::default(), queries: Vec::new(), chunks: [Vec::new(), Vec::new()] };
        for segment in self.cached..self.lens.len() {
            let chain = self.chain(segment);
            let row = layout.chunks[0].len() as u32;
            layout.chunks[0].extend(&chain);
            layout.queries.extend(&chain);
            let runs = layout.plan.runs.len() as u32;
            layout.plan.runs.push(Run { chunk: 0, row, position: 0, len: chain.len() as u32 });
            layout.plan.spans.push(Span {
                queries: row..row + chain.len() as u32,
                runs: runs..runs + 1,
                shared_runs: 0,
            });
            layout.plan.positions.extend(0..chain.len() as u32);
            layout.plan.n_keys = layout.plan.n_keys.max(chain.len());
        }
        layout
    }

    fn keys(chunks: &[(Buffer, Buffer)]) -> Vec<KeyValues<'_, Cpu>> {
        chunks.iter().map(|(k, v)| KeyValues { k, v }).collect()
    }

    fn chunk_buffers(&self, layout: &Layout) -> Vec<(Buffer, Buffer)> {
        layout.chunks.iter().map(|tokens| (self.buffer(&self.k, tokens), self.buffer(&self.v, tokens))).collect()
    }

    /// `(z, z by way of the pattern, pattern)`.
    fn run(&self, cpu: &Cpu, layout: &Layout) -> [Vec<f32>; 3] {
        let (rows, heads) = (layout.queries.len(), self.shape.n_heads);
        let width = heads * self.shape.d_head;
        let q = self.buffer(&self.q, &layout.queries);
        let buffers = self.chunk_buffers(layout);
        let keys = Forest::keys(&buffers);
        let (mut z, mut mixed) = (unwritten(rows * width), unwritten(rows * width));
        let mut pattern = unwritten(rows * heads * layout.plan.n_keys);
        for pass in [Pass::Whole { q: &q, z: &mut z }, Pass::Pattern { q: &q, pattern: &mut pattern }] {
            cpu.attention(&layout.plan, self.shape, &keys, pass, None).unwrap();
        }
        cpu.attention(&layout.plan, self.shape, &keys, Pass::Mix { pattern: &pattern, z: &mut mixed }, None).unwrap();
        [z.to_vec(), mixed.to_vec(), pattern.to_vec()]
    }

    /// The tokens whose keys a query row sees.
    fn seen(&self, layout: &Layout, row: usize) -> Vec<Token> {
        let mut chain = self.chain(layout.queries[row].0);
        chain.truncate(layout.plan.positions[row] as usize + 1);
        chain
    }

    /// A key-value head's keys and values of some tokens, in float64.
    fn keys_and_values(&self, tokens: &[Token], kv_head: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let of = |data| tokens.iter().map(|&t| head(self.row(data, t), kv_head, self.shape.d_head)).collect();
        (of(&self.k), of(&self.v))
    }

    /// `(dq, dk, dv, d_pattern)`.
    fn run_backward(&self, cpu: &Cpu, layout: &Layout, given: Option<&[f32]>) -> [Vec<f32>; 4] {
        let q = self.buffer(&self.q, &layout.queries);
        let dz = self.buffer(&self.dz, &layout.queries);
        let buffers = self.chunk_buffers(layout);
        let keys = Forest::keys(&buffers);
        let mut dq = unwritten(q.len());
        let (mut dk, mut dv) = (Buffer::zeros(buffers[0].0.len()), Buffer::zeros(buffers[0].0.len()));
        let mut d_pattern = Buffer::from_slice(given.unwrap_or(&[]));
        let given = given.map(|_| &mut d_pattern);
        let gradients = AttentionGradients { dz: &dz, d_pattern: given, dq: &mut dq, dk: &mut dk, dv: &mut dv };
        cpu.attention_backward(&layout.plan, self.shape, &keys, &q, gradients, None).unwrap();
        [dq.to_vec(), dk.to_vec(), dv.to_vec(), d_pattern.to_vec()]
    }
}

impl Layout {
    /// Adds a span whose queries are the tokens of `chain` from `own` on.
    fn push_span(&mut self, chain: &[Token], own: usize, mut cut: impl FnMut() -> bool) {
        let start = self.plan.runs.len();
        let place = |t: &Token| {
            let chunk = usize::from(!self.chunks[0].contains(t));
            (chunk, self.chunks[chunk].iter().position(|other| other == t).unwrap())
        };
        let mut runs: Vec<Run> = Vec::new();
        for (position, (chunk, row)) in chain.iter().map(place).enumerate() {
            match runs.last_mut() {
                Some(r) if r.chunk as usize == chunk && (r.row + r.len) as usize == row && !cut() => r.len += 1,
                _ => runs.push(Run { chunk: chunk as u32, row: row as u32, position: position as u32, len: 1 }),
            }
        }
        let shared = self.plan.spans.last().map_or(0, |before| {
            let before = &self.plan.runs[before.runs.start as usize..before.runs.end as usize];
            before.iter().zip(&runs).take_while(|(a, b)| a == b).count()
        });
        self.plan.runs.extend(runs);
        let first = self.plan.positions.len() as u32;
        self.plan.positions.extend(own as u32..chain.len() as u32);
        self.plan.spans.push(Span {
            queries: first..self.plan.positions.len() as u32,
            runs: start as u32..self.plan.runs.len() as u32,
            shared_runs: shared as u32,
        });
        self.plan.n_keys = self.plan.n_keys.max(chain.len());
    }
}

fn shape(n_kv_heads: usize, group: usize, d_head: usize) -> AttentionShape {
    AttentionShape { n_heads: n_kv_heads * group, n_kv_heads, d_head, scale: 1.0 / (d_head as f32).sqrt() }
}

/// The head's part of a row, in float64.
fn head(row: &[f32], head: usize, d: usize) -> Vec<f64> {
    wide(&row[head * d..(head + 1) * d])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_is_right_and_pure(
        seed: u64, n in 1usize..7, cached in 0usize..3, longest in prop::sample::select(vec![3usize, 20, 90]),
        kv in 1usize..3, group in 1usize..4, d in prop::sample::select(vec![1usize, 8, 20, 64, 200]),
    ) {
        let forest = Forest::new(seed, n, cached, longest, shape(kv, group, d));
        let layout = forest.forest(None);
        let [z, mixed, pattern] = forest.run(&cpus()[0], &layout);
        prop_assert_eq!(bits(&z), bits(&mixed));
        for cpu in cpus() {
            let again = forest.run(cpu, &layout);
            prop_assert_eq!(bits(&again[0]), bits(&z));
            prop_assert_eq!(bits(&again[1]), bits(&z));
            prop_assert_eq!(bits(&again[2]), bits(&pattern));
        }
        let width = forest.shape.n_heads * d;
        let flat = forest.flat();
        for (cpu, other) in [(&cpus()[0], forest.forest(Some(seed))), (&cpus()[3], forest.forest(Some(!seed))), (&cpus()[2], flat)] {
            let [other_z, ..] = forest.run(cpu, &other);
            for (row, token) in layout.queries.iter().enumerate() {
                for (at, _) in other.queries.iter().enumerate().filter(|(_, t)| *t == token) {
                    prop_assert_eq!(bits(&z[row * width..][..width]), bits(&other_z[at * width..][..width]));
                }
            }
        }
        // Against the plain loops.
        for (row, &token) in layout.queries.iter().enumerate() {
            let chain = forest.seen(&layout, row);
            for h in 0..forest.shape.n_heads {
                let (keys, values) = forest.keys_and_values(&chain, h / group);
                let q = head(forest.row(&forest.q, token), h, d);
                let scale = f64::from(forest.shape.scale);
                let expected = attention::pattern(&q, &keys, scale);
                let slip = keys.iter().map(|k| k.iter().zip(&q).map(|(k, q)| (k * q).abs()).sum::<f64>()).fold(0.0, f64::max);
                // Errors of the products move an exponential by their size; then the sum's and the division's.
                let relative = 2.0 * (d as f64 + 2.0) * U * scale * slip + (keys.len() as f64 / 16.0 + 12.0) * U;
                let at = (row * forest.shape.n_heads + h) * layout.plan.n_keys;
                let found = &pattern[at..at + layout.plan.n_keys];
                assert_close("pattern", &found[..keys.len()], &expected, |i| relative * expected[i] + 1e-44);
                prop_assert!(found[keys.len()..].iter().all(|p| p.to_bits() == 0));
                let size = values.iter().flatten().fold(0.0, |m: f64, v| m.max(v.abs()));
                let found = &z[row * width + h * d..][..d];
                assert_close("z", found, &attention::mix(&expected, &values), |_| (relative + 200.0 * U) * size);
            }
        }
    }

    #[test]
    fn gradients_are_right_and_pure(
        seed: u64, n in 1usize..6, cached in 0usize..2, longest in prop::sample::select(vec![3usize, 20, 90]),
        kv in 1usize..3, group in 1usize..4, d in prop::sample::select(vec![1usize, 8, 20]), given: bool,
    ) {
        let forest = Forest::new(seed, n, cached, longest, shape(kv, group, d));
        let layout = forest.forest(None);
        let n_keys = layout.plan.n_keys;
        let given = given.then(|| Random(!seed).values(layout.queries.len() * forest.shape.n_heads * n_keys));
        let found = forest.run_backward(&cpus()[0], &layout, given.as_deref());
        for cpu in &cpus()[1..] {
            let again = forest.run_backward(cpu, &layout, given.as_deref());
            for (a, b) in again.iter().zip(&found) {
                prop_assert_eq!(bits(a), bits(b));
            }
        }
        let [dq, dk, dv, d_pattern] = found;
        let (width, kv_width) = (forest.shape.n_heads * d, kv * d);
        let mut sums = [vec![0.0; dk.len()], vec![0.0; dv.len()]];
        let mut sizes = [vec![0.0; dk.len()], vec![0.0; dv.len()]];
        for (row, &token) in layout.queries.iter().enumerate() {
            let chain = forest.seen(&layout, row);
            for h in 0..forest.shape.n_heads {
                let (keys, values) = forest.keys_and_values(&chain, h / group);
                let (q, dz) = (head(forest.row(&forest.q, token), h, d), head(forest.row(&forest.dz, token), h, d));
                let at = (row * forest.shape.n_heads + h) * n_keys;
                let own = given.as_ref().map(|given| wide(&given[at..at + keys.len()]));
                let expected = attention::backward(&q, &keys, &values, f64::from(forest.shape.scale), &dz, own.as_deref());
                // Values are below 2, products of `d` of them below 4 d.
                let largest = 8.0 * d as f64 + 4.0;
                assert_close("dq", &dq[row * width + h * d..][..d], &expected.dq, |_| 400.0 * U * largest);
                if given.is_some() {
                    assert_close("d_pattern", &d_pattern[at..at + keys.len()], &expected.d_pattern, |_| 2.0 * d as f64 * U * largest);
                    prop_assert!(d_pattern[at + keys.len()..at + n_keys].iter().all(|p| *p == 0.0));
                }
                for (i, t) in chain.iter().enumerate().filter(|(_, t)| t.0 >= forest.cached) {
                    let key_row = layout.chunks[0].iter().position(|other| other == t).unwrap();
                    for j in 0..d {
                        let at = key_row * kv_width + h / group * d + j;
                        for (which, gradient) in [&expected.dk, &expected.dv].into_iter().enumerate() {
                            sums[which][at] += gradient[i][j];
                            sizes[which][at] += gradient[i][j].abs() + 0.02 * largest / keys.len() as f64;
                        }
                    }
                }
            }
        }
        assert_close("dk", &dk, &sums[0], |i| 1500.0 * U * sizes[0][i]);
        assert_close("dv", &dv, &sums[1], |i| 1500.0 * U * sizes[1][i]);
    }
}

/// The gradients of one tree do not depend on what else is in the batch.
#[test]
fn gradients_of_independent_trees_are_independent() {
    let mut forest = Forest::new(11, 6, 0, 70, shape(2, 2, 16));
    forest.parents = vec![None, Some((0, 1)), None, Some((0, 1)), Some((2, 1)), None];
    let [dq, dk, dv, _] = forest.run_backward(&cpus()[3], &forest.forest(None), None);
    let first: usize = forest.lens[..5].iter().sum();
    let alone = Forest { cached: 5, ..Forest::new(11, 6, 0, 70, shape(2, 2, 16)) };
    let alone = Forest { parents: forest.parents.clone(), ..alone };
    let [aq, ak, av, _] = alone.run_backward(&cpus()[0], &alone.forest(None), None);
    assert_eq!(bits(&dq[first * 64..]), bits(&aq));
    assert_eq!(bits(&dk[first * 32..]), bits(&ak));
    assert_eq!(bits(&dv[first * 32..]), bits(&av));
}

/// What is not finite at a later position does not reach an earlier one.
#[test]
fn infinities_stay_behind_their_position() {
    let mut forest = Forest::new(4, 1, 0, 1, shape(1, 2, 20));
    forest.lens = vec![40];
    let clean = {
        let mut random = Random(9);
        let mut rows = |heads: usize| vec![random.values(40 * heads * 20)];
        (forest.q, forest.k, forest.v) = (rows(2), rows(1), rows(1));
        forest.run(&cpus()[0], &forest.forest(None))
    };
    for bad in [f32::INFINITY, f32::NAN] {
        forest.k[0][31 * 20 + 3] = bad;
        forest.v[0][30 * 20 + 5] = bad;
        for cpu in cpus() {
            let [z, mixed, _] = forest.run(cpu, &forest.forest(None));
            assert_eq!(bits(&z[..30 * 40]), bits(&clean[0][..30 * 40]));
            assert_eq!(bits(&mixed[..30 * 40]), bits(&clean[0][..30 * 40]));
            assert!(!z[30 * 40 + 5].is_finite() && z[30 * 40 + 4].is_finite());
        }
    }
}

#[test]
fn plans_that_contradict_themselves_are_errors() {
    let forest = Forest::new(1, 3, 0, 5, shape(1, 1, 4));
    let good = forest.forest(None);
    let q = forest.buffer(&forest.q, &good.queries);
    let buffers = forest.chunk_buffers(&good);
    let spoil = |change: fn(&mut AttentionPlan)| {
        let mut plan = good.plan.clone();
        change(&mut plan);
        let mut z = unwritten(q.len());
        cpus()[0].attention(&plan, forest.shape, &Forest::keys(&buffers), Pass::Whole { q: &q, z: &mut z }, None)
    };
    assert!(spoil(|_| ()).is_ok());
    assert!(spoil(|plan| plan.spans.truncate(1)).is_err());
    assert!(spoil(|plan| plan.runs[0].chunk = 2).is_err());
    assert!(spoil(|plan| plan.runs[0].row = 1000).is_err());
    assert!(spoil(|plan| plan.runs[0].position = 1).is_err());
    assert!(spoil(|plan| plan.spans[0].runs.end = 1000).is_err());
    assert!(spoil(|plan| plan.n_keys = 0).is_err());
    assert!(spoil(|plan| plan.positions[0] = 1000).is_err());
}
