//! Reach: how far a feature can go at all, whatever the input.
//!
//! A norm bounds what a linear map behind it can give. After an RMS norm over `d` dimensions `‖u‖² ≤ d`, after a
//! LayerNorm also `Σu = 0`; with gain `g`, norm bias `β`, weights `w` and bias `b`, the feature is
//! `w·(g∘u + β) + b`, so it lies within `√d ‖w∘g‖` of `w·β + b` (for LayerNorm with the mean of `w∘g` removed), and both
//! ends are attained by `u` along `±w∘g`. Before anything mixes tokens, a feature of a model without learned positions
//! is a function of one token, and the vocabulary is finite: its ends are found by trying all of it.

use crate::backend::Check;
use crate::engine::request::{Columns, Context, Engine, Parent, Read, Request, RowRef, Segment, WeightKind};
use crate::engine::site::{Point, Site};
use crate::error::Result;
use crate::model::spec::{Activation, ModelSpec, NormKind, Positions};

/// Tokens tried at a time.
const VOCABULARY_BATCH: usize = 1024;

/// Bounds of an engine's features. What sites share is computed once.
pub struct Reach<'a> {
    engine: &'a dyn Engine,
    check: Check<'a>,
    /// The last layer asked about, and the bounds of its linear maps (the input map, the linear part's).
    linear: (usize, [Option<Vec<Interval>>; 2]),
}

/// Lowest and highest value.
pub type Interval = (f64, f64);

impl<'a> Reach<'a> {
    /// Of this engine's model; `check` may end the work.
    pub fn new(engine: &'a dyn Engine, check: Check<'a>) -> Self {
        Self { engine, check, linear: (0, [None, None]) }
    }

    /// `(lowest, highest)` value that each feature of a site can have; `None` where no bound is known.
    ///
    /// The bounds hold for the engine's float32 arithmetic, not only for real numbers: they are widened by the worst
    /// rounding of the norm and of an inner product in any order. For LayerNorm this takes the residual's mean to be at
    /// most 2¹⁰ of its standard deviations.
    pub fn of(&mut self, site: Site) -> Result<Option<Vec<Interval>>> {
        let spec = self.engine.spec();
        let (activation, gated) = (spec.activation, spec.gated);
        Ok(match site.point {
            Point::Pre => Some(self.map(site.layer, 0)?.to_vec()),
            Point::PreLinear => Some(self.map(site.layer, 1)?.to_vec()),
            Point::Post => {
                let post: Vec<_> = self.map(site.layer, 0)?.iter().map(|&range| image(activation, range)).collect();
                Some(if gated {
                    post.into_iter().zip(self.map(site.layer, 1)?).map(|(a, &b)| product(a, b)).collect()
                } else {
                    post
                })
            }
            _ if one_token(site, spec) => Some(vocabulary(self.engine, site, self.check)?),
            _ => None,
        })
    }

    /// The bounds of a layer's input map (0) or of its linear part's (1).
    fn map(&mut self, layer: usize, which: usize) -> Result<&[Interval]> {
        if self.linear.0 != layer {
            self.linear = (layer, [None, None]);
        }
        if self.linear.1[which].is_none() {
            if let Some(check) = self.check {
                check()?;
            }
            let kinds = [(WeightKind::In, WeightKind::InBias), (WeightKind::InLinear, WeightKind::InLinearBias)][which];
            self.linear.1[which] = Some(linear(self.engine, layer, kinds.0, kinds.1)?);
        }
        Ok(self.linear.1[which].as_deref().unwrap_or(&[]))
    }
}

/// Whether a site's values depend on nothing but the token.
fn one_token(site: Site, spec: &ModelSpec) -> bool {
    let learned = spec.positions == Positions::Learned;
    site.point == Point::Embed
        || (site.layer == 0 && !learned && matches!(site.point, Point::ResidPre | Point::Q | Point::K | Point::V))
}

fn vocabulary(engine: &dyn Engine, site: Site, check: Check<'_>) -> Result<Vec<(f64, f64)>> {
    let spec = engine.spec();
    let mut range = vec![(f64::INFINITY, f64::NEG_INFINITY); site.width(spec, 0)];
    let ids: Vec<u32> = (0..spec.d_vocab as u32).collect();
    for batch in ids.chunks(VOCABULARY_BATCH) {
        let request = Request {
            segments: batch.iter().map(|&id| Segment { parent: Parent::Root, tokens: vec![id] }).collect(),
            reads: vec![Read::Values {
                site,
                rows: (0..batch.len()).map(|i| RowRef::clean(i, 0)).collect(),
                columns: Columns::All,
            }],
            ..Request::default()
        };
        let response = engine.run(&request, &mut Context { check, host: None })?;
        for output in &response.outputs {
            for row in output.data.chunks_exact(range.len()) {
                for ((low, high), &value) in range.iter_mut().zip(row) {
                    *low = low.min(f64::from(value));
                    *high = high.max(f64::from(value));
                }
            }
        }
    }
    Ok(range)
}

/// The bound of every output of a linear map of the MLP.
fn linear(engine: &dyn Engine, layer: usize, weight: WeightKind, bias: WeightKind) -> Result<Vec<(f64, f64)>> {
    let spec = engine.spec();
    let gain = engine.weight_row(WeightKind::MlpNormGain, layer, 0)?;
    let shift = engine.weight_row(WeightKind::MlpNormBias, layer, 0)?;
    let bias = engine.weight_row(bias, layer, 0)?;
    (0..spec.d_mlp)
        .map(|row| Ok(bound(spec.norm, &engine.weight_row(weight, layer, row)?, &gain, &shift, bias[row])))
        .collect()
}

