//! Attention of one query over the keys it sees, one head.

/// Softmax of the scaled products of `q` with each key.
pub fn pattern(q: &[f64], keys: &[Vec<f64>], scale: f64) -> Vec<f64> {
    let scores: Vec<f64> = keys.iter().map(|k| scale * dot(q, k)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|e| e / sum).collect()
}

/// `Σ pattern[i] values[i]`.
pub fn mix(pattern: &[f64], values: &[Vec<f64>]) -> Vec<f64> {
    let mut z = vec![0.0; values.first().map_or(0, Vec::len)];
    for (p, v) in pattern.iter().zip(values) {
        for (z, v) in z.iter_mut().zip(v) {
            *z += p * v;
        }
    }
    z
}

/// Gradients of one query's attention.
pub struct Backward {
    /// By the query.
    pub dq: Vec<f64>,
    /// By each key.
    pub dk: Vec<Vec<f64>>,
    /// By each value.
    pub dv: Vec<Vec<f64>>,
    /// By the pattern.
    pub d_pattern: Vec<f64>,
}

/// Gradients of `Σ dz · z + Σ given · pattern`.
pub fn backward(
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    scale: f64,
    dz: &[f64],
    given: Option<&[f64]>,
) -> Backward {
    let p = pattern(q, keys, scale);
    let d_pattern: Vec<f64> =
        values.iter().enumerate().map(|(i, v)| dot(dz, v) + given.map_or(0.0, |given| given[i])).collect();
    let mean = dot(&p, &d_pattern);
    let d_scores: Vec<f64> = p.iter().zip(&d_pattern).map(|(p, d)| p * (d - mean) * scale).collect();
    Backward {
        dq: mix(&d_scores, keys),
        dk: d_scores.iter().map(|d| q.iter().map(|q| d * q).collect()).collect(),
        dv: p.iter().map(|p| dz.iter().map(|z| p * z).collect()).collect(),
        d_pattern,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
