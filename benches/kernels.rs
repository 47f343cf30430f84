//! The CPU backend's kernels. `cargo bench --bench kernels [-- FILTER]`; `SIGNFLIP_BENCH_THREADS` sets the threads (1).
//! Throughput is in multiply-adds (two floating-point operations each); `peak` is what this machine's multiply-add units do
//! at most, measured beside.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use signflip::backend::{
    AttentionGradients, AttentionPlan, AttentionShape, Backend, Gemm, KeyValues, MatrixView, Pass, Run, Span,
};
use signflip::cpu::{Buffer, Cpu, Weight};
use signflip::model::spec::{Activation, NormKind};
use signflip::threads::Threads;

fn cpu() -> Cpu {
    let threads = std::env::var("SIGNFLIP_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    Cpu::new(Arc::new(Threads::new(Some(threads)).unwrap()))
}

fn values(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        })
        .collect()
}

fn weight(cpu: &Cpu, inputs: usize, outputs: usize) -> Weight {
    let data = values(inputs * outputs);
    cpu.pack(MatrixView { data: &data, outputs, inputs, output_stride: inputs, input_stride: 1 }).unwrap()
}

/// Sixteen chains of multiply-adds on registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains(n: usize) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(black_box(0.999));
    let mut sums = [_mm256_set1_ps(black_box(1.0)); 12];
    for _ in 0..n {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.iter().map(|&s| _mm256_cvtss_f32(s)).sum()
}

fn peak(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let mut group = c.benchmark_group("peak");
        group.throughput(Throughput::Elements(12 * 8 * 100_000));
        // SAFETY: the features were just found.
        group.bench_function("fma", |b| b.iter(|| unsafe { chains(black_box(100_000)) }));
    }
    let _ = c;
}

fn gemm(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("gemm");
    for (inputs, outputs) in [(576, 1536), (1536, 576), (768, 3072)] {
        let weight = weight(&cpu, inputs, outputs);
        for rows in [1, 12, 64, 512] {
            let x = Buffer::from_slice(&values(rows * inputs));
            let mut out = cpu.zeros(rows * outputs).unwrap();
            group.throughput(Throughput::Elements((rows * inputs * outputs) as u64));
            group.bench_function(BenchmarkId::new(format!("{inputs}x{outputs}"), rows), |b| {
                b.iter(|| {
                    cpu.gemm(
                        &mut [Gemm { x: &x, rows, weight: &weight, bias: None, panels: None, out: &mut out }],
                        None,
                    )
                    .unwrap();
                });
            });
        }
    }
}

/// `n` sequences of `len` tokens, each after the same cached `prefix`.
fn plan(n: u32, len: u32, prefix: u32) -> AttentionPlan {
    let mut plan = AttentionPlan { n_keys: (prefix + len) as usize, ..AttentionPlan::default() };
    for s in 0..n {
        let runs = plan.runs.len() as u32;
        if prefix > 0 {
            plan.runs.push(Run { chunk: 1, row: 0, position: 0, len: prefix });
        }
        plan.runs.push(Run { chunk: 0, row: s * len, position: prefix, len });
        let shared_runs = u32::from(prefix > 0 && s > 0);
        plan.spans.push(Span { queries: s * len..(s + 1) * len, runs: runs..plan.runs.len() as u32, shared_runs });
        plan.positions.extend(prefix..prefix + len);
    }
    plan
}

