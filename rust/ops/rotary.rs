//! Rotary positions, half split.

/// Rotates the first `2 * angles.len()` dimensions of one head: dimension `i` with `i + angles.len()`.
pub fn forward(x: &[f64], angles: &[f64]) -> Vec<f64> {
    let half = angles.len();
    let mut y = x.to_vec();
    for (i, angle) in angles.iter().enumerate() {
        let (sin, cos) = angle.sin_cos();
        y[i] = x[i] * cos - x[i + half] * sin;
        y[i + half] = x[i + half] * cos + x[i] * sin;
    }
    y
}

/// The gradient: the rotation back.
pub fn backward(dy: &[f64], angles: &[f64]) -> Vec<f64> {
    forward(dy, &angles.iter().map(|angle| -angle).collect::<Vec<_>>())
}
