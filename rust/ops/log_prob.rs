//! Log-probabilities and the best outputs of one row.

/// `(log softmax(logits)[target], log Σ exp logits)`.
pub fn forward(logits: &[f64], target: usize) -> (f64, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
    (logits[target] - lse, lse)
}

/// `∂ log softmax(logits)[target] / ∂ logits`.
pub fn backward(logits: &[f64], target: usize) -> Vec<f64> {
    let (_, lse) = forward(logits, target);
    logits.iter().enumerate().map(|(i, l)| f64::from(u8::from(i == target)) - (l - lse).exp()).collect()
}

/// The `k` best allowed outputs: highest first, lower index first on a tie, NaN never.
pub fn top(scores: &[f64], allowed: &[bool], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| allowed[i] && !scores[i].is_nan()).collect();
    // A stable sort, so that equal scores (and the two zeros) stay in index order.
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(std::cmp::Ordering::Equal));
    order.truncate(k);
    order
}
