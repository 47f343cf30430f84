//! Norms. Statistics are summed in float64 in 8 lanes (lane = column mod 8) that are then added pairwise; what they scale
//! is computed in float32, one rounding a step, so that a norm cut in front of its gain gives the same bits.

#![allow(clippy::inline_always)]

use super::Cpu;
use super::level::by_level;
use super::parallel::Shared;
use crate::model::spec::NormKind;

const LANES: usize = 8;

/// Sums `f(x, y)` over two rows of one length.
#[inline(always)]
fn sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f64) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += f(x[lane], y[lane]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_tail.iter().zip(y_tail)) {
        *lane += f(x, y);
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// The mean removed and the factor of one row.
#[inline(always)]
fn statistics(layer: bool, eps: f32, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = if layer { sum(x, x, |x, _| f64::from(x)) / n } else { 0.0 };
    let square = sum(x, x, |x, _| {
        let d = f64::from(x) - mean;
        d * d
    }) / n;
    (mean as f32, (1.0 / (square + f64::from(eps)).sqrt()) as f32)
}

by_level! {
    fn normalize(layer: bool, eps: f32, x: &[f32], out: &mut [f32]) {
        let (mean, factor) = statistics(layer, eps, x);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x - mean) * factor;
        }
    }
}

by_level! {
    fn scale(gain: &[f32], out: &mut [f32]) {
        for (out, &g) in out.iter_mut().zip(gain) {
            *out *= g;
        }
    }
}

by_level! {
    fn shift(bias: &[f32], out: &mut [f32]) {
        for (out, &b) in out.iter_mut().zip(bias) {
            *out += b;
        }
    }
}

by_level! {
    fn backward(layer: bool, eps: f32, x: &[f32], gain: Option<&[f32]>, dy: &[f32], g: &mut [f32], dx: &mut [f32]) {
        let n = x.len();
        let (x, dy, g, dx) = (&x[..n], &dy[..n], &mut g[..n], &mut dx[..n]);
        let (mean, factor) = statistics(layer, eps, x);
        match gain {
            Some(gain) => for i in 0..n { g[i] = dy[i] * gain[i]; },
            None => g.copy_from_slice(dy),
        }
        let g = &*g;
        let g_mean = if layer { (sum(g, g, |g, _| f64::from(g)) / n as f64) as f32 } else { 0.0 };
        let g_t = (sum(g, x, |g, x| f64::from(g) * f64::from((x - mean) * factor)) / n as f64) as f32;
        for i in 0..n {
            let t = (x[i] - mean) * factor;
            dx[i] += factor * t.mul_add(-g_t, g[i] - g_mean);
        }
    }
}

impl Cpu {
    pub(super) fn norm_rows(
        &self,
        statistics: Option<(NormKind, f32)>,
        x: &[f32],
        width: usize,
        gain: Option<&[f32]>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let level = self.level;
        let shared = Shared::new(out);
        self.ranges(x.len(), width, |range| {
            // SAFETY: ranges do not overlap.
            let out = unsafe { shared.part(range.clone()) };
            for (x, out) in x[range].chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                match statistics {
                    Some((kind, eps)) => normalize(level, kind == NormKind::Layer, eps, x, out),
                    None => out.copy_from_slice(x),
                }
                if let Some(gain) = gain {
                    scale(level, gain, out);
                }
                if let Some(bias) = bias {
                    shift(level, bias, out);
                }
            }
        });
    }

    pub(super) fn norm_rows_backward(
        &self,
        kind: NormKind,
        eps: f32,
        x: &[f32],
        width: usize,
        gain: Option<&[f32]>,
        dy: &[f32],
        dx: &mut [f32],
    ) {
        let level = self.level;
        let shared = Shared::new(dx);
        self.ranges(x.len(), width, |range| {
            // SAFETY: ranges do not overlap.
            let dx = unsafe { shared.part(range.clone()) };
            super::buffer::with_scratch([width], |[g]| {
                let rows = x[range.clone()].chunks_exact(width).zip(dy[range].chunks_exact(width));
                for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
                    backward(level, kind == NormKind::Layer, eps, x, gain, dy, g, dx);
                }
            });
        });
    }
}
