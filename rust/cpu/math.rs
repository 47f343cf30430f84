//! Elementary functions of `f32`, branch-free, so that loops over them become vector code (see [`by_level`]).
//! exp: Cody-Waite reduction and a degree-7 polynomial (Cephes' `expf` coefficients); erf: N. Juffa's
//! two-piece minimax fit. Worst errors over sampled patterns are tested below.

#![allow(clippy::inline_always, clippy::excessive_precision)]

use super::level::by_level;

/// `1.5 * 2^23`: adding it rounds to an integer, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_145_751_953_125;
const LN2_LOW: f32 = 1.428_606_765_330_187e-6;

/// `exp(x)`, over the whole range (subnormal results, underflow to 0, overflow to infinity).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // At the limits the result is infinite, or rounds to zero.
    let clipped = x.clamp(-104.0, 88.8);
    let t = clipped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_HIGH, clipped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.987_569_150_0e-4_f32;
    p = p.mul_add(r, 1.398_199_950_7e-3);
    p = p.mul_add(r, 8.333_451_907_3e-3);
    p = p.mul_add(r, 4.166_579_589_4e-2);
    p = p.mul_add(r, 1.666_666_545_9e-1);
    p = p.mul_add(r, 5.000_000_120_1e-1);
    let y = (p * r).mul_add(r, r) + 1.0;
    // 2^n as two factors, of which the second alone can make the product round or overflow.
    let n = (t.to_bits() as i32).wrapping_sub(0x4B40_0000);
    let half = n >> 1;
    let first = f32::from_bits(((half + 127) << 23) as u32);
    let second = f32::from_bits(((n - half + 127) << 23) as u32);
    y * first * second
}

/// The error function.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let t = a.min(4.2);
    let t2 = t * t;
    let mut r = (-1.728_534_70e-5_f32).mul_add(t, 3.831_971_26e-4);
    let u = (-3.883_964_38e-3_f32).mul_add(t, 2.425_462_19e-2);
    r = r.mul_add(t2, u);
    r = r.mul_add(t, -1.067_778_77e-1);
    r = r.mul_add(t, -6.348_466_87e-1);
    r = r.mul_add(t, -1.287_175_12e-1);
    r = r.mul_add(t, -t);
    let large = (1.0 - exp(r)).copysign(x);
    let mut q = -5.967_617_03e-4_f32;
    q = q.mul_add(s, 4.991_194_23e-3);
    q = q.mul_add(s, -2.676_813_49e-2);
    q = q.mul_add(s, 1.128_199_25e-1);
    q = q.mul_add(s, -3.761_253_36e-1);
    q = q.mul_add(s, 1.283_791_66e-1);
    let small = q.mul_add(x, x);
    // A NaN fails the comparison and passes through the polynomial.
    if a > 0.927_734_375 { large } else { small }
}

/// `2 sqrt(2 / π)`.
const GELU_SLOPE: f32 = 1.595_769_121_605_730_7;
const GELU_CUBIC: f32 = 0.044_715;

/// `2u` of `0.5 x (1 + tanh u) = x σ(2u)`. The sigmoid form keeps its relative precision where the other cancels.
#[inline(always)]
fn gelu_argument(x: f32) -> f32 {
    GELU_SLOPE * (GELU_CUBIC * x * x).mul_add(x, x)
}

/// `(σ(a), σ'(a))`, by `exp(-|a|)`, which cannot overflow.
#[inline(always)]
fn sigmoid(a: f32) -> (f32, f32) {
    let t = exp(-a.abs());
    let inverse = 1.0 / (1.0 + t);
    let small = t * inverse;
    (if a < 0.0 { small } else { inverse }, small * inverse)
}

#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { 1.0 }
}

#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let (s, ds) = sigmoid(x);
    x.mul_add(ds, s)
}

#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(-gelu_argument(x)))
}

#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let (s, ds) = sigmoid(gelu_argument(x));
    let du = GELU_SLOPE * (3.0 * GELU_CUBIC * x).mul_add(x, 1.0);
    (x * du).mul_add(ds, s)
}

