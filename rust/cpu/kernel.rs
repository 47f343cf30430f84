//! The register tile: up to 6 rows by 16 columns of `A B`, summed over `k` by fused multiply-adds in order.

use super::level::Level;
use crate::backend::PANEL;

/// Rows of a full tile.
pub(super) const ROWS: usize = 6;

/// One tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Length of the sum.
    pub k: usize,
    /// First row of `A`; its elements are contiguous.
    pub a: *const f32,
    /// From a row of `A` to the next.
    pub a_stride: usize,
    /// `B`: `k` rows of 16.
    pub b: *const f32,
    /// Where the tile goes.
    pub c: *mut f32,
    /// From a row of `C` to the next.
    pub c_stride: usize,
    /// Columns to write, at most 16.
    pub columns: usize,
    /// Whether to add to `C` (`C + sum`) and not to overwrite it.
    pub add: bool,
    /// Added last, 16 values, if not null.
    pub bias: *const f32,
}

/// Computes a tile of `rows` rows, 1 to 6.
///
/// # Safety
/// `a` must be readable for `rows` rows of `k`, `b` for `16 k` values, `bias` for 16 if not null, and `c` writable (and, if
/// `add`, readable) for `rows` rows of `columns`; no other thread may touch those elements of `c`.
pub(super) unsafe fn tile(level: Level, rows: usize, tile: &Tile) {
    debug_assert!((1..=ROWS).contains(&rows) && (1..=PANEL).contains(&tile.columns));
    macro_rules! by_rows {
        ($f:ident) => {
            // SAFETY: the caller's contract, and the level is only detected where the CPU has it.
            unsafe {
                match rows {
                    1 => $f::<1>(tile),
                    2 => $f::<2>(tile),
                    3 => $f::<3>(tile),
                    4 => $f::<4>(tile),
                    5 => $f::<5>(tile),
                    _ => $f::<6>(tile),
                }
            }
        };
    }
    match level {
        Level::Portable => by_rows!(portable),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Fma => by_rows!(avx2),
    }
}

/// Writes one row of sums, as both kernels do it where a row is not whole.
///
/// # Safety
/// As [`tile`], for one row.
unsafe fn store_row(sums: &[f32; PANEL], t: &Tile, row: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let c = t.c.add(row * t.c_stride);
        for (j, &sum) in sums.iter().enumerate().take(t.columns) {
            let mut value = if t.add { *c.add(j) + sum } else { sum };
            if !t.bias.is_null() {
                value += *t.bias.add(j);
            }
            *c.add(j) = value;
        }
    }
}

/// The tile of `M` rows, in instructions that every CPU has.
///
/// # Safety
/// As [`tile`], for `M` rows.
unsafe fn portable<const M: usize>(t: &Tile) {
    let mut sums = [[0.0_f32; PANEL]; M];
    // SAFETY: the caller's contract.
    unsafe {
        for k in 0..t.k {
            let b = t.b.add(k * PANEL).cast::<[f32; PANEL]>().read();
            for (i, row) in sums.iter_mut().enumerate() {
                let a = *t.a.add(i * t.a_stride + k);
                for j in 0..PANEL {
                    row[j] = a.mul_add(b[j], row[j]);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            store_row(row, t, i);
        }
    }
}

/// The same tile, to the same bits, 8 columns an instruction.
///
/// # Safety
/// As [`tile`], for `M` rows; the CPU must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const M: usize>(t: &Tile) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };
    /// Values ahead of `b` that are fetched early: the panels follow each other.
    const AHEAD: usize = 512;
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    let (mut a, mut b) = (t.a, t.b);
    // SAFETY: the caller's contract; a prefetch may name any address.
    unsafe {
        for i in 0..M {
            // The tile is written long after: by then it is near.
            _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(i * t.c_stride).cast());
        }
        macro_rules! step {
            () => {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD).cast());
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for i in 0..M {
                    let value = _mm256_broadcast_ss(&*a.add(i * t.a_stride));
                    sums[i][0] = _mm256_fmadd_ps(value, b0, sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(value, b1, sums[i][1]);
                }
                a = a.wrapping_add(1);
                b = b.wrapping_add(PANEL);
            };
        }
        for _ in 0..t.k / 4 {
            step!();
            step!();
            step!();
            step!();
        }
        for _ in 0..t.k % 4 {
            step!();
        }
        for i in 0..M {
            if t.columns < PANEL {
                let mut row = [0.0; PANEL];
                _mm256_storeu_ps(row.as_mut_ptr(), sums[i][0]);
                _mm256_storeu_ps(row.as_mut_ptr().add(8), sums[i][1]);
                store_row(&row, t, i);
                continue;
            }
            let c = t.c.add(i * t.c_stride);
            for half in 0..2 {
                let mut value = sums[i][half];
                if t.add {
                    value = _mm256_add_ps(_mm256_loadu_ps(c.add(8 * half)), value);
                }
                if !t.bias.is_null() {
                    value = _mm256_add_ps(value, _mm256_loadu_ps(t.bias.add(8 * half)));
                }
                _mm256_storeu_ps(c.add(8 * half), value);
            }
        }
    }
}

/// Cuts `n` rows into tiles of at most 6, of sizes as even as can be (a tile of 4 runs at nearly full speed, one of 1 or 2
/// does not), and calls `f(first, rows)`.
#[inline]
pub(super) fn for_tiles(n: usize, mut f: impl FnMut(usize, usize)) {
    let tiles = n.div_ceil(ROWS);
    for i in 0..tiles {
        let (first, end) = (n * i / tiles, n * (i + 1) / tiles);
        f(first, end - first);
    }
}
