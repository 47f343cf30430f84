//! The inner loop: minimum, maximum, sums and sign counts of a strip of columns over some rows.

use super::histogram;
use crate::cpu::by_level;

/// Columns a strip.
pub const STRIP: usize = 64;

/// Columns that are held in registers together.
const GROUP: usize = 8;

/// Rows that pass through the first-level cache together.
const ROWS: usize = 32;

/// What the rows of one unit add up to, column by column.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Smallest value.
    pub min: [f32; STRIP],
    /// Largest value.
    pub max: [f32; STRIP],
    /// Number of values above zero.
    pub positive: [u32; STRIP],
    /// Number of values below zero.
    pub negative: [u32; STRIP],
}

impl Moments {
    /// Of no rows.
    pub const EMPTY: Self = Self {
        min: [f32::INFINITY; STRIP],
        max: [f32::NEG_INFINITY; STRIP],
        positive: [0; STRIP],
        negative: [0; STRIP],
    };
}

/// Sums of one document so far, in float64, added in position order.
#[derive(Clone, Debug)]
pub struct Sums {
    /// Of the values.
    pub sum: [f64; STRIP],
    /// Of their squares (each exact: the square of a float32 fits a float64).
    pub squares: [f64; STRIP],
}

impl Sums {
    /// Of no rows.
    pub const ZERO: Self = Self { sum: [0.0; STRIP], squares: [0.0; STRIP] };
}

/// A strip of a row-major matrix.
#[derive(Clone, Copy)]
pub struct Columns<'a, T = f32> {
    /// The matrix.
    pub data: &'a [T],
    /// Its columns.
    pub width: usize,
    /// First column of the strip.
    pub start: usize,
    /// Columns of the strip, at most [`STRIP`].
    pub len: usize,
}

impl<'a, T> Columns<'a, T> {
    /// The strip's part of a row.
    pub fn row(&self, row: u32) -> &'a [T] {
        let start = row as usize * self.width + self.start;
        &self.data[start..start + self.len]
    }
}

/// Adds rows, in order. Every path gives the same bits: columns never mix, and a column's additions keep their order.
pub fn accumulate(columns: Columns<'_>, rows: &[u32], moments: &mut Moments, sums: &mut Sums) {
    let vectorised = vector_columns(columns.len);
    for block in rows.chunks(ROWS) {
        #[cfg(target_arch = "x86_64")]
        if vectorised > 0 {
            // SAFETY: `vector_columns` is above 0 only where AVX2 and FMA were detected.
            unsafe { x86::accumulate(columns, vectorised, block, moments, sums) };
        }
        for &row in block {
            plain(&columns.row(row)[vectorised..], vectorised, moments, sums);
        }
    }
}

by_level! {
    /// Extremes of the values beside which the gate is open.
    pub fn open_extremes(
        columns: Columns<'_>,
        gate: Columns<'_, bool>,
        rows: &[u32],
        min: &mut [f32; STRIP],
        max: &mut [f32; STRIP],
    ) {
        for &row in rows {
            let extremes = min.iter_mut().zip(max.iter_mut());
            for ((min, max), (&value, &gate)) in extremes.zip(columns.row(row).iter().zip(gate.row(row))) {
                let value = value + 0.0;
                let (low, high) = if gate { (value, value) } else { (f32::INFINITY, f32::NEG_INFINITY) };
                *min = if low < *min { low } else { *min };
                *max = if high > *max { high } else { *max };
            }
        }
    }
}

/// How many leading columns the vector path takes.
fn vector_columns(len: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return len / GROUP * GROUP;
    }
    let _ = len;
    0
}

/// One row, column by column: what the vector path has to agree with.
#[inline]
fn plain(row: &[f32], start: usize, moments: &mut Moments, sums: &mut Sums) {
    for (j, &value) in (start..STRIP).zip(row) {
        let value = value + 0.0;
        let wide = f64::from(value);
        sums.sum[j] += wide;
        sums.squares[j] += wide * wide;
        moments.min[j] = if value < moments.min[j] { value } else { moments.min[j] };
        moments.max[j] = if value > moments.max[j] { value } else { moments.max[j] };
        moments.positive[j] += u32::from(value > 0.0);
        moments.negative[j] += u32::from(value < 0.0);
    }
}