#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const DENSITY: f32 = 0.398_942_280_401_432_7;
    let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * DENSITY).mul_add(exp(-0.5 * x * x), cdf)
}

macro_rules! activations {
    ($act:expr, $level:expr, $loop:ident($($arg:expr),* $(,)?)) => {
        match $act {
            Activation::Relu => $loop::relu($level, $($arg),*),
            Activation::Gelu => $loop::gelu($level, $($arg),*),
            Activation::GeluTanh => $loop::gelu_tanh($level, $($arg),*),
            Activation::Silu => $loop::silu($level, $($arg),*),
        }
    };
}
pub(super) use activations;

macro_rules! forward_loops {
    ($($name:ident)*) => { $(
        by_level! {
            pub(crate) fn $name(x: &[f32], linear: Option<&[f32]>, out: &mut [f32]) {
                match linear {
                    None => for (out, &x) in out.iter_mut().zip(x) { *out = super::$name(x); },
                    Some(linear) => for ((out, &x), &l) in out.iter_mut().zip(x).zip(linear) { *out = super::$name(x) * l; },
                }
            }
        }
    )* };
}

macro_rules! backward_loops {
    ($($name:ident $slope:ident),*) => { $(
        by_level! {
            pub(crate) fn $name(x: &[f32], linear: Option<(&[f32], &mut [f32])>, dout: &[f32], dx: &mut [f32]) {
                match linear {
                    None => for ((dx, &x), &d) in dx.iter_mut().zip(x).zip(dout) { *dx = d * super::$slope(x); },
                    Some((linear, dlinear)) => {
                        for ((((dx, &x), &d), &l), dl) in dx.iter_mut().zip(x).zip(dout).zip(linear).zip(dlinear) {
                            *dx = d * l * super::$slope(x);
                            *dl = d * super::$name(x);
                        }
                    }
                }
            }
        }
    )* };
}

/// `act(x)`, or `act(x) * linear`.
pub(super) mod activate {
    use super::by_level;
    forward_loops! { relu gelu gelu_tanh silu }
}

/// Their gradients.
pub(super) mod activate_backward {
    use super::by_level;
    backward_loops! { relu relu_slope, gelu gelu_slope, gelu_tanh gelu_tanh_slope, silu silu_slope }
}

/// Lanes of the softmax's sums: a value's lane is its index modulo this.
pub(crate) const LANES: usize = 16;

/// Adds lanes pairwise.
#[inline(always)]
pub(crate) fn lane_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

by_level! {
    /// Turns the first `n` products into `exp(scale x - max)` and gives the maximum and the sum. `x` has a whole number
    /// of lanes; what lies past `n` becomes 0.
    pub(crate) fn exponentials(x: &mut [f32], n: usize, scale: f32) -> (f32, f32) {
        for value in x.iter_mut() { *value *= scale; }
        for value in x.iter_mut().skip(n) { *value = f32::NEG_INFINITY; }
        let mut max = [f32::NEG_INFINITY; LANES];
        for chunk in x.as_chunks::<LANES>().0 {
            for lane in 0..LANES { max[lane] = larger(chunk[lane], max[lane]); }
        }
        let max = max.iter().fold(f32::NEG_INFINITY, |a, &b| larger(b, a));
        // A loop of its own, so that it becomes vector code.
        for value in x.iter_mut() { *value = exp(*value - max); }
        for value in x.iter_mut().skip(n) { *value = 0.0; }
        let mut sum = [0.0_f32; LANES];
        for chunk in x.as_chunks::<LANES>().0 {
            for lane in 0..LANES { sum[lane] += chunk[lane]; }
        }
        (max, lane_sum(sum))
    }
}

by_level! {
    /// Whether no value is infinite or NaN.
    pub(crate) fn all_finite(x: &[f32]) -> bool {
        x.iter().fold(0, |most: u32, value| most.max(value.to_bits() & 0x7FFF_FFFF)) < 0x7F80_0000
    }
}

by_level! {
    /// `x / by`.
    pub(crate) fn divide(x: &mut [f32], by: f32) {
        for value in x { *value /= by; }
    }
}
