//! What streams over the outputs of a wide weight without ever holding all of them: log-probabilities, their gradient,
//! and the best outputs. Outputs are taken in blocks of [`COLUMNS`]; what a block gives is combined in block order.

use std::cmp::Ordering;

use super::Cpu;
use super::buffer::with_scratch;
use super::gemm::{Panels, Product};
use super::level::Level;
use super::math::exponentials;
use super::pack::Weight;
use super::parallel::Shared;
use crate::backend::{Check, PANEL};
use crate::error::{Error, Result};

/// Outputs of a block: whole panels, and whole blocks of the transposed weight's inputs.
const COLUMNS: usize = 5 * super::pack::BLOCK;
/// Rows whose products with a block are held at a time.
const ROWS: usize = 48;

/// Rows `rows` of `x` times block `block` of the weight, into `out` with rows of [`COLUMNS`].
fn block_products(
    level: Level,
    x: &[f32],
    rows: (usize, usize),
    weight: &Weight,
    block: usize,
    out: &mut [f32],
) -> usize {
    let first = block * COLUMNS;
    let n = COLUMNS.min(weight.outputs() - first);
    let product = Product {
        x: &x[rows.0 * weight.inputs()..],
        rows: rows.1 - rows.0,
        weight,
        panels: Panels::From(first / PANEL, n.div_ceil(PANEL)),
        bias: None,
    };
    debug_assert!(out.len() >= (rows.1 - rows.0) * COLUMNS);
    // SAFETY: `out` is this thread's, and holds the rows.
    unsafe { product.compute(level, out.as_mut_ptr(), COLUMNS, false) };
    n
}

/// What one block knows of one row.
#[derive(Clone, Copy)]
struct Partial {
    max: f32,
    sum: f32,
    target: f32,
}

impl Cpu {
    pub(super) fn log_probs(
        &self,
        (h, rows): (&[f32], usize),
        weight: &Weight,
        targets: &[u32],
        check: Check<'_>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let level = self.level;
        let blocks = weight.outputs().div_ceil(COLUMNS);
        let row_blocks = rows.div_ceil(ROWS);
        let mut partial = vec![0.0_f32; 3 * rows * blocks];
        let shared = Shared::new(&mut partial);
        self.tasks_until(check, blocks * row_blocks, rows * weight.outputs() * weight.inputs(), |task| {
            // Row blocks within a block of outputs, so that its weights are still near for the next.
            let (block, row_block) = (task / row_blocks, task % row_blocks);
            let range = (rows * row_block / row_blocks, rows * (row_block + 1) / row_blocks);
            with_scratch([(range.1 - range.0) * COLUMNS], |[logits]| {
                let n = block_products(level, h, range, weight, block, logits);
                for (row, logits) in (range.0..range.1).zip(logits.chunks_exact_mut(COLUMNS)) {
                    let target = (targets[row] as usize).wrapping_sub(block * COLUMNS);
                    let target = if target < n { logits[target] } else { 0.0 };
                    let (max, sum) = exponentials(level, &mut logits[..n.next_multiple_of(PANEL)], n, 1.0);
                    let at = 3 * (row * blocks + block);
                    // SAFETY: each (row, block) is one task's.
                    unsafe { shared.part(at..at + 3) }.copy_from_slice(&[max, sum, target]);
                }
            });
        })?;
        let mut log_probs = Vec::with_capacity(rows);
        let mut lse = Vec::with_capacity(rows);
        for (row, parts) in partial.chunks_exact(3 * blocks).enumerate() {
            let parts = || parts.as_chunks::<3>().0.iter().map(|&[max, sum, target]| Partial { max, sum, target });
            let max = parts().fold(f32::NEG_INFINITY, |m, p| if p.max > m { p.max } else { m });
            let sum: f64 = parts().map(|p| f64::from(p.sum) * f64::from(p.max - max).exp()).sum();
            let total = f64::from(max) + sum.ln();
            let target = parts().nth(targets[row] as usize / COLUMNS).map_or(f32::NAN, |p| p.target);
            log_probs.push((f64::from(target) - total) as f32);
            lse.push(total as f32);
        }
        Ok((log_probs, lse))
    }

