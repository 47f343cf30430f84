//! The fast operations against the plain loops of `ops`, and against themselves under every way of cutting the work.

mod attention;
mod gemm;
mod math;
mod rows;
mod vocab;

use std::sync::{Arc, OnceLock};

use super::{Buffer, Cpu, Level};
use crate::backend::{Backend, MatrixView};
use crate::threads::Threads;

/// Unit round-off of `f32`.
const U: f64 = 5.960_464_477_539_063e-8;

/// Backends that must give the same bits: the first is the yardstick (one thread, large tasks), the others cut all work
/// as finely as they can.
fn cpus() -> &'static [Cpu] {
    static CPUS: OnceLock<Vec<Cpu>> = OnceLock::new();
    CPUS.get_or_init(|| {
        let make = |threads, level, fine| {
            let threads = Arc::new(Threads::new(Some(threads)).unwrap());
            Cpu { threads, level, fine }
        };
        let best = Level::detect();
        vec![
            make(1, best, false),
            make(1, best, true),
            make(2, best, true),
            make(3, best, true),
            make(1, Level::Portable, false),
            make(2, Level::Portable, true),
        ]
    })
}

/// A generator that is enough for test data.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A sum of four uniform values: mean 0, variance 1/3, many magnitudes.
    fn value(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u32 << 24) as f32 - 0.5).sum()
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn matrix(data: &[f32], outputs: usize, inputs: usize) -> MatrixView<'_> {
    MatrixView { data, outputs, inputs, output_stride: inputs, input_stride: 1 }
}

/// A buffer of `len` that holds NaN, so that what is not written shows.
fn unwritten(len: usize) -> Buffer {
    Buffer::from_slice(&vec![f32::NAN; len])
}

/// Asserts `|found - expected| <= bound` everywhere.
fn assert_close(what: &str, found: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(f) - e).abs();
        assert!(error <= bound(i), "{what}[{i}]: {f} for {e}, off by {error:e} of {:e}", bound(i));
    }
}

#[test]
fn buffers_that_are_too_small_are_errors() {
    use crate::engine::request::EditOp;
    use crate::model::spec::{Activation, NormKind};
    let cpu = &cpus()[0];
    let (small, large) = (Buffer::zeros(3), Buffer::zeros(100));
    let mut out = Buffer::zeros(3);
    let weight = cpu.pack(matrix(&large, 10, 10)).unwrap();
    assert!(cpu.pack(matrix(&small, 10, 10)).is_err());
    assert!(cpu.pack(matrix(&small, 0, 3)).is_err());
    assert!(cpu.weight_row(&weight, 10).is_err());
    assert!(cpu.download(&small, 2..4).is_err());
    assert!(cpu.clear(&mut out, 4).is_err());
    assert!(cpu.on_host(&mut out, 4, &mut |_| Ok(())).is_err());
    assert!(cpu.gather(&large, 10, &[10], &mut Buffer::zeros(10)).is_err());
    assert!(cpu.gather(&large, 10, &[9], &mut out).is_err());
    assert!(cpu.scatter_add(&large, 10, &[0], &mut out).is_err());
    assert!(cpu.append_rows(&mut out, 1, &[0], 3).is_err());
    assert!(cpu.add(&large, &small, 4, &mut Buffer::zeros(9)).is_err());
    assert!(cpu.add_assign(&mut out, &large, 4).is_err());
    assert!(cpu.norm(NormKind::Rms, 1e-5, &large, 1, 10, None, None, &mut out).is_err());
    assert!(cpu.norm(NormKind::Rms, 1e-5, &large, 1, 10, Some(&small), None, &mut Buffer::zeros(10)).is_err());
    assert!(cpu.affine(&large, 1, 10, None, Some(&small), &mut Buffer::zeros(10)).is_err());
    assert!(cpu.norm_backward(NormKind::Rms, 1e-5, &large, 1, 10, None, &small, &mut Buffer::zeros(10)).is_err());
    assert!(cpu.rotate(&large, &[4], 1, 2, &small, &large, 1, false, &mut Buffer::zeros(10)).is_err());
    assert!(cpu.activate(Activation::Silu, &large, Some(&small), 4, &mut Buffer::zeros(10)).is_err());
    assert!(cpu.edit(&mut out, 3, &[1], None, EditOp::Set, &[0.0]).is_err());
    assert!(cpu.edit(&mut out, 3, &[0], Some(&[3]), EditOp::Set, &[0.0]).is_err());
    assert!(cpu.edit(&mut out, 3, &[0], None, EditOp::Set, &[0.0, 1.0]).is_err());
    assert!(cpu.project(&large, 10, &[0], &small).is_err());
    assert!(cpu.log_prob(&large, 1, &weight, &[10], None).is_err());
    assert!(cpu.log_prob(&small, 1, &weight, &[0], None).is_err());
    assert!(cpu.top_outputs(&[(&large, &weight, &[1.0])], 1, &[true; 9], 1).is_err());
}
