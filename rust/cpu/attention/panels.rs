//! Keys and values of one head gathered from their runs into the kernel's layouts.

use super::super::kernel::{Tile, for_tiles, tile};
use super::super::level::Level;
use super::super::math::all_finite;
use super::super::pack::BLOCK;
use crate::backend::{PANEL, Run};

/// Vectors of one head by position, laid out for inner products: panels of 16 positions, dimension by dimension.
pub(super) struct ByPosition<'a> {
    data: &'a mut [f32],
    d: usize,
}

/// The same vectors laid out for sums over positions: panels of 16 dimensions, position by position.
pub(super) struct ByDimension<'a> {
    data: &'a mut [f32],
    d: usize,
    /// Positions that fit.
    capacity: usize,
    /// First position that holds a value which is not finite, if any.
    bad: usize,
}

/// Floats that `keys` vectors of width `d` need, in either layout.
pub(super) fn panel_len(keys: usize, d: usize) -> usize {
    keys.next_multiple_of(PANEL) * d.next_multiple_of(PANEL)
}

/// Calls `f(position, vector)` for the positions `from..to` of a chain. `buffers[chunk]` has rows of `width`, of which the
/// head starts at `at`.
pub(super) fn for_vectors<'a>(
    runs: &[Run],
    (from, to): (usize, usize),
    buffers: impl Fn(usize) -> &'a [f32],
    (width, at, d): (usize, usize, usize),
    mut f: impl FnMut(usize, &'a [f32]),
) {
    for run in runs {
        let start = run.position as usize;
        let (first, end) = (from.max(start), to.min(start + run.len as usize));
        if first >= end {
            continue;
        }
        let data = buffers(run.chunk as usize);
        for position in first..end {
            let row = run.row as usize + position - start;
            f(position, &data[row * width + at..row * width + at + d]);
        }
    }
}

impl<'a> ByPosition<'a> {
    pub(super) fn new(data: &'a mut [f32], d: usize) -> Self {
        Self { data, d }
    }

    pub(super) fn put(&mut self, position: usize, vector: &[f32]) {
        let panel = &mut self.data[position / PANEL * self.d * PANEL..][..self.d * PANEL];
        let lane = position % PANEL;
        for (row, &value) in panel.as_chunks_mut::<PANEL>().0.iter_mut().zip(vector) {
            row[lane] = value;
        }
    }

    /// Inner products of `rows` rows of `a` (each `d` long) with positions `0..keys(row)`, into rows of `out`, `stride`
    /// apart; a row's whole last panel is written.
    pub(super) fn products(
        &self,
        level: Level,
        a: &[f32],
        rows: usize,
        keys: impl Fn(usize) -> usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let d = self.d;
        assert!(a.len() >= rows * d && out.len() >= rows * stride);
        for_tiles(rows, |first, n| {
            let panels = (first..first + n).map(&keys).max().unwrap_or(0).div_ceil(PANEL);
            assert!(panels * PANEL <= stride && panels * d * PANEL <= self.data.len());
            for panel in 0..panels {
                for start in (0..d).step_by(BLOCK) {
                    let t = Tile {
                        k: BLOCK.min(d - start),
                        a: a[first * d + start..].as_ptr(),
                        a_stride: d,
                        b: self.data[(panel * d + start) * PANEL..].as_ptr(),
                        c: out[first * stride + panel * PANEL..].as_mut_ptr(),
                        c_stride: stride,
                        columns: PANEL,
                        add: start > 0,
                        bias: std::ptr::null(),
                    };
                    // SAFETY: the assertions above: `a` has the rows, `data` the panels, `out` rows of whole panels.
                    unsafe { tile(level, n, &t) };
                }
            }
        });
    }
}

impl<'a> ByDimension<'a> {
    pub(super) fn new(data: &'a mut [f32], d: usize, capacity: usize) -> Self {
        Self { data, d, capacity, bad: usize::MAX }
    }

    /// Forgets the positions from `keep` on.
    pub(super) fn truncate(&mut self, keep: usize) {
        if self.bad >= keep {
            self.bad = usize::MAX;
        }
    }

    pub(super) fn put(&mut self, level: Level, position: usize, vector: &[f32]) {
        let mut rest = vector;
        let mut at = position * PANEL;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(PANEL.min(rest.len()));
            let row = &mut self.data[at..at + PANEL];
            row[..part.len()].copy_from_slice(part);
            row[part.len()..].fill(0.0);
            at += self.capacity * PANEL;
            rest = tail;
        }
        if !all_finite(level, vector) {
            self.bad = self.bad.min(position);
        }
    }

    /// Sums over positions: row `r` of `out` (`stride` apart, at least `d` rounded up to 16) becomes
    /// `Σ_{p < keys(r)} weights[r][p] · vector(p)`. Weights past `keys(r)` must be zero up to the most keys of any row;
    /// `keys` must not decrease.
    pub(super) fn mix(
        &self,
        level: Level,
        (weights, weight_stride): (&[f32], usize),
        rows: usize,
        keys: impl Fn(usize) -> usize,
        (out, stride): (&mut [f32], usize),
    ) {
        let panels = self.d.div_ceil(PANEL);
        assert!(panels * PANEL <= stride && out.len() >= rows * stride && weights.len() >= rows * weight_stride);
        out[..rows * stride].fill(0.0);
        let mut part = |first: usize, n: usize, seen: usize| {
            assert!(
                seen <= weight_stride && seen <= self.capacity && panels * self.capacity * PANEL <= self.data.len()
            );
            for start in (0..seen).step_by(BLOCK) {
                for panel in 0..panels {
                    let t = Tile {
                        k: BLOCK.min(seen - start),
                        a: weights[first * weight_stride + start..].as_ptr(),
                        a_stride: weight_stride,
                        b: self.data[(panel * self.capacity + start) * PANEL..].as_ptr(),
                        c: out[first * stride + panel * PANEL..].as_mut_ptr(),
                        c_stride: stride,
                        columns: PANEL,
                        add: true,
                        bias: std::ptr::null(),
                    };
                    // SAFETY: the assertions above: `weights` and `out` have the rows, `data` the positions.
                    unsafe { tile(level, n, &t) };
                }
            }
        };
        for_tiles(rows, |first, n| {
            let seen = keys(first + n - 1);
            if seen > self.bad {
                // A zero times infinity is not zero: each row by itself, up to its own last key.
                (first..first + n).for_each(|row| part(row, 1, keys(row)));
            } else {
                part(first, n, seen);
            }
        });
    }
}