fn attention(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("attention");
    for (name, n_heads, n_kv_heads) in [("smollm2", 9, 3), ("gpt2", 12, 12)] {
        let shape = AttentionShape { n_heads, n_kv_heads, d_head: 64, scale: 0.125 };
        for (n, len, prefix) in [(8, 512, 0), (64, 20, 0), (256, 8, 40), (1, 1, 512)] {
            let plan = plan(n, len, prefix);
            let rows = (n * len) as usize;
            let make = |rows: usize, heads: usize| Buffer::from_slice(&values(rows * heads * 64));
            let (q, dz) = (make(rows, n_heads), make(rows, n_heads));
            let (k, v) = (make(rows, n_kv_heads), make(rows, n_kv_heads));
            let (pk, pv) = (make(prefix as usize, n_kv_heads), make(prefix as usize, n_kv_heads));
            let chunks = [KeyValues { k: &k, v: &v }, KeyValues { k: &pk, v: &pv }];
            let mut z = make(rows, n_heads);
            let seen: usize = plan.positions.iter().map(|&p| p as usize + 1).sum();
            group.throughput(Throughput::Elements((2 * seen * n_heads * 64) as u64));
            let id = format!("{n}x{len}+{prefix}");
            group.bench_function(BenchmarkId::new(name, &id), |b| {
                b.iter(|| cpu.attention(&plan, shape, &chunks, Pass::Whole { q: &q, z: &mut z }, None).unwrap());
            });
            if n <= 64 {
                let (mut dk, mut dv) = (make(rows, n_kv_heads), make(rows, n_kv_heads));
                group.bench_function(BenchmarkId::new(format!("{name} backward"), &id), |b| {
                    b.iter(|| {
                        let gradients =
                            AttentionGradients { dz: &dz, d_pattern: None, dq: &mut z, dk: &mut dk, dv: &mut dv };
                        cpu.attention_backward(&plan, shape, &chunks, &q, gradients, None).unwrap();
                    });
                });
            }
        }
    }
}

fn elementwise(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("elementwise");
    let (rows, width) = (512, 576);
    let x = Buffer::from_slice(&values(rows * width));
    let gain = Buffer::from_slice(&values(width));
    let mut out = cpu.zeros(rows * width).unwrap();
    group.throughput(Throughput::Elements((rows * width) as u64));
    for kind in [NormKind::Rms, NormKind::Layer] {
        group.bench_function(format!("norm {kind:?}"), |b| {
            b.iter(|| cpu.norm(kind, 1e-5, &x, rows, width, Some(&gain), None, &mut out).unwrap());
        });
        let mut dx = cpu.zeros(rows * width).unwrap();
        group.bench_function(format!("norm {kind:?} backward"), |b| {
            b.iter(|| cpu.norm_backward(kind, 1e-5, &x, rows, width, Some(&gain), &x, &mut dx).unwrap());
        });
    }
    for act in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        group.bench_function(format!("{act:?}"), |b| {
            b.iter(|| cpu.activate(act, &x, Some(&x), rows * width, &mut out).unwrap());
        });
    }
    group.bench_function("add", |b| b.iter(|| cpu.add(&x, &x, rows * width, &mut out).unwrap()));
}

fn vocabulary(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("vocabulary");
    let (inputs, outputs) = (576, 49_152);
    let weight = weight(&cpu, inputs, outputs);
    let transposed = cpu.pack_transposed(&weight).unwrap();
    let allowed = vec![true; outputs];
    for rows in [12, 64] {
        let h = Buffer::from_slice(&values(rows * inputs));
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 700).collect();
        let ones = vec![1.0; rows];
        let (_, lse) = cpu.log_prob(&h, rows, &weight, &targets, None).unwrap();
        let mut dh = cpu.zeros(rows * inputs).unwrap();
        group.throughput(Throughput::Elements((rows * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new("log_prob", rows), |b| {
            b.iter(|| cpu.log_prob(&h, rows, &weight, &targets, None).unwrap());
        });
        group.bench_function(BenchmarkId::new("top 256", rows), |b| {
            b.iter(|| cpu.top_outputs(&[(&h, &weight, &ones)], rows, &allowed, 256).unwrap());
        });
        group.throughput(Throughput::Elements(2 * (rows * inputs * outputs) as u64));
        group.bench_function(BenchmarkId::new("log_prob backward", rows), |b| {
            b.iter(|| {
                cpu.log_prob_backward(&h, rows, &weight, &transposed, &targets, &lse, &ones, &mut dh, None).unwrap();
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = peak, gemm, attention, elementwise, vocabulary
}
criterion_main!(benches);
