//! Norms of a row.

use crate::model::spec::NormKind;

/// What a row loses and is divided by.
fn statistics(kind: NormKind, eps: f64, x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
    let square = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, (square + eps).sqrt())
}

/// `(x - mean) / √(variance + eps) · gain + bias` (layer), `x / √(mean x² + eps) · gain + bias` (RMS).
pub fn forward(kind: NormKind, eps: f64, x: &[f64], gain: Option<&[f64]>, bias: Option<&[f64]>) -> Vec<f64> {
    let (mean, divisor) = statistics(kind, eps, x);
    let affine = |(i, v): (usize, &f64)| (v - mean) / divisor * gain.map_or(1.0, |g| g[i]) + bias.map_or(0.0, |b| b[i]);
    x.iter().enumerate().map(affine).collect()
}

/// `∂/∂x Σ_i dy[i] y[i]`.
pub fn backward(kind: NormKind, eps: f64, x: &[f64], gain: Option<&[f64]>, dy: &[f64]) -> Vec<f64> {
    let (mean, divisor) = statistics(kind, eps, x);
    let n = x.len() as f64;
    let t: Vec<f64> = x.iter().map(|v| (v - mean) / divisor).collect();
    let g: Vec<f64> = dy.iter().enumerate().map(|(i, d)| d * gain.map_or(1.0, |g| g[i])).collect();
    let g_mean = if kind == NormKind::Layer { g.iter().sum::<f64>() / n } else { 0.0 };
    let g_t = g.iter().zip(&t).map(|(g, t)| g * t).sum::<f64>() / n;
    g.iter().zip(&t).map(|(g, t)| (g - g_mean - t * g_t) / divisor).collect()
}
