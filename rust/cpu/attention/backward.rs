//! Gradients of attention. The pattern is computed again. A key's and a value's gradient sum over the queries of a block
//! of 64 positions of one span, in order (heads of the group within a query), and blocks and spans are added in order.

use super::super::buffer::with_scratch;
use super::super::level::by_level;
use super::super::math::{LANES, lane_sum};
use super::super::parallel::Shared;
use super::super::{Buffer, Cpu};
use super::forward::softmax;
use super::panels::{ByDimension, ByPosition, for_vectors, panel_len};
use super::plan::{Task, check, runs, shared_keys, work};
use crate::backend::{AttentionGradients, AttentionPlan, AttentionShape, Check, KeyValues, PANEL};
use crate::error::{Error, Result};

/// Query positions whose gradients are summed together.
const SUMMED: usize = 64;
/// Floats of the products held at a time.
const HELD: usize = 32 * 1024;

struct Ends<'a> {
    q: &'a [f32],
    dz: &'a [f32],
    d_pattern: Option<Shared<'a>>,
    dq: Shared<'a>,
    dk: Shared<'a>,
    dv: Shared<'a>,
}

by_level! {
    /// `dp` becomes the gradient by the products: `p (dp - Σ p dp) scale`.
    fn softmax_backward(p: &[f32], dp: &mut [f32], scale: f32) {
        let (ps, _) = p.as_chunks::<LANES>();
        let (ds, _) = dp.as_chunks_mut::<LANES>();
        let mut lanes = [0.0_f32; LANES];
        for (p, d) in ps.iter().zip(ds.iter()) {
            for lane in 0..LANES {
                lanes[lane] = p[lane].mul_add(d[lane], lanes[lane]);
            }
        }
        let sum = lane_sum(lanes);
        for (p, d) in ps.iter().zip(ds) {
            for lane in 0..LANES {
                d[lane] = p[lane] * (d[lane] - sum) * scale;
            }
        }
    }
}

by_level! {
    /// `out[key] += weights[key] * x`.
    fn add_outer(weights: &[f32], x: &[f32], out: &mut [f32]) {
        for (&weight, out) in weights.iter().zip(out.chunks_exact_mut(x.len())) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = weight.mul_add(x, *out);
            }
        }
    }
}

/// The representative of a set in a union-find forest.
fn root(parent: &mut [usize], mut at: usize) -> usize {
    while parent[at] != at {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    at
}

/// Spans that share no row of chunk 0 with those of other groups, each group in the plan's order.
fn independent(plan: &AttentionPlan) -> Vec<Vec<usize>> {
    let mut intervals: Vec<(u32, u32, usize)> = Vec::new();
    for (index, span) in plan.spans.iter().enumerate() {
        let own = runs(plan, span).iter().filter(|run| run.chunk == 0 && run.len > 0);
        intervals.extend(own.map(|run| (run.row, run.row + run.len, index)));
    }
    intervals.sort_unstable();
    let mut parent: Vec<usize> = (0..plan.spans.len()).collect();
    // The interval that reaches furthest so far touches each that starts before its end.
    let mut furthest: Option<(u32, usize)> = None;
    for &(start, end, span) in &intervals {
        if let Some((reach, other)) = furthest.filter(|&(reach, _)| start < reach) {
            let (a, b) = (root(&mut parent, span), root(&mut parent, other));
            parent[a.max(b)] = a.min(b);
            furthest = Some(if end > reach { (end, span) } else { (reach, other) });
        } else {
            furthest = Some((end, span));
        }
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); plan.spans.len()];
    for span in 0..plan.spans.len() {
        let root = root(&mut parent, span);
        groups[root].push(span);
    }
    groups.retain(|group| !group.is_empty());
    groups
}

impl Cpu {
    pub(in super::super) fn attend_backward(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        q: &Buffer,
        gradients: AttentionGradients<'_, Self>,
        stop: Check<'_>,
    ) -> Result<()> {
        let AttentionGradients { dz, d_pattern, dq, dk, dv } = gradients;
        check(plan, shape, &[q, dz, dq], d_pattern.as_deref(), chunks)?;
        let own =
            plan.runs.iter().filter(|run| run.chunk == 0).map(|run| run.row + run.len).max().unwrap_or(0) as usize;
        if dk.len().min(dv.len()) < own * shape.n_kv_heads * shape.d_head {
            return Err(Error::Internal(format!("attention_backward: gradients of {own} keys do not fit")));
        }
        let ends = Ends {
            q,
            dz,
            d_pattern: d_pattern.map(|b| Shared::new(b)),
            dq: Shared::new(dq),
            dk: Shared::new(dk),
            dv: Shared::new(dv),
        };
        let groups = independent(plan);
        let heads = shape.n_kv_heads;
        self.tasks_until(stop, groups.len() * heads, 3 * work(plan, shape), |index| {
            let task = Task { level: self.level, plan, shape, chunks, kv_head: index % heads };
            backward_task(&task, &ends, &groups[index / heads]);
        })
    }
}