    pub(super) fn log_probs_backward(
        &self,
        (h, rows): (&[f32], usize),
        (weight, transposed): (&Weight, &Weight),
        targets: &[u32],
        lse: &[f32],
        weights: &[f32],
        dh: &mut [f32],
        check: Check<'_>,
    ) -> Result<()> {
        let (level, width) = (self.level, weight.inputs());
        let blocks = weight.outputs().div_ceil(COLUMNS);
        // Blocks whose gradients are held at a time: enough to share among the threads.
        let wave = (2 * self.threads()).min(blocks);
        let mut d_logits = vec![0.0_f32; ROWS.min(rows) * COLUMNS * wave];
        let mut sums = vec![0.0_f32; ROWS.min(rows) * width];
        for start in (0..rows).step_by(ROWS) {
            let range = (start, rows.min(start + ROWS));
            let n_rows = range.1 - range.0;
            for first in (0..blocks).step_by(wave) {
                let count = wave.min(blocks - first);
                let shared = Shared::new(&mut d_logits);
                let work = n_rows * count * COLUMNS * width;
                self.tasks_until(check, count, work, |index| {
                    let size = n_rows * COLUMNS;
                    // SAFETY: one part a block.
                    let d = unsafe { shared.part(index * size..(index + 1) * size) };
                    let block = first + index;
                    let n = block_products(level, h, range, weight, block, d);
                    for (row, d) in (range.0..range.1).zip(d.chunks_exact_mut(COLUMNS)) {
                        minus_softmax(level, &mut d[..n], lse[row], weights[row]);
                        let target = (targets[row] as usize).wrapping_sub(block * COLUMNS);
                        if target < n {
                            d[target] += weights[row];
                        }
                    }
                })?;
                let d_logits = &d_logits;
                let shared = Shared::new(&mut sums);
                let panels = width.div_ceil(PANEL);
                let pieces = (2 * self.threads()).min(panels);
                self.tasks_until(check, pieces, work, |piece| {
                    let (from, to) = (panels * piece / pieces, panels * (piece + 1) / pieces);
                    for index in 0..count {
                        let block = first + index;
                        let d = &d_logits[index * n_rows * COLUMNS..(index + 1) * n_rows * COLUMNS];
                        // SAFETY: the tasks' columns are disjoint, and `sums` holds the rows.
                        unsafe {
                            let out = shared.pointer().add(from * PANEL);
                            accumulate(level, d, n_rows, transposed, block, (from, to), out, width);
                        }
                    }
                })?;
            }
            let dh = &mut dh[range.0 * width..range.1 * width];
            self.add_assign_all(dh, &sums[..n_rows * width]);
        }
        Ok(())
    }

    pub(super) fn best_outputs(
        &self,
        terms: &[(&[f32], &Weight, &[f32])],
        rows: usize,
        allowed: &[bool],
        k: usize,
    ) -> Vec<Vec<(u32, f32)>> {
        let Some((_, weight, _)) = terms.first() else { return vec![Vec::new(); rows] };
        let level = self.level;
        let blocks = weight.outputs().div_ceil(COLUMNS);
        let work = terms.iter().map(|(_, w, _)| rows * w.outputs() * w.inputs()).sum();
        let parts = if self.parallel(work) { (4 * self.threads()).min(blocks) } else { 1 };
        let found: Vec<std::sync::Mutex<Vec<Best>>> = (0..parts).map(|_| std::sync::Mutex::default()).collect();
        self.tasks(parts, work, |part| {
            let mut best = vec![Best::new(k); rows];
            with_scratch([ROWS.min(rows) * COLUMNS, ROWS.min(rows) * COLUMNS], |[scores, products]| {
                for block in blocks * part / parts..blocks * (part + 1) / parts {
                    for start in (0..rows).step_by(ROWS) {
                        let range = (start, rows.min(start + ROWS));
                        let mut n = 0;
                        for (index, (x, weight, scale)) in terms.iter().enumerate() {
                            let out = if index == 0 { &mut *scores } else { &mut *products };
                            n = block_products(level, x, range, weight, block, out);
                            for (i, row) in (range.0..range.1).enumerate() {
                                let at = i * COLUMNS..i * COLUMNS + n;
                                if index == 0 {
                                    scores[at].iter_mut().for_each(|s| *s *= scale[row]);
                                } else {
                                    let pairs = scores[at.clone()].iter_mut().zip(&products[at]);
                                    pairs.for_each(|(s, &p)| *s += scale[row] * p);
                                }
                            }
                        }
                        let first = block * COLUMNS;
                        for (i, row) in (range.0..range.1).enumerate() {
                            best[row].offer(&scores[i * COLUMNS..][..n], first as u32, &allowed[first..first + n]);
                        }
                    }
                }
            });
            if let Ok(mut slot) = found[part].lock() {
                *slot = best;
            }
        });
        let mut merged = vec![Best::new(k); rows];
        for part in found {
            let part = part.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (all, best) in merged.iter_mut().zip(part) {
                all.found.extend(best.found);
            }
        }
        merged.into_iter().map(Best::finish).collect()
    }
}