/// Histogram buckets of some rows, `[len, rows]`: a column's lie together, as they are counted.
pub fn buckets(columns: Columns<'_>, rows: &[u32], keys: &mut Vec<u16>) {
    keys.clear();
    keys.resize(columns.len * rows.len(), 0);
    for (at, &row) in rows.iter().enumerate() {
        for (keys, &value) in keys.chunks_exact_mut(rows.len()).zip(columns.row(row)) {
            keys[at] = histogram::bucket(value);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _CMP_GT_OQ, _CMP_LT_OQ, _mm256_add_pd, _mm256_add_ps, _mm256_castps_si256, _mm256_castps256_ps128,
        _mm256_cmp_ps, _mm256_cvtps_pd, _mm256_extractf128_ps, _mm256_fmadd_pd, _mm256_loadu_pd, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_setzero_ps, _mm256_storeu_pd, _mm256_storeu_ps,
        _mm256_storeu_si256, _mm256_sub_epi32,
    };

    use super::{Columns, GROUP, Moments, Sums};

    /// The first `count` columns (a multiple of [`GROUP`]).
    #[target_feature(enable = "avx2,fma")]
    pub fn accumulate(columns: Columns<'_>, count: usize, rows: &[u32], moments: &mut Moments, sums: &mut Sums) {
        for at in (0..count).step_by(GROUP) {
            let (min, max) = (&mut moments.min[at..at + GROUP], &mut moments.max[at..at + GROUP]);
            let positive = &mut moments.positive[at..at + GROUP];
            let negative = &mut moments.negative[at..at + GROUP];
            let (sum, squares) = (&mut sums.sum[at..at + GROUP], &mut sums.squares[at..at + GROUP]);
            // SAFETY: each slice above has GROUP elements, which is what these loads and stores cover.
            unsafe {
                let mut low_sum = _mm256_loadu_pd(sum.as_ptr());
                let mut high_sum = _mm256_loadu_pd(sum.as_ptr().add(4));
                let mut low_squares = _mm256_loadu_pd(squares.as_ptr());
                let mut high_squares = _mm256_loadu_pd(squares.as_ptr().add(4));
                let mut min_now = _mm256_loadu_ps(min.as_ptr());
                let mut max_now = _mm256_loadu_ps(max.as_ptr());
                let mut positive_now = _mm256_loadu_si256(positive.as_ptr().cast());
                let mut negative_now = _mm256_loadu_si256(negative.as_ptr().cast());
                let zero = _mm256_setzero_ps();
                for &row in rows {
                    let values = &columns.row(row)[at..at + GROUP];
                    let x = _mm256_add_ps(_mm256_loadu_ps(values.as_ptr()), zero);
                    let low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
                    let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x));
                    low_sum = _mm256_add_pd(low_sum, low);
                    high_sum = _mm256_add_pd(high_sum, high);
                    low_squares = _mm256_fmadd_pd(low, low, low_squares);
                    high_squares = _mm256_fmadd_pd(high, high, high_squares);
                    // A NaN stays out of both (the second operand is kept), and is caught by the sum of squares.
                    min_now = _mm256_min_ps(x, min_now);
                    max_now = _mm256_max_ps(x, max_now);
                    // A true comparison is -1.
                    let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, zero));
                    let below = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(x, zero));
                    positive_now = _mm256_sub_epi32(positive_now, above);
                    negative_now = _mm256_sub_epi32(negative_now, below);
                }
                _mm256_storeu_pd(sum.as_mut_ptr(), low_sum);
                _mm256_storeu_pd(sum.as_mut_ptr().add(4), high_sum);
                _mm256_storeu_pd(squares.as_mut_ptr(), low_squares);
                _mm256_storeu_pd(squares.as_mut_ptr().add(4), high_squares);
                _mm256_storeu_ps(min.as_mut_ptr(), min_now);
                _mm256_storeu_ps(max.as_mut_ptr(), max_now);
                _mm256_storeu_si256(positive.as_mut_ptr().cast(), positive_now);
                _mm256_storeu_si256(negative.as_mut_ptr().cast(), negative_now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_path_gives_the_same_bits(
            width in 1_usize..80,
            n_rows in 0_usize..70,
            seed in any::<u32>(),
        ) {
            let data: Vec<f32> = (0..width * n_rows)
                .map(|i| {
                    let bits = (i as u32 ^ seed).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
                    if bits.is_multiple_of(5) { -0.0 } else { (bits as i32) as f32 * 1e-7 }
                })
                .collect();
            let rows: Vec<u32> = (0..n_rows as u32).filter(|row| (row ^ seed) % 3 > 0).collect();
            let columns = Columns { data: &data, width, start: width.saturating_sub(STRIP), len: width.min(STRIP) };
            let (mut fast, mut fast_sums) = (Moments::EMPTY, Sums::ZERO);
            accumulate(columns, &rows, &mut fast, &mut fast_sums);
            let (mut slow, mut slow_sums) = (Moments::EMPTY, Sums::ZERO);
            for &row in &rows {
                plain(columns.row(row), 0, &mut slow, &mut slow_sums);
            }
            for j in 0..columns.len {
                prop_assert_eq!(fast.min[j].to_bits(), slow.min[j].to_bits());
                prop_assert_eq!(fast.max[j].to_bits(), slow.max[j].to_bits());
                prop_assert_eq!((fast.positive[j], fast.negative[j]), (slow.positive[j], slow.negative[j]));
                prop_assert_eq!(fast_sums.sum[j].to_bits(), slow_sums.sum[j].to_bits());
                prop_assert_eq!(fast_sums.squares[j].to_bits(), slow_sums.squares[j].to_bits());
                prop_assert!(fast.min[j].to_bits() != (-0.0_f32).to_bits());
            }
        }
    }
}