fn backward_task(task: &Task<'_>, ends: &Ends<'_>, spans: &[usize]) {
    let &Task { level, plan, shape: AttentionShape { d_head: d, scale, .. }, chunks, .. } = task;
    let group = task.group();
    let end = |span: usize| plan.positions[plan.spans[span].queries.end as usize - 1] as usize + 1;
    let keys = spans.iter().map(|&span| end(span)).max().unwrap_or(0);
    let capacity = keys.next_multiple_of(PANEL);
    let padded = d.next_multiple_of(PANEL);
    let held = (HELD / capacity).clamp(group.max(6), SUMMED * group).next_multiple_of(group);
    let size = panel_len(keys, d);
    let lens =
        [size, size, size, keys * d, keys * d, held * d, held * d, held * capacity, held * capacity, held * padded];
    with_scratch(lens, |[k, v, k_sums, sum_k, sum_v, q, dz, pattern, d_pattern, mixed]| {
        let mut k = ByPosition::new(k, d);
        let mut v = ByPosition::new(v, d);
        let mut k_sums = ByDimension::new(k_sums, d, capacity);
        let place = task.place();
        let mut gathered = 0;
        let mut before = usize::MAX;
        for &index in spans {
            let span = &plan.spans[index];
            let chain = runs(plan, span);
            gathered = if before.wrapping_add(1) == index { gathered.min(shared_keys(plan, span)) } else { 0 };
            before = index;
            k_sums.truncate(gathered);
            let range = (gathered, end(index));
            for_vectors(
                chain,
                range,
                |c| chunks[c].k,
                place,
                |position, vector| {
                    k.put(position, vector);
                    k_sums.put(level, position, vector);
                },
            );
            for_vectors(chain, range, |c| chunks[c].v, place, |position, vector| v.put(position, vector));
            gathered = gathered.max(end(index));
            let (mut first, last) = (span.queries.start as usize, span.queries.end as usize);
            while first < last {
                // The queries of one block of positions.
                let block = plan.positions[first] as usize / SUMMED;
                let in_block =
                    plan.positions[first..last].iter().take_while(|&&p| p as usize / SUMMED == block).count();
                let block_end = first + in_block;
                let block_keys = plan.positions[block_end - 1] as usize + 1;
                sum_k[..block_keys * d].fill(0.0);
                sum_v[..block_keys * d].fill(0.0);
                while first < block_end {
                    let queries = (held / group).min(block_end - first);
                    let rows = task.rows(first, queries);
                    let seen = |row: usize| rows.seen(row);
                    let stride = seen(rows.len - 1).next_multiple_of(PANEL);
                    rows.load(ends.q, q);
                    rows.load(ends.dz, dz);
                    k.products(level, q, rows.len, seen, pattern, stride);
                    v.products(level, dz, rows.len, seen, d_pattern, stride);
                    for row in 0..rows.len {
                        let keys = seen(row);
                        let p = &mut pattern[row * stride..][..stride];
                        let dp = &mut d_pattern[row * stride..][..stride];
                        softmax(level, p, keys, scale);
                        dp[keys..].fill(0.0);
                        if let Some(given) = &ends.d_pattern {
                            // SAFETY: each (query, head) is one task's.
                            let given = unsafe { given.part(rows.in_pattern(row)) };
                            for (dp, given) in dp[..keys].iter_mut().zip(given.iter_mut()) {
                                *dp += *given;
                                *given = *dp;
                            }
                            given[keys..].fill(0.0);
                        }
                        add_outer(level, &p[..keys], &dz[row * d..][..d], sum_v);
                        softmax_backward(level, p, dp, scale);
                        add_outer(level, &dp[..keys], &q[row * d..][..d], sum_k);
                    }
                    k_sums.mix(level, (d_pattern, stride), rows.len, seen, (mixed, padded));
                    // SAFETY: each (query, head) is one task's.
                    unsafe { rows.store(mixed, padded, &ends.dq) };
                    first += queries;
                }
                for (out, sums) in [(&ends.dk, &*sum_k), (&ends.dv, &*sum_v)] {
                    add_own(plan, index, block_keys, out, sums, place);
                }
            }
        }
    });
}

/// Adds the sums of a span's keys to the gradient rows of those that are chunk 0's.
fn add_own(
    plan: &AttentionPlan,
    span: usize,
    keys: usize,
    out: &Shared<'_>,
    sums: &[f32],
    (width, at, d): (usize, usize, usize),
) {
    for run in runs(plan, &plan.spans[span]).iter().filter(|run| run.chunk == 0) {
        let start = run.position as usize;
        for position in start..keys.min(start + run.len as usize) {
            let row = run.row as usize + position - start;
            // SAFETY: a task has a head's columns of its group's rows for itself.
            let out = unsafe { out.part(row * width + at..row * width + at + d) };
            for (out, &sum) in out.iter_mut().zip(&sums[position * d..][..d]) {
                *out += sum;
            }
        }
    }
}
