use proptest::prelude::*;

use super::*;
use crate::ops::{linear, log_prob};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn log_probs_are_right_and_pure(seed: u64, rows in 1usize..60, outputs in 1usize..2500, inputs in 1usize..30) {
        let mut random = Random(seed);
        let (h, w) = (random.values(rows * inputs), random.values(outputs * inputs));
        let targets: Vec<u32> = (0..rows).map(|_| random.below(outputs) as u32).collect();
        let weights = random.values(rows);
        let run = |cpu: &Cpu, from: usize, to: usize| {
            let weight = cpu.pack(matrix(&w, outputs, inputs)).unwrap();
            let transposed = cpu.pack_transposed(&weight).unwrap();
            let x = Buffer::from_slice(&h[from * inputs..to * inputs]);
            let n = to - from;
            let (log_probs, lse) = cpu.log_prob(&x, n, &weight, &targets[from..to], None).unwrap();
            let mut dh = Buffer::from_slice(&vec![0.5; n * inputs]);
            cpu.log_prob_backward(&x, n, &weight, &transposed, &targets[from..to], &lse, &weights[from..to], &mut dh, None).unwrap();
            (log_probs, lse, dh.to_vec())
        };
        let (log_probs, lse, dh) = run(&cpus()[0], 0, rows);
        let from = random.below(rows);
        for cpu in &cpus()[1..4] {
            let (l, s, d) = run(cpu, 0, rows);
            prop_assert_eq!((bits(&l), bits(&s), bits(&d)), (bits(&log_probs), bits(&lse), bits(&dh)));
        }
        for cpu in &cpus()[2..] {
            let (l, s, d) = run(cpu, from, (from + 2).min(rows));
            let end = from + l.len();
            prop_assert_eq!(bits(&l), bits(&log_probs[from..end]));
            prop_assert_eq!(bits(&s), bits(&lse[from..end]));
            prop_assert_eq!(bits(&d), bits(&dh[from * inputs..end * inputs]));
        }
        let logits = linear::forward(&wide(&h), &wide(&w), None, rows, outputs);
        // Products of about `inputs` terms of size at most 4.
        let bound = U * (inputs * inputs) as f64 * 4.0;
        let mut d_logits = Vec::new();
        for r in 0..rows {
            let row = &logits[r * outputs..(r + 1) * outputs];
            let (expected, total) = log_prob::forward(row, targets[r] as usize);
            prop_assert!((f64::from(log_probs[r]) - expected).abs() <= bound + 80.0 * U + U * expected.abs());
            prop_assert!((f64::from(lse[r]) - total).abs() <= bound + 80.0 * U + U * total.abs());
            d_logits.extend(log_prob::backward(row, targets[r] as usize).iter().map(|d| d * f64::from(weights[r])));
        }
        let expected: Vec<f64> = linear::backward(&d_logits, &wide(&w), rows, outputs).iter().map(|d| d + 0.5).collect();
        assert_close("log_prob_backward", &dh, &expected, |i| {
            f64::from(weights[i / inputs].abs()) * (2.0 * bound + 500.0 * U) * 2.0 + 2.0 * U * expected[i].abs()
        });
    }

    #[test]
    fn the_best_outputs_are_those_of_a_full_sort(seed: u64, rows in 1usize..5, outputs in 1usize..2500, k in 0usize..300, terms in 1usize..3) {
        let mut random = Random(seed);
        let inputs = 3;
        // Few values, so that ties happen; small integers, so that every sum is exact.
        let mut small = |n: usize| -> Vec<f32> { (0..n).map(|_| random.below(7) as f32 - 3.0).collect() };
        let data: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)> =
            (0..terms).map(|_| (small(rows * inputs), small(outputs * inputs), small(rows))).collect();
        let allowed: Vec<bool> = (0..outputs).map(|_| random.below(3) > 0).collect();
        let mut scores = vec![0.0; rows * outputs];
        for (x, w, scale) in &data {
            let products = linear::forward(&wide(x), &wide(w), None, rows, outputs);
            scores.iter_mut().zip(products).enumerate().for_each(|(i, (s, p))| *s += f64::from(scale[i / outputs]) * p);
        }
        for cpu in cpus() {
            let buffers: Vec<_> = data
                .iter()
                .map(|(x, w, s)| (Buffer::from_slice(x), cpu.pack(matrix(w, outputs, inputs)).unwrap(), &s[..]))
                .collect();
            let terms: Vec<_> = buffers.iter().map(|(x, w, s)| (x, w, *s)).collect();
            let found = cpu.top_outputs(&terms, rows, &allowed, k).unwrap();
            for (r, found) in found.iter().enumerate() {
                let row = &scores[r * outputs..(r + 1) * outputs];
                let expected: Vec<(u32, f32)> =
                    log_prob::top(row, &allowed, k).into_iter().map(|i| (i as u32, row[i] as f32)).collect();
                prop_assert_eq!(found, &expected);
            }
        }
    }
}

#[test]
fn nan_is_never_among_the_best_and_too_few_give_fewer() {
    for cpu in cpus() {
        let weight = cpu.pack(matrix(&[1.0, f32::NAN, 3.0, f32::NEG_INFINITY, 2.0], 5, 1)).unwrap();
        let x = Buffer::from_slice(&[1.0]);
        let best = |allowed: &[bool], k| cpu.top_outputs(&[(&x, &weight, &[1.0])], 1, allowed, k).unwrap().remove(0);
        assert_eq!(best(&[true; 5], 9), vec![(2, 3.0), (4, 2.0), (0, 1.0), (3, f32::NEG_INFINITY)]);
        assert_eq!(best(&[true, true, false, true, true], 2), vec![(4, 2.0), (0, 1.0)]);
        assert_eq!(best(&[false; 5], 2), vec![]);
        assert_eq!(best(&[true; 5], 0), vec![]);
    }
}
