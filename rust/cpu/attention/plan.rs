//! How an attention plan is checked, and cut into tasks.

use super::super::{Buffer, Cpu};
use crate::backend::{AttentionPlan, AttentionShape, KeyValues, Run, Span};
use crate::error::{Error, Result};

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
