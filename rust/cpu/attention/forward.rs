//! Attention, whole or cut at the pattern.

use super::super::Cpu;
use super::super::buffer::with_scratch;
use super::super::level::Level;
use super::super::math::{divide, exponentials};
use super::super::parallel::Shared;
use super::panels::{ByDimension, ByPosition, for_vectors, panel_len};
use super::plan::{Piece, Task, check, runs, shared_keys, tasks, work};
use crate::backend::{AttentionPlan, AttentionShape, Check, KeyValues, PANEL, Pass};
use crate::error::Result;

/// Floats of the products that a task holds at a time: they stay in the second-level cache.
const HELD: usize = 32 * 1024;
/// Multiply-adds of a task, at least.
const TASK_WORK: usize = 100_000;
/// Fewest queries of a span for which its keys are gathered once more.
const FEWEST: usize = 48;

/// Where patterns come from and where results go.
struct Ends<'a> {
    q: Option<&'a [f32]>,
    given: Option<&'a [f32]>,
    pattern: Option<Shared<'a>>,
    z: Option<Shared<'a>>,
}

/// Softmax of a row's products with the `keys` it sees; zeros after them.
pub(super) fn softmax(level: Level, row: &mut [f32], keys: usize, scale: f32) {
    let (seen, rest) = row.split_at_mut(keys.next_multiple_of(PANEL));
    let (_, sum) = exponentials(level, seen, keys, scale);
    divide(level, &mut seen[..keys], sum);
    rest.fill(0.0);
}

impl Cpu {
    pub(in super::super) fn attend(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        pass: Pass<'_, Self>,
        stop: Check<'_>,
    ) -> Result<()> {
        let ends = match pass {
            Pass::Pattern { q, pattern } => {
                check(plan, shape, &[q], Some(pattern), chunks)?;
                Ends { q: Some(q), given: None, pattern: Some(Shared::new(pattern)), z: None }
            }
            Pass::Mix { pattern, z } => {
                check(plan, shape, &[z], Some(pattern), chunks)?;
                Ends { q: None, given: Some(pattern), pattern: None, z: Some(Shared::new(z)) }
            }
            Pass::Whole { q, z } => {
                check(plan, shape, &[q, z], None, chunks)?;
                Ends { q: Some(q), given: None, pattern: None, z: Some(Shared::new(z)) }
            }
        };
        let work = work(plan, shape);
        let group = shape.n_heads / shape.n_kv_heads;
        let parts = if self.parallel(work) { 4 * self.threads() } else { 1 };
        let target = (work / parts).max(self.at_least(TASK_WORK));
        let tasks = tasks(plan, 2 * group * shape.d_head, target, self.at_least(FEWEST));
        let heads = shape.n_kv_heads;
        self.tasks_until(stop, tasks.len() * heads, work, |index| {
            let task = Task { level: self.level, plan, shape, chunks, kv_head: index % heads };
            attend_task(&task, &ends, &tasks[index / heads]);
        })
    }
}

fn attend_task(task: &Task<'_>, ends: &Ends<'_>, pieces: &[Piece]) {
    let &Task { level, plan, shape: AttentionShape { d_head: d, scale, .. }, chunks, .. } = task;
    let group = task.group();
    let keys = pieces.iter().map(|piece| piece.keys).max().unwrap_or(0);
    let capacity = keys.next_multiple_of(PANEL);
    let padded = d.next_multiple_of(PANEL);
    let most = pieces.iter().map(|piece| (piece.queries.1 - piece.queries.0) * group).max().unwrap_or(0);
    let held = (HELD / capacity).clamp(group.max(6), 96).next_multiple_of(group).min(most);
    let size = panel_len(keys, d);
    with_scratch([size, size, held * d, held * capacity, held * padded], |[k, v, q, products, mixed]| {
        let mut k = ByPosition::new(k, d);
        let mut v = ByDimension::new(v, d, capacity);
        let place = task.place();
        let mut gathered = 0;
        let mut before = None;
        for piece in pieces {
            let span = &plan.spans[piece.span];
            let chain = runs(plan, span);
            if before.is_some_and(|before| before != piece.span) {
                gathered = gathered.min(shared_keys(plan, span));
            }
            before = Some(piece.span);
            v.truncate(gathered);
            let range = (gathered, piece.keys);
            if ends.q.is_some() {
                for_vectors(chain, range, |c| chunks[c].k, place, |position, vector| k.put(position, vector));
            }
            if ends.z.is_some() {
                for_vectors(chain, range, |c| chunks[c].v, place, |position, vector| v.put(level, position, vector));
            }
            gathered = gathered.max(piece.keys);
            let mut first = piece.queries.0;
            while first < piece.queries.1 {
                let queries = (held / group).min(piece.queries.1 - first);
                let rows = task.rows(first, queries);
                let seen = |row: usize| rows.seen(row);
                let stride = seen(rows.len - 1).next_multiple_of(PANEL);
                if let Some(from) = ends.q {
                    rows.load(from, q);
                    k.products(level, q, rows.len, seen, products, stride);
                    for (row, products) in products[..rows.len * stride].chunks_exact_mut(stride).enumerate() {
                        softmax(level, products, seen(row), scale);
                    }
                }
                if let Some(given) = ends.given {
                    for (row, products) in products[..rows.len * stride].chunks_exact_mut(stride).enumerate() {
                        let keys = seen(row);
                        products[..keys].copy_from_slice(&given[rows.in_pattern(row)][..keys]);
                        products[keys..].fill(0.0);
                    }
                }
                if let Some(out) = &ends.pattern {
                    for (row, products) in products[..rows.len * stride].chunks_exact(stride).enumerate() {
                        // SAFETY: each (query, head) is one task's.
                        let out = unsafe { out.part(rows.in_pattern(row)) };
                        let keys = seen(row);
                        out[..keys].copy_from_slice(&products[..keys]);
                        out[keys..].fill(0.0);
                    }
                }
                if let Some(out) = &ends.z {
                    v.mix(level, (products, stride), rows.len, seen, (mixed, padded));
                    // SAFETY: each (query, head) is one task's.
                    unsafe { rows.store(mixed, padded, out) };
                }
                first += queries;
            }
        }
    });
}
