use proptest::prelude::*;

use super::*;
use crate::engine::request::EditOp;
use crate::model::spec::NormKind;
use crate::ops;

const KINDS: [NormKind; 2] = [NormKind::Layer, NormKind::Rms];

fn norm(cpu: &Cpu, kind: NormKind, x: &[f32], width: usize, gain: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = unwritten(x.len());
    let (gain, bias) = (Buffer::from_slice(gain), bias.map(Buffer::from_slice));
    let rows = x.len() / width;
    cpu.norm(kind, 1e-5, &Buffer::from_slice(x), rows, width, Some(&gain), bias.as_ref(), &mut out).unwrap();
    out.to_vec()
}

fn norm_backward(cpu: &Cpu, kind: NormKind, x: &[f32], width: usize, gain: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = Buffer::from_slice(&vec![1.0; x.len()]);
    let (x, dy, gain) = (Buffer::from_slice(x), Buffer::from_slice(dy), Buffer::from_slice(gain));
    cpu.norm_backward(kind, 1e-5, &x, x.len() / width, width, Some(&gain), &dy, &mut dx).unwrap();
    dx.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn norms_are_right_and_pure(seed: u64, rows in 1usize..9, width in 1usize..150, offset in -3f32..3.0) {
        let mut random = Random(seed);
        let x: Vec<f32> = random.values(rows * width).iter().map(|v| v + offset).collect();
        let (gain, bias, dy) = (random.values(width), random.values(width), random.values(rows * width));
        for kind in KINDS {
            let whole = norm(&cpus()[0], kind, &x, width, &gain, Some(&bias));
            let back = norm_backward(&cpus()[0], kind, &x, width, &gain, &dy);
            for cpu in cpus() {
                prop_assert_eq!(bits(&whole), bits(&norm(cpu, kind, &x, width, &gain, Some(&bias))));
                prop_assert_eq!(bits(&back), bits(&norm_backward(cpu, kind, &x, width, &gain, &dy)));
                // Cut in front of the gain.
                let xs = Buffer::from_slice(&x);
                let (g, b) = (Buffer::from_slice(&gain), Buffer::from_slice(&bias));
                let (mut t, mut y) = (unwritten(x.len()), unwritten(x.len()));
                cpu.norm(kind, 1e-5, &xs, rows, width, None, None, &mut t).unwrap();
                cpu.affine(&t, rows, width, Some(&g), Some(&b), &mut y).unwrap();
                prop_assert_eq!(bits(&whole), bits(&y));
            }
            for r in 0..rows {
                let at = r * width..(r + 1) * width;
                let one = norm(&cpus()[3], kind, &x[at.clone()], width, &gain, Some(&bias));
                prop_assert_eq!(bits(&whole[at.clone()]), bits(&one));
                let (row, dy) = (wide(&x[at.clone()]), wide(&dy[at.clone()]));
                let eps = f64::from(1e-5_f32);
                let (g, b) = (wide(&gain), wide(&bias));
                let expected = ops::norm::forward(kind, eps, &row, Some(&g), Some(&b));
                // The mean's rounding moves a value by u |mean| / divisor, the other steps by a unit of themselves each.
                let (mean, divisor) = moments(kind, &row);
                assert_close("norm", &whole[at.clone()], &expected, |i| {
                    let t = ((row[i] - mean) / divisor).abs();
                    U * (g[i].abs() * (4.0 * t + (mean.abs() + row[i].abs()) / divisor * 1.01) + expected[i].abs())
                });
                let expected: Vec<f64> = ops::norm::backward(kind, eps, &row, Some(&g), &dy).iter().map(|d| d + 1.0).collect();
                let size = dy.iter().zip(&g).map(|(d, g)| (d * g).abs()).fold(0.0, f64::max) / divisor;
                // How far the mean's rounding moves every normalised value.
                let shift = 1.0 + mean.abs() / divisor;
                let t_max = row.iter().map(|v| ((v - mean) / divisor).abs()).fold(1.0, f64::max);
                assert_close("norm_backward", &back[at], &expected, |i| {
                    U * (16.0 * size * shift * t_max * t_max + 2.0 * expected[i].abs())
                });
            }
        }
    }

    #[test]
    fn moves_and_sums_of_rows(seed: u64, rows in 1usize..9, width in 1usize..40, picked in 1usize..20) {
        let mut random = Random(seed);
        let (x, y) = (random.values(rows * width), random.values(rows * width));
        let list: Vec<u32> = (0..picked).map(|_| random.below(rows) as u32).collect();
        let mut distinct: Vec<u32> = (0..rows as u32).collect();
        (0..rows).for_each(|i| distinct.swap(i, random.below(rows)));
        let vector = random.values(width);
        for cpu in cpus() {
            let (a, b) = (Buffer::from_slice(&x), Buffer::from_slice(&y));
            let row = |r: u32| &x[r as usize * width..][..width];
            let mut out = unwritten(picked * width);
            cpu.gather(&a, width, &list, &mut out).unwrap();
            prop_assert_eq!(bits(&out), bits(&list.iter().flat_map(|&r| row(r).to_vec()).collect::<Vec<_>>()));
            let mut grown = Buffer::zeros((rows + picked) * width);
            grown[..rows * width].copy_from_slice(&x);
            cpu.append_rows(&mut grown, width, &list, rows).unwrap();
            prop_assert_eq!(bits(&grown[rows * width..]), bits(&out));
            let mut sum = unwritten(rows * width);
            cpu.add(&a, &b, rows * width, &mut sum).unwrap();
            let mut same = Buffer::from_slice(&x);
            cpu.add_assign(&mut same, &b, rows * width).unwrap();
            let plain: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
            prop_assert_eq!(bits(&sum), bits(&plain));
            prop_assert_eq!(bits(&same), bits(&plain));
            let mut scattered = Buffer::from_slice(&y);
            cpu.scatter_add(&a, width, &distinct, &mut scattered).unwrap();
            for (i, &r) in distinct.iter().enumerate() {
                for c in 0..width {
                    let at = r as usize * width + c;
                    prop_assert_eq!(scattered[at].to_bits(), (y[at] + x[i * width + c]).to_bits());
                }
            }
            let found = cpu.project(&a, width, &list, &vector).unwrap();
            for (&r, found) in list.iter().zip(found) {
                let mut lanes = [0.0_f64; 8];
                row(r).iter().zip(&vector).enumerate().for_each(|(i, (&x, &v))| lanes[i % 8] += f64::from(x) * f64::from(v));
                let expected = lanes[1..].iter().fold(lanes[0], |sum, lane| sum + lane) as f32;
                prop_assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
    }

    #[test]
    fn rotation_is_right_pure_and_turns_back(seed: u64, rows in 1usize..9, heads in 1usize..4, half in 1usize..9, rest in 0usize..5) {
        let d = 2 * half + rest;
        let mut random = Random(seed);
        let x = random.values(rows * heads * d);
        let positions: Vec<u32> = (0..rows).map(|_| random.below(50) as u32).collect();
        let angles: Vec<Vec<f64>> =
            (0..50).map(|p| (0..half).map(|i| f64::from(p) * 0.9f64.powi(i as i32)).collect()).collect();
        let table = |f: fn(f64) -> f64| Buffer::from_slice(&angles.iter().flatten().map(|&a| f(a) as f32).collect::<Vec<_>>());
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let run = |cpu: &Cpu, x: &[f32], inverse| {
            let mut out = unwritten(x.len());
            cpu.rotate(&Buffer::from_slice(x), &positions, heads, d, &cos, &sin, half, inverse, &mut out).unwrap();
            out.to_vec()
        };
        let turned = run(&cpus()[0], &x, false);
        for cpu in &cpus()[1..] {
            prop_assert_eq!(bits(&turned), bits(&run(cpu, &x, false)));
        }
        for (i, (y, x)) in turned.chunks(d).zip(x.chunks(d)).enumerate() {
            let angles = &angles[positions[i / heads] as usize];
            assert_close("rotate", y, &ops::rotary::forward(&wide(x), angles), |_| 16.0 * U);
        }
        for (i, (y, x)) in run(&cpus()[0], &x, true).chunks(d).zip(x.chunks(d)).enumerate() {
            let angles = &angles[positions[i / heads] as usize];
            assert_close("rotate back", y, &ops::rotary::backward(&wide(x), angles), |_| 16.0 * U);
        }
    }

    #[test]
    fn edits_change_what_they_name(seed: u64, rows in 1usize..6, width in 1usize..12, form in 0usize..3, all: bool) {
        let mut random = Random(seed);
        let x = random.values(rows * width);
        let list: Vec<u32> = (0..rows as u32).filter(|_| random.below(2) == 0).collect();
        let mut columns: Vec<u32> = (0..width as u32).filter(|_| random.below(2) == 0).collect();
        if all {
            columns = (0..width as u32).collect();
        }
        let count = [1, columns.len(), columns.len() * list.len()][form];
        let value = |values: &[f32], r: usize, c: usize| values[[0, c, r * columns.len() + c][form]];
        for op in [EditOp::Set, EditOp::Add, EditOp::Scale, EditOp::Clamp] {
            let low = random.values(count);
            let high = if op == EditOp::Clamp { random.values(count) } else { Vec::new() };
            let mut edited = Buffer::from_slice(&x);
            let given: Vec<f32> = low.iter().chain(&high).copied().collect();
            cpus()[2].edit(&mut edited, width, &list, (!all).then_some(&columns[..]), op, &given).unwrap();
            let mut expected = x.clone();
            for (r, &row) in list.iter().enumerate() {
                for (c, &column) in columns.iter().enumerate() {
                    let cell = &mut expected[row as usize * width + column as usize];
                    let low = value(&low, r, c);
                    let high = if op == EditOp::Clamp { value(&high, r, c) } else { low };
                    // Exact: float64 rounds the same sum or product once.
                    *cell = ops::edit::forward(op, f64::from(*cell), (f64::from(low), f64::from(high))) as f32;
                }
            }
            prop_assert_eq!(bits(&edited), bits(&expected));
        }
    }
}

/// Mean and divisor, as `ops::norm` has them.
fn moments(kind: NormKind, x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = if kind == NormKind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
    (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt())
}
