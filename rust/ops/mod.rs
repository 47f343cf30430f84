//! What each operation of a [`Backend`](crate::backend::Backend) computes: the plain loops that the fast ones are held
//! against, forward beside backward. They work in float64, allocate as they like, and share no code with a backend.

pub mod activation;
pub mod attention;
pub mod edit;
pub mod linear;
pub mod log_prob;
pub mod norm;
pub mod rotary;

#[cfg(test)]
mod tests {
    //! Each backward against central differences of its forward, in float64.

    use super::*;
    use crate::model::spec::{Activation, NormKind};

    fn values(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed * 2 + 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
            })
            .collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Asserts that `gradient` is that of `f` at `x`. A step of 1e-5 leaves an error of about 1e-10 in either part.
    fn assert_gradient(f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
        assert_eq!(x.len(), gradient.len());
        for i in 0..x.len() {
            let at = |step: f64| {
                let mut moved = x.to_vec();
                moved[i] += step;
                f(&moved)
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((expected - gradient[i]).abs() < 1e-8, "{i}: {} for {expected}", gradient[i]);
        }
    }

    #[test]
    fn backwards_are_the_gradients_of_forwards() {
        let (x, w, dy) = (values(1, 6), values(2, 12), values(3, 8));
        assert_gradient(|x| dot(&linear::forward(x, &w, None, 2, 4), &dy), &x, &linear::backward(&dy, &w, 2, 4));

        let (x, gain, bias, dy) = (values(4, 7), values(5, 7), values(6, 7), values(7, 7));
        for kind in [NormKind::Layer, NormKind::Rms] {
            let f = |x: &[f64]| dot(&norm::forward(kind, 1e-5, x, Some(&gain), Some(&bias)), &dy);
            assert_gradient(f, &x, &norm::backward(kind, 1e-5, &x, Some(&gain), &dy));
        }

        let angles = values(8, 3);
        assert_gradient(|x| dot(&rotary::forward(x, &angles), &dy), &x, &rotary::backward(&dy, &angles));

        for act in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            for x in [-3.5, -0.7, 0.2, 1.1, 4.0] {
                assert_gradient(|x| activation::forward(act, x[0]), &[x], &[activation::backward(act, x)]);
            }
        }

        let logits = values(9, 5);
        assert_gradient(|x| log_prob::forward(x, 2).0, &logits, &log_prob::backward(&logits, 2));
    }

    #[test]
    fn attention_backward_is_the_gradient_of_its_forward() {
        let (q, dz, given) = (values(1, 3), values(2, 3), values(3, 4));
        let rows = |seed: u64| -> Vec<Vec<f64>> { (0..4).map(|i| values(seed + i, 3)).collect() };
        let (keys, vals) = (rows(10), rows(20));
        let f = |q: &[f64], keys: &[Vec<f64>], vals: &[Vec<f64>]| {
            let pattern = attention::pattern(q, keys, 0.7);
            dot(&attention::mix(&pattern, vals), &dz) + dot(&pattern, &given)
        };
        let found = attention::backward(&q, &keys, &vals, 0.7, &dz, Some(&given));
        assert_gradient(|q| f(q, &keys, &vals), &q, &found.dq);
        for i in 0..4 {
            let with = |rows: &[Vec<f64>], row: &[f64]| {
                let mut rows = rows.to_vec();
                rows[i] = row.to_vec();
                rows
            };
            assert_gradient(|row| f(&q, &with(&keys, row), &vals), &keys[i], &found.dk[i]);
            assert_gradient(|row| f(&q, &keys, &with(&vals, row)), &vals[i], &found.dv[i]);
        }
        let pattern = attention::pattern(&q, &keys, 0.7);
        let free = |p: &[f64]| dot(&attention::mix(p, &vals), &dz) + dot(p, &given);
        assert_gradient(free, &pattern, &found.d_pattern);
    }

    /// Abramowitz and Stegun, table 7.1, and a C library's values about the seam at 3.
    #[test]
    fn erf_has_its_known_values() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.999, 0.999_977_769_831_400_2),
            (3.001, 0.999_978_048_339_082_2),
            (4.0, 0.999_999_984_582_742_1),
        ] {
            assert!((activation::erf(x) - expected).abs() < 1e-14, "erf({x})");
            assert_eq!(activation::erf(-x), -activation::erf(x));
        }
    }
}
