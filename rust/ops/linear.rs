//! A linear map.

/// `y[r, o] = Σ_i x[r, i] w[o, i] + b[o]`; `x` is `[rows, inputs]`, `w` `[outputs, inputs]`.
pub fn forward(x: &[f64], w: &[f64], bias: Option<&[f64]>, rows: usize, outputs: usize) -> Vec<f64> {
    let inputs = w.len() / outputs;
    let mut y = Vec::with_capacity(rows * outputs);
    for r in 0..rows {
        for o in 0..outputs {
            let mut sum = bias.map_or(0.0, |b| b[o]);
            for i in 0..inputs {
                sum += x[r * inputs + i] * w[o * inputs + i];
            }
            y.push(sum);
        }
    }
    y
}

/// `dx[r, i] = Σ_o dy[r, o] w[o, i]`.
pub fn backward(dy: &[f64], w: &[f64], rows: usize, outputs: usize) -> Vec<f64> {
    let inputs = w.len() / outputs;
    let mut dx = vec![0.0; rows * inputs];
    for r in 0..rows {
        for o in 0..outputs {
            for i in 0..inputs {
                dx[r * inputs + i] += dy[r * outputs + o] * w[o * inputs + i];
            }
        }
    }
    dx
}
