//! How an attention plan is checked, and cut into tasks; what a task works on.

use std::ops::Range;

use super::super::level::Level;
use super::super::parallel::Shared;
use super::super::{Buffer, Cpu};
use crate::backend::{AttentionPlan, AttentionShape, KeyValues, Run, Span};
use crate::error::{Error, Result};

/// What the tasks of one attention share, and the key-value head that one of them is for.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub level: Level,
    pub plan: &'a AttentionPlan,
    pub shape: AttentionShape,
    pub chunks: &'a [KeyValues<'a, Cpu>],
    pub kv_head: usize,
}

impl<'a> Task<'a> {
    /// Query heads that read the key-value head.
    pub fn group(&self) -> usize {
        self.shape.n_heads / self.shape.n_kv_heads
    }

    /// Where the head's vectors lie: width of a row of keys or values, offset in it, length.
    pub fn place(&self) -> (usize, usize, usize) {
        let d = self.shape.d_head;
        (self.shape.n_kv_heads * d, self.kv_head * d, d)
    }

    /// Rows of products for the queries from `first` on: row `r` is query `first + r / group`, head `r % group` of the
    /// group.
    pub fn rows(&self, first: usize, queries: usize) -> QueryRows<'a> {
        let group = self.group();
        QueryRows { task: *self, group, first, len: queries * group }
    }
}

/// Rows of products, one a query and head: see [`Task::rows`].
#[derive(Clone, Copy)]
pub(super) struct QueryRows<'a> {
    task: Task<'a>,
    group: usize,
    first: usize,
    pub len: usize,
}

impl QueryRows<'_> {
    /// Keys that a row sees: those at its position and before.
    pub fn seen(&self, row: usize) -> usize {
        self.task.plan.positions[self.first + row / self.group] as usize + 1
    }

    /// Which of all (query, head) a row is.
    pub fn index(&self, row: usize) -> usize {
        let first_head = self.task.kv_head * self.group;
        (self.first + row / self.group) * self.task.shape.n_heads + first_head + row % self.group
    }

    /// A row's part of a pattern.
    pub fn in_pattern(&self, row: usize) -> Range<usize> {
        let n_keys = self.task.plan.n_keys;
        self.index(row) * n_keys..(self.index(row) + 1) * n_keys
    }

    /// Copies each row's vector of queries, or of what is shaped like them, to consecutive rows.
    pub fn load(&self, from: &[f32], to: &mut [f32]) {
        let d = self.task.shape.d_head;
        for (row, to) in to[..self.len * d].chunks_exact_mut(d).enumerate() {
            to.copy_from_slice(&from[self.index(row) * d..][..d]);
        }
    }

    /// Copies each row's vector, `padded` apart, to where queries' vectors lie.
    ///
    /// # Safety
    /// No other task may have the same (query, head), and no part of `to` may live.
    pub unsafe fn store(&self, from: &[f32], padded: usize, to: &Shared<'_>) {
        let d = self.task.shape.d_head;
        for (row, from) in from[..self.len * padded].chunks_exact(padded).enumerate() {
            let at = self.index(row) * d;
            // SAFETY: the caller's contract; a task's rows differ in (query, head).
            unsafe { to.part(at..at + d) }.copy_from_slice(&from[..d]);
        }
    }
}

/// Some queries of one span.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub span: usize,
    /// Query rows.
    pub queries: (usize, usize),
    /// Keys that the last of them sees.
    pub keys: usize,
}

pub(super) fn runs<'a>(plan: &'a AttentionPlan, span: &Span) -> &'a [Run] {
    &plan.runs[span.runs.start as usize..span.runs.end as usize]
}

/// Keys of the leading runs that the span before has too.
pub(super) fn shared_keys(plan: &AttentionPlan, span: &Span) -> usize {
    runs(plan, span).iter().take(span.shared_runs as usize).map(|run| run.len as usize).sum()
}

