//! The Pareto front of value against cross-entropy.

/// Indices of the points `(value, cross-entropy)` that no other one beats: a point is left out if another has at least
/// its value and at most its cross-entropy, and differs in one (of equal points the first stays). In order of rising
/// cross-entropy, and so of rising value. Points with a NaN are left out.
pub fn pareto(points: &[(f32, f32)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).filter(|&i| !points[i].0.is_nan() && !points[i].1.is_nan()).collect();
    order.sort_by(|&a, &b| {
        let ((va, ea), (vb, eb)) = (points[a], points[b]);
        ea.total_cmp(&eb).then(vb.total_cmp(&va)).then(a.cmp(&b))
    });
    let mut front: Vec<usize> = Vec::new();
    for i in order {
        if front.last().is_none_or(|&last| points[i].0 > points[last].0) {
            front.push(i);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn front_is_what_the_definition_says(points in prop::collection::vec((0_u8..8, 0_u8..8), 0..40)) {
            let points: Vec<(f32, f32)> = points.into_iter().map(|(v, e)| (f32::from(v), f32::from(e))).collect();
            let beaten = |i: usize| (0..points.len()).any(|j| {
                let ((vi, ei), (vj, ej)) = (points[i], points[j]);
                vj >= vi && ej <= ei && (vj > vi || ej < ei || j < i)
            });
            let mut expected: Vec<usize> = (0..points.len()).filter(|&i| !beaten(i)).collect();
            expected.sort_by(|&a, &b| points[a].1.total_cmp(&points[b].1));
            prop_assert_eq!(pareto(&points), expected);
        }
    }
}
