use super::super::math;
use super::*;
use crate::model::spec::Activation;
use crate::ops::activation;

/// Distance in units of the last place of the expected value.
fn ulps(found: f32, expected: f64) -> f64 {
    let rounded = expected as f32;
    if found == rounded {
        return 0.0;
    }
    let exponent = (rounded.abs().max(f32::MIN_POSITIVE).to_bits() >> 23) as i32 - 127 - 23;
    (f64::from(found) - expected).abs() / 2f64.powi(exponent)
}

/// Every `step`th float of either sign up to `limit`.
fn samples(limit: f32, step: usize) -> impl Iterator<Item = f32> {
    (0..=limit.to_bits()).step_by(step).flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)])
}

#[test]
fn exp_is_within_an_ulp_over_the_whole_range() {
    for x in samples(110.0, 4001) {
        let error = ulps(math::exp(x), f64::from(x).exp());
        // Subnormal results are rounded twice at most to the same spacing.
        assert!(error <= 1.02, "exp({x}): {error} ulp");
    }
    assert_eq!(math::exp(-104.5), 0.0);
    assert_eq!(math::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(math::exp(89.0), f32::INFINITY);
    assert_eq!(math::exp(0.0), 1.0);
    assert!(math::exp(-103.0) > 0.0);
    assert!(math::exp(f32::NAN).is_nan());
}

#[test]
fn erf_is_within_an_ulp() {
    for x in samples(8.0, 9001) {
        let error = ulps(math::erf(x), activation::erf(f64::from(x)));
        assert!(error <= 1.0, "erf({x}): {error} ulp");
    }
    assert_eq!(math::erf(f32::INFINITY), 1.0);
    assert_eq!(math::erf(f32::NEG_INFINITY), -1.0);
    assert!(math::erf(f32::NAN).is_nan());
}

/// Bounds of the absolute error relative to `max(|y|, |x| u)` follow from the steps: 2 to 4 roundings, and for GELU by the
/// error function the cancellation in `1 + erf` (an error of `u` times `|x|`).
#[test]
fn activations_are_as_accurate_as_their_steps() {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    let cpu = &cpus()[0];
    let xs: Vec<f32> = samples(30.0, 20_011).collect();
    let x = Buffer::from_slice(&xs);
    let one = Buffer::from_slice(&vec![1.0; xs.len()]);
    for act in [Relu, Silu, Gelu, GeluTanh] {
        let mut y = unwritten(xs.len());
        cpu.activate(act, &x, None, xs.len(), &mut y).unwrap();
        let mut dx = unwritten(xs.len());
        cpu.activate_backward(act, &x, None, &one, xs.len(), &mut dx).unwrap();
        for (i, &x) in xs.iter().enumerate() {
            let (wide, size) = (f64::from(x), f64::from(x.abs()));
            let expected = activation::forward(act, wide);
            // The argument of the exponential has a few roundings of its own, scaled by its size. GELU's plain loop, by tanh,
            // cancels at the level of float64.
            let bound = match act {
                Relu => 0.0,
                Silu => 5.0 * U * expected.abs(),
                Gelu => 3.0 * U * size,
                GeluTanh => (6.0 + 6.0 * (1.6 * (size + 0.045 * size.powi(3))).min(100.0)) * U * expected.abs(),
            } + 1e-15 * size * f64::from(u8::from(act == GeluTanh))
                + 1e-37;
            assert!((f64::from(y[i]) - expected).abs() <= bound, "{act:?}({x}) = {}, expected {expected}", y[i]);
            let expected = activation::backward(act, wide);
            let bound = if act == Relu { 0.0 } else { 12.0 * U };
            assert!((f64::from(dx[i]) - expected).abs() <= bound, "{act:?}'({x}) = {}, expected {expected}", dx[i]);
        }
    }
}

#[test]
fn activations_keep_nan_and_have_limits() {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    let cpu = &cpus()[0];
    for act in [Relu, Silu, Gelu, GeluTanh] {
        let x = Buffer::from_slice(&[f32::NAN, 1e30, -1e30, -0.0, 88.0, -88.0, 200.0, -200.0]);
        let mut y = unwritten(8);
        cpu.activate(act, &x, None, 8, &mut y).unwrap();
        assert!(y[0].is_nan());
        assert_eq!((y[1], y[2], y[3], y[4], y[6]), (1e30, 0.0, 0.0, 88.0, 200.0), "{act:?}");
        assert!(y[5].abs() < 1e-35 && y[7] == 0.0, "{act:?} {} {}", y[5], y[7]);
        cpu.activate_backward(act, &x, None, &Buffer::from_slice(&[1.0; 8]), 8, &mut y).unwrap();
        assert!(y[0].is_nan() || act == Relu);
        assert!((y[4] - 1.0).abs() < 1e-6 && y[5].abs() < 1e-30 && (y[6] - 1.0).abs() < 1e-6 && y[7] == 0.0, "{act:?}");
    }
}

#[test]
fn activations_are_pure_and_gated_ones_cut_anywhere() {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    let n = 1003;
    let mut random = Random(5);
    let (x, l, d) = (random.values(n), random.values(n), random.values(n));
    let (x, l, d) = (Buffer::from_slice(&x), Buffer::from_slice(&l), Buffer::from_slice(&d));
    for act in [Relu, Silu, Gelu, GeluTanh] {
        let run = |cpu: &Cpu| {
            let (mut y, mut gated, mut dx, mut dl) = (unwritten(n), unwritten(n), unwritten(n), unwritten(n));
            cpu.activate(act, &x, None, n, &mut y).unwrap();
            cpu.activate(act, &x, Some(&l), n, &mut gated).unwrap();
            cpu.activate_backward(act, &x, Some((&l, &mut dl)), &d, n, &mut dx).unwrap();
            (bits(&y), bits(&gated), bits(&dx), bits(&dl))
        };
        let (y, gated, dx, dl) = run(&cpus()[0]);
        let product: Vec<f32> = y.iter().zip(&*l).map(|(&y, l)| f32::from_bits(y) * l).collect();
        assert_eq!(gated, bits(&product));
        for cpu in &cpus()[1..] {
            assert_eq!(run(cpu), (y.clone(), gated.clone(), dx.clone(), dl.clone()), "{act:?}");
        }
        for i in 0..n {
            let (x, l, d) = (f64::from(x[i]), f64::from(l[i]), f64::from(d[i]));
            let expected = d * l * activation::backward(act, x);
            assert!((f64::from(f32::from_bits(dx[i])) - expected).abs() <= 16.0 * U * (d * l).abs());
            let expected = d * activation::forward(act, x);
            assert!((f64::from(f32::from_bits(dl[i])) - expected).abs() <= 12.0 * U * (d * x).abs().max(1e-30));
        }
    }
}