/// Adds what one block of `d_logits` gives to some columns of `dh`; overwrites for the first block.
///
/// # Safety
/// `out` must be writable for `rows` rows, `stride` apart, of the panels' outputs, and no other thread may touch them.
unsafe fn accumulate(
    level: Level,
    d: &[f32],
    rows: usize,
    transposed: &Weight,
    block: usize,
    (from, to): (usize, usize),
    out: *mut f32,
    stride: usize,
) {
    use super::kernel::{Tile, for_tiles, tile};
    let first = block * COLUMNS;
    let end = transposed.inputs().min(first + COLUMNS);
    for start in (first..end).step_by(super::pack::BLOCK) {
        let k = transposed.block_len(start);
        for panel in from..to {
            let b = transposed.panel(start, panel);
            let columns = PANEL.min(transposed.outputs() - panel * PANEL);
            for_tiles(rows, |r, n| {
                // SAFETY: `d` holds `rows` rows of `COLUMNS`, `b` `16 k` values, `out` is the caller's promise.
                unsafe {
                    let t = Tile {
                        k,
                        a: d.as_ptr().add(r * COLUMNS + start - first),
                        a_stride: COLUMNS,
                        b: b.as_ptr(),
                        c: out.add(r * stride + (panel - from) * PANEL),
                        c_stride: stride,
                        columns,
                        add: start > 0,
                        bias: std::ptr::null(),
                    };
                    tile(level, n, &t);
                }
            });
        }
    }
}

super::level::by_level! {
    /// `-weight * exp(logit - lse)`.
    fn minus_softmax(logits: &mut [f32], lse: f32, weight: f32) {
        for value in logits {
            *value = -weight * super::math::exp(*value - lse);
        }
    }
}

/// The `k` best of what was offered: highest score first, then lowest index.
#[derive(Clone)]
struct Best {
    k: usize,
    /// Below this nothing can be among the best any more.
    floor: f32,
    found: Vec<(u32, f32)>,
}

fn better_first(a: (u32, f32), b: (u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, floor: f32::NEG_INFINITY, found: Vec::new() }
    }

    fn offer(&mut self, scores: &[f32], first: u32, allowed: &[bool]) {
        if self.k == 0 {
            return;
        }
        for (i, (&score, &allowed)) in scores.iter().zip(allowed).enumerate() {
            // A NaN is not at or above anything.
            if score >= self.floor && allowed {
                self.found.push((first + i as u32, score));
                if self.found.len() >= 2 * self.k + 64 {
                    self.cut();
                }
            }
        }
    }

    /// Drops what is not among the best.
    fn cut(&mut self) {
        if self.found.len() > self.k {
            self.found.select_nth_unstable_by(self.k - 1, |&a, &b| better_first(a, b));
            self.found.truncate(self.k);
            self.floor = self.found[self.k - 1].1;
        }
    }

    fn finish(mut self) -> Vec<(u32, f32)> {
        self.found.sort_unstable_by(|&a, &b| better_first(a, b));
        self.found.truncate(self.k);
        self.found
    }
}

/// Whether every target is an output.
pub(super) fn check_targets(targets: &[u32], rows: usize, weight: &Weight) -> Result<()> {
    if targets.len() != rows || targets.iter().any(|&target| target as usize >= weight.outputs()) {
        return Err(Error::Internal(format!(
            "{} targets for {rows} rows and {} outputs, or one out of range",
            targets.len(),
            weight.outputs()
        )));
    }
    Ok(())
}
