//! Attention, whole or cut at the pattern.

use super::super::buffer::with_scratch;
use super::super::level::Level;
use super::super::math::{divide, exponentials};
use super::super::parallel::Shared;
use super::super::{Buffer, Cpu};
use super::panels::{ByDimension, ByPosition, for_vectors, panel_len};
use super::plan::{Piece, check, runs, shared_keys, tasks, work};
use crate::backend::{AttentionPlan, AttentionShape, KeyValues, PANEL};
use crate::error::Result;

/// Floats of the products that a task holds at a time: they stay in the second-level cache.
const HELD: usize = 32 * 1024;
/// Multiply-adds of a task, at least.
const TASK_WORK: usize = 100_000;
/// Fewest queries of a span for which its keys are gathered once more.
const FEWEST: usize = 48;

/// Which part of attention.
pub(in super::super) enum Pass<'a> {
    /// `softmax(scale q kᵀ)`.
    Pattern {
        /// Queries.
        q: &'a Buffer,
        /// The pattern.
        out: &'a mut Buffer,
    },
    /// `pattern v`.
    Mix {
        /// The pattern.
        pattern: &'a Buffer,
        /// The mixed values.
        out: &'a mut Buffer,
    },
    /// Both.
    Whole {
        /// Queries.
        q: &'a Buffer,
        /// The mixed values.
        out: &'a mut Buffer,
    },
}

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
        pass: Pass<'_>,
    ) -> Result<()> {
        let ends = match pass {
            Pass::Pattern { q, out } => {
                check(plan, shape, &[q], Some(out), chunks)?;
                Ends { q: Some(q), given: None, pattern: Some(Shared::new(out)), z: None }
            }
            Pass::Mix { pattern, out } => {
                check(plan, shape, &[out], Some(pattern), chunks)?;
                Ends { q: None, given: Some(pattern), pattern: None, z: Some(Shared::new(out)) }
            }
            Pass::Whole { q, out } => {
                check(plan, shape, &[q, out], None, chunks)?;
                Ends { q: Some(q), given: None, pattern: None, z: Some(Shared::new(out)) }
            }
        };
        let work = work(plan, shape);
        let group = shape.n_heads / shape.n_kv_heads;
        let parts = if self.parallel(work) { 4 * self.threads() } else { 1 };
        let target = (work / parts).max(self.at_least(TASK_WORK));
        let tasks = tasks(plan, 2 * group * shape.d_head, target, self.at_least(FEWEST));
        let heads = shape.n_kv_heads;
        self.tasks(tasks.len() * heads, work, |index| {
            attend_task(self.level, plan, shape, chunks, &ends, &tasks[index / heads], index % heads);
        });
        Ok(())
    }
}

fn attend_task(
    level: Level,
    plan: &AttentionPlan,
    shape: AttentionShape,
    chunks: &[KeyValues<'_, Cpu>],
    ends: &Ends<'_>,
    pieces: &[Piece],
    kv_head: usize,
) {
    let AttentionShape { n_heads, n_kv_heads, d_head: d, scale } = shape;
    let group = n_heads / n_kv_heads;
    let keys = pieces.iter().map(|piece| piece.keys).max().unwrap_or(0);
    let capacity = keys.next_multiple_of(PANEL);
    let padded = d.next_multiple_of(PANEL);
    let most = pieces.iter().map(|piece| (piece.queries.1 - piece.queries.0) * group).max().unwrap_or(0);
    let held = (HELD / capacity).clamp(group.max(6), 96).next_multiple_of(group).min(most);
    let size = panel_len(keys, d);
    with_scratch([size, size, held * d, held * capacity, held * padded], |[k, v, q, products, mixed]| {
        let mut k = ByPosition::new(k, d);
        let mut v = ByDimension::new(v, d, capacity);
        let place = (n_kv_heads * d, kv_head * d, d);
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
                // Row `r` is query `first + r / group`, head `r % group` of the group.
                let rows = queries * group;
                let seen = |row: usize| plan.positions[first + row / group] as usize + 1;
                let most = seen(rows - 1);
                let stride = most.next_multiple_of(PANEL);
                let heads_at = |row: usize| (first + row / group) * n_heads + kv_head * group + row % group;
                if let Some(from) = ends.q {
                    for (row, q) in q[..rows * d].chunks_exact_mut(d).enumerate() {
                        q.copy_from_slice(&from[heads_at(row) * d..][..d]);
                    }
                    k.products(level, q, rows, seen, products, stride);
                    for (row, products) in products[..rows * stride].chunks_exact_mut(stride).enumerate() {
                        softmax(level, products, seen(row), scale);
                    }
                }
                if let Some(given) = ends.given {
                    for (row, products) in products[..rows * stride].chunks_exact_mut(stride).enumerate() {
                        let keys = seen(row);
                        products[..keys].copy_from_slice(&given[heads_at(row) * plan.n_keys..][..keys]);
                        products[keys..].fill(0.0);
                    }
                }
                if let Some(out) = &ends.pattern {
                    for (row, products) in products[..rows * stride].chunks_exact(stride).enumerate() {
                        let at = heads_at(row) * plan.n_keys;
                        // SAFETY: each (query, head) is one task's.
                        let out = unsafe { out.part(at..at + plan.n_keys) };
                        let keys = seen(row);
                        out[..keys].copy_from_slice(&products[..keys]);
                        out[keys..].fill(0.0);
                    }
                }
                if let Some(out) = &ends.z {
                    v.mix(level, (products, stride), rows, seen, (mixed, padded));
                    for (row, mixed) in mixed[..rows * padded].chunks_exact(padded).enumerate() {
                        let at = heads_at(row) * d;
                        // SAFETY: each (query, head) is one task's.
                        unsafe { out.part(at..at + d) }.copy_from_slice(&mixed[..d]);
                    }
                }
                first += queries;
            }
        }
    });
}