fn bound(norm: NormKind, weight: &[f32], gain: &[f32], shift: &[f32], bias: f32) -> (f64, f64) {
    let d = weight.len() as f64;
    let (mut total, mut square, mut centre, mut shifted) = (0.0, 0.0, f64::from(bias), 0.0);
    for ((&w, &g), &s) in weight.iter().zip(gain).zip(shift) {
        let (scaled, moved) = (f64::from(w) * f64::from(g), f64::from(w) * f64::from(s));
        total += scaled;
        square += scaled * scaled;
        centre += moved;
        shifted += moved.abs();
    }
    let centred = (square - total * total / d).max(0.0);
    let unit = 2_f64.powi(-23);
    // |Σ w y| rounds by at most (d + 16) units of Σ |w y|, which Cauchy and Schwarz bound.
    let magnitude = (d * square).sqrt() + shifted + f64::from(bias).abs();
    let mut slack = (d + 16.0) * unit * magnitude;
    let radius = match norm {
        NormKind::Rms => (d * square).sqrt(),
        NormKind::Layer => {
            // A mean of 2^10 standard deviations is removed up to 2^-13 of one.
            slack += total.abs() * 2_f64.powi(-12);
            (d * centred).sqrt()
        }
    };
    (centre - radius - slack, centre + radius + slack)
}

/// An interval that holds the activation of every value of an interval.
fn image(activation: Activation, (low, high): (f64, f64)) -> (f64, f64) {
    // Minimum of the activation; each lies between x/2 and x for positive x, and between the minimum and 0 for
    // negative x.
    let minimum = match activation {
        Activation::Relu => 0.0,
        Activation::Gelu => -0.169_972,
        Activation::GeluTanh => -0.170_041,
        Activation::Silu => -0.278_465,
    };
    let slack = 1e-5;
    let half = if activation == Activation::Relu { 1.0 } else { 0.5 };
    let bottom = if low >= 0.0 { half * low * (1.0 - slack) } else { minimum };
    (bottom, high.max(0.0) * (1.0 + slack))
}

fn product(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let corners = [a.0 * b.0, a.0 * b.1, a.1 * b.0, a.1 * b.1];
    let low = corners.iter().copied().fold(f64::INFINITY, f64::min);
    let high = corners.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (low - low.abs() * 1e-6, high + high.abs() * 1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The feature, in float64, of an input as a norm gives it.
    fn value(u: &[f64], weight: &[f32], gain: &[f32], shift: &[f32], bias: f32) -> f64 {
        let inner: f64 =
            (0..u.len()).map(|i| f64::from(weight[i]) * (f64::from(gain[i]) * u[i] + f64::from(shift[i]))).sum();
        inner + f64::from(bias)
    }

    fn normalise(norm: NormKind, x: &[f64]) -> Vec<f64> {
        let d = x.len() as f64;
        let mean = if norm == NormKind::Layer { x.iter().sum::<f64>() / d } else { 0.0 };
        let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d;
        x.iter().map(|v| (v - mean) / (square + 1e-9).sqrt()).collect()
    }

    proptest! {
        #[test]
        fn holds_for_any_input_and_is_attained(
            rows in prop::collection::vec((-2_f32..2.0, 0.1_f32..2.0, -1_f32..1.0, -3_f64..3.0), 3..40),
            bias in -2_f32..2.0,
        ) {
            let weight: Vec<f32> = rows.iter().map(|r| r.0).collect();
            let gain: Vec<f32> = rows.iter().map(|r| r.1).collect();
            let shift: Vec<f32> = rows.iter().map(|r| r.2).collect();
            let input: Vec<f64> = rows.iter().map(|r| r.3).collect();
            for norm in [NormKind::Rms, NormKind::Layer] {
                let (low, high) = bound(norm, &weight, &gain, &shift, bias);
                let at = |x: &[f64]| value(&normalise(norm, x), &weight, &gain, &shift, bias);
                let found = at(&input);
                prop_assert!(low <= found && found <= high);
                // Along w∘g (whose mean the LayerNorm removes itself), large enough that eps does not matter.
                let along: Vec<f64> =
                    weight.iter().zip(&gain).map(|(&w, &g)| 1e3 * f64::from(w) * f64::from(g)).collect();
                let against: Vec<f64> = along.iter().map(|x| -x).collect();
                let width = (high - low).max(1e-3);
                prop_assert!((high - at(&along)).abs() <= 0.01 * width);
                prop_assert!((at(&against) - low).abs() <= 0.01 * width);
            }
        }

        #[test]
        fn images_hold_what_they_should(low in -5_f64..5.0, span in 0_f64..8.0, t in 0_f64..=1.0) {
            let x = low + t * span;
            let silu = x / (1.0 + (-x).exp());
            let tanh = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
            for (activation, y) in
                [(Activation::Silu, silu), (Activation::GeluTanh, tanh), (Activation::Relu, x.max(0.0))]
            {
                let (bottom, top) = image(activation, (low, low + span));
                prop_assert!(bottom <= y && y <= top, "{activation:?} {x} {y} {bottom} {top}");
            }
        }
    }
}
