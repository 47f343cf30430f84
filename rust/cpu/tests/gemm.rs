use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::backend::{Gemm, PANEL};
use crate::error::Error;
use crate::ops::linear;

struct Case {
    outputs: usize,
    inputs: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(seed: u64, rows: usize, outputs: usize, inputs: usize) -> Self {
        let mut random = Random(seed);
        let (x, w) = (random.values(rows * inputs), random.values(outputs * inputs));
        Self { outputs, inputs, x, w, bias: random.values(outputs) }
    }

    /// Some rows, some panels, on one backend.
    fn run(&self, cpu: &Cpu, rows: std::ops::Range<usize>, bias: bool, panels: Option<&[u32]>) -> Vec<f32> {
        let weight = cpu.pack(matrix(&self.w, self.outputs, self.inputs)).unwrap();
        let x = Buffer::from_slice(&self.x[rows.start * self.inputs..rows.end * self.inputs]);
        let b = Buffer::from_slice(&self.bias);
        let width = panels.map_or(self.outputs, |list| list.len() * PANEL);
        let mut out = unwritten(rows.len() * width);
        let job = Gemm { x: &x, rows: rows.len(), weight: &weight, bias: bias.then_some(&b), panels, out: &mut out };
        cpu.gemm(&mut [job], None).unwrap();
        out.to_vec()
    }
}

#[test]
fn gemm_equals_the_plain_loop() {
    for (seed, (rows, outputs, inputs)) in
        [(1, 1, 1), (1, 17, 5), (5, 16, 192), (6, 33, 193), (7, 40, 385), (100, 24, 50), (12, 100, 1800)]
            .into_iter()
            .enumerate()
    {
        let case = Case::new(seed as u64, rows, outputs, inputs);
        let expected = linear::forward(&wide(&case.x), &wide(&case.w), Some(&wide(&case.bias)), rows, outputs);
        let magnitude = |values: &[f32]| values.iter().map(|v| f64::from(v.abs())).collect::<Vec<_>>();
        let size =
            linear::forward(&magnitude(&case.x), &magnitude(&case.w), Some(&magnitude(&case.bias)), rows, outputs);
        // A chain of at most 192, then a sum of the blocks and the bias: the textbook bound.
        let depth = inputs.min(192) + inputs.div_ceil(192) + 1;
        let found = case.run(&cpus()[0], 0..rows, true, None);
        assert_close("gemm", &found, &expected, |i| depth as f64 * U * size[i]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gemm_rows_are_pure(seed: u64, rows in 1usize..40, outputs in 1usize..70, inputs in 1usize..1700, bias: bool) {
        let case = Case::new(seed, rows, outputs, inputs);
        let whole = case.run(&cpus()[0], 0..rows, bias, None);
        for cpu in &cpus()[1..] {
            prop_assert_eq!(bits(&whole), bits(&case.run(cpu, 0..rows, bias, None)));
        }
        let mut random = Random(seed);
        let from = random.below(rows);
        let to = from + 1 + random.below(rows - from);
        let panels: Vec<u32> = (0..outputs.div_ceil(PANEL) as u32).rev().filter(|_| random.below(2) == 0).collect();
        for cpu in cpus() {
            prop_assert_eq!(bits(&whole[from * outputs..to * outputs]), bits(&case.run(cpu, from..to, bias, None)));
            let part = case.run(cpu, from..to, bias, Some(&panels));
            for (r, row) in part.chunks(PANEL * panels.len().max(1)).enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    let column = panels[j / PANEL] as usize * PANEL + j % PANEL;
                    let expected = if column < outputs { whole[(from + r) * outputs + column] } else { 0.0 };
                    prop_assert_eq!(value.to_bits(), expected.to_bits());
                }
            }
        }
    }

    #[test]
    fn packing_keeps_every_element(seed: u64, outputs in 1usize..50, inputs in 1usize..420, transposed: bool) {
        let w = Random(seed).values(outputs * inputs);
        let at = |o: usize, i: usize| if transposed { w[i * outputs + o] } else { w[o * inputs + i] };
        let (output_stride, input_stride) = if transposed { (1, outputs) } else { (inputs, 1) };
        let view = MatrixView { data: &w, outputs, inputs, output_stride, input_stride };
        for cpu in cpus() {
            let weight = cpu.pack(view).unwrap();
            let back = cpu.pack_transposed(&weight).unwrap();
            prop_assert_eq!((back.outputs(), back.inputs()), (inputs, outputs));
            for o in 0..outputs {
                let row: Vec<f32> = (0..inputs).map(|i| at(o, i)).collect();
                prop_assert_eq!(&cpu.weight_row(&weight, o).unwrap(), &row);
            }
            for i in 0..inputs {
                let column: Vec<f32> = (0..outputs).map(|o| at(o, i)).collect();
                prop_assert_eq!(&cpu.weight_row(&back, i).unwrap(), &column);
            }
        }
    }
}

#[test]
fn padding_columns_are_zero_even_beside_infinities() {
    let mut case = Case::new(3, 2, 18, 8);
    case.x[0] = f32::INFINITY;
    case.x[9] = f32::NAN;
    for cpu in cpus() {
        let out = case.run(cpu, 0..2, false, Some(&[1]));
        assert!(out.chunks(PANEL).all(|row| row[2..].iter().all(|v| v.to_bits() == 0)));
    }
}

#[test]
fn jobs_of_one_region_do_not_touch_each_other() {
    let (a, b) = (Case::new(1, 13, 35, 200), Case::new(2, 5, 20, 7));
    for cpu in cpus() {
        let pack = |case: &Case| cpu.pack(matrix(&case.w, case.outputs, case.inputs)).unwrap();
        let (wa, wb) = (pack(&a), pack(&b));
        let (xa, xb) = (Buffer::from_slice(&a.x), Buffer::from_slice(&b.x));
        let (mut oa, mut ob, mut oc) = (unwritten(13 * 35), unwritten(5 * 20), unwritten(1));
        cpu.gemm(
            &mut [
                Gemm { x: &xa, rows: 13, weight: &wa, bias: None, panels: None, out: &mut oa },
                Gemm { x: &xb, rows: 5, weight: &wb, bias: None, panels: None, out: &mut ob },
                Gemm { x: &xb, rows: 0, weight: &wb, bias: None, panels: None, out: &mut oc },
            ],
            None,
        )
        .unwrap();
        assert_eq!(bits(&oa), bits(&a.run(&cpus()[0], 0..13, false, None)));
        assert_eq!(bits(&ob), bits(&b.run(&cpus()[0], 0..5, false, None)));
        assert!(oc[0].is_nan());
    }
}

#[test]
fn a_long_product_ends_between_its_tasks_when_the_caller_wants_it() {
    let case = Case::new(7, 4000, 64, 64);
    let (x, weight) = (Buffer::from_slice(&case.x), cpus()[0].pack(matrix(&case.w, 64, 64)).unwrap());
    // On one thread, where no other can have taken the tasks before the third question.
    for cpu in cpus().iter().filter(|cpu| cpu.threads() == 1) {
        let mut out = unwritten(4000 * 64);
        let asked = Cell::new(0);
        let check = || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 { Err(Error::Interrupted) } else { Ok(()) }
        };
        let job = Gemm { x: &x, rows: 4000, weight: &weight, bias: None, panels: None, out: &mut out };
        let found = cpu.gemm(&mut [job], Some(&check));
        assert!(matches!(found, Err(Error::Interrupted)), "{found:?}");
        assert_eq!(asked.get(), 3);
        assert!(out.iter().any(|value| value.is_nan()), "the rest was computed all the same");
    }
}