/// Checks the plan against itself and the buffers.
pub(super) fn check(
    plan: &AttentionPlan,
    shape: AttentionShape,
    query_buffers: &[&Buffer],
    pattern: Option<&Buffer>,
    chunks: &[KeyValues<'_, Cpu>],
) -> Result<()> {
    let wrong = |what: String| Err(Error::Internal(format!("attention: {what}")));
    let rows = plan.positions.len();
    let AttentionShape { n_heads, n_kv_heads, d_head, .. } = shape;
    if n_kv_heads == 0 || d_head == 0 || n_heads % n_kv_heads != 0 {
        return wrong(format!("{n_heads} heads of {d_head} over {n_kv_heads}"));
    }
    if let Some(short) = query_buffers.iter().find(|b| b.len() < rows * n_heads * d_head) {
        return wrong(format!("{rows} rows of {n_heads} heads of {d_head} in a buffer of {}", short.len()));
    }
    if pattern.is_some_and(|pattern| pattern.len() < rows * n_heads * plan.n_keys) {
        return wrong(format!("the pattern of {rows} rows, {n_heads} heads and {} keys does not fit", plan.n_keys));
    }
    let width = n_kv_heads * d_head;
    let chunk_rows: Vec<usize> = chunks.iter().map(|c| c.k.len().min(c.v.len()) / width).collect();
    let mut next_query = 0;
    for (index, span) in plan.spans.iter().enumerate() {
        let (first, end) = (span.queries.start as usize, span.queries.end as usize);
        if first != next_query || end <= first || end > rows || span.runs.end as usize > plan.runs.len() {
            return wrong(format!("span {index} has queries {first}..{end} of {rows}, expected from {next_query}"));
        }
        next_query = end;
        if span.runs.start > span.runs.end || plan.positions[first..end].windows(2).any(|w| w[0] >= w[1]) {
            return wrong(format!("positions of span {index} do not increase"));
        }
        let mut keys = 0;
        for run in runs(plan, span) {
            let last = run.row as usize + run.len as usize;
            if run.position as usize != keys || chunk_rows.get(run.chunk as usize).is_none_or(|&n| n < last) {
                return wrong(format!("span {index} has {run:?} after {keys} keys"));
            }
            keys += run.len as usize;
        }
        let seen = plan.positions[end - 1] as usize + 1;
        if keys < seen || plan.n_keys < seen {
            return wrong(format!("span {index} has {keys} keys of {seen}, the pattern {}", plan.n_keys));
        }
    }
    if next_query != rows {
        return wrong(format!("the spans cover {next_query} of {rows} queries"));
    }
    Ok(())
}

/// Multiply-adds of the whole plan, nearly.
pub(super) fn work(plan: &AttentionPlan, shape: AttentionShape) -> usize {
    plan.positions.iter().map(|&p| (p as usize + 1) * 2).sum::<usize>() * shape.n_heads * shape.d_head
}

/// Cuts the plan's queries into tasks of about `target` multiply-adds a head group (`cost` a query-key pair): lists of
/// consecutive pieces of at least `fewest` queries or whole spans, so that what the pieces of a task share is gathered once.
pub(super) fn tasks(plan: &AttentionPlan, cost: usize, target: usize, fewest: usize) -> Vec<Vec<Piece>> {
    let mut tasks = Vec::new();
    let mut current = Vec::new();
    let mut spent = 0;
    for (index, span) in plan.spans.iter().enumerate() {
        let (mut first, end) = (span.queries.start as usize, span.queries.end as usize);
        while first < end {
            // As many queries as fit in the task, at least a few.
            let mut last = first;
            let mut sum = 0;
            while last < end && (last - first < fewest || spent + sum < target) {
                sum += (plan.positions[last] as usize + 1) * cost;
                last += 1;
            }
            if end - last < fewest / 2 {
                last = end;
            }
            current.push(Piece { span: index, queries: (first, last), keys: plan.positions[last - 1] as usize + 1 });
            spent += sum;
            first = last;
            if spent >= target {
                tasks.push(std::mem::take(&mut current));
                spent = 0;
            }
        }
    }
    if !current.is_empty() {
        tasks.push(current);
    }
    tasks
}
