//! Operations that move, add, rotate and edit rows.

use super::Cpu;
use super::level::by_level;
use super::parallel::Shared;
use crate::engine::request::EditOp;
use crate::error::{Error, Result};

by_level! {
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

by_level! {
    fn add_assign(a: &mut [f32], b: &[f32]) {
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

by_level! {
    /// Rotates one head: `x[i]` pairs with `x[i + cos.len()]`.
    fn rotate_head(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
        let half = cos.len();
        let (first, rest) = x.split_at(half);
        let (second, tail) = rest.split_at(half);
        let (out_first, out_rest) = out.split_at_mut(half);
        let (out_second, out_tail) = out_rest.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (cos[i], sign * sin[i]);
            out_first[i] = (-second[i]).mul_add(s, first[i] * c);
            out_second[i] = first[i].mul_add(s, second[i] * c);
        }
        out_tail.copy_from_slice(tail);
    }
}

by_level! {
    /// Inner product in float64, in 8 lanes that are then added in order.
    fn project(x: &[f32], vector: &[f32]) -> f32 {
        let mut lanes = [0.0_f64; 8];
        let (xs, x_tail) = x.as_chunks::<8>();
        let (vs, v_tail) = vector.as_chunks::<8>();
        for (x, v) in xs.iter().zip(vs) {
            for lane in 0..8 {
                lanes[lane] += f64::from(x[lane]) * f64::from(v[lane]);
            }
        }
        for (lane, (&x, &v)) in x_tail.iter().zip(v_tail).enumerate() {
            lanes[lane] += f64::from(x) * f64::from(v);
        }
        let mut sum = lanes[0];
        for lane in &lanes[1..] {
            sum += lane;
        }
        sum as f32
    }
}

/// One error for every row index that leaves its buffer.
pub(super) fn check_rows(what: &str, rows: &[u32], width: usize, len: usize) -> Result<()> {
    let limit = len.checked_div(width).unwrap_or(usize::MAX);
    match rows.iter().find(|&&row| row as usize >= limit) {
        Some(row) => Err(Error::Internal(format!("{what}: row {row} of a buffer of {limit} rows of {width}"))),
        None => Ok(()),
    }
}

impl Cpu {
    pub(super) fn gather_rows(&self, x: &[f32], width: usize, rows: &[u32], out: &mut [f32]) {
        let shared = Shared::new(out);
        self.ranges(rows.len() * width, width, |range| {
            // SAFETY: ranges do not overlap.
            let out = unsafe { shared.part(range.clone()) };
            for (out, &row) in out.chunks_exact_mut(width).zip(&rows[range.start / width..]) {
                out.copy_from_slice(&x[row as usize * width..][..width]);
            }
        });
    }

    pub(super) fn scatter_rows(&self, x: &[f32], width: usize, rows: &[u32], out: &mut [f32]) {
        let level = self.level;
        let shared = Shared::new(out);
        // Cut by columns, so that even a repeated row would be one task's.
        let parts = if self.parallel(rows.len() * width * super::parallel::ELEMENT) { self.threads() } else { 1 };
        self.tasks(parts, usize::MAX, |part| {
            let (from, to) = (width * part / parts, width * (part + 1) / parts);
            for (x, &row) in x.chunks_exact(width).zip(rows) {
                let start = row as usize * width;
                // SAFETY: a task adds to its own columns.
                let out = unsafe { shared.part(start + from..start + to) };
                add_assign(level, out, &x[from..to]);
            }
        });
    }

    pub(super) fn add_all(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        let level = self.level;
        let shared = Shared::new(out);
        self.ranges(a.len(), 16, |range| {
            // SAFETY: ranges do not overlap.
            add(level, &a[range.clone()], &b[range.clone()], unsafe { shared.part(range) });
        });
    }

    pub(super) fn add_assign_all(&self, a: &mut [f32], b: &[f32]) {
        let level = self.level;
        let shared = Shared::new(a);
        self.ranges(b.len(), 16, |range| {
            // SAFETY: ranges do not overlap.
            add_assign(level, unsafe { shared.part(range.clone()) }, &b[range]);
        });
    }

    pub(super) fn rotate_rows(
        &self,
        x: &[f32],
        positions: &[u32],
        (heads, d_head): (usize, usize),
        (cos, sin, table): (&[f32], &[f32], usize),
        inverse: bool,
        out: &mut [f32],
    ) {
        let (level, width) = (self.level, heads * d_head);
        let sign = if inverse { -1.0 } else { 1.0 };
        let shared = Shared::new(out);
        self.ranges(positions.len() * width, width, |range| {
            // SAFETY: ranges do not overlap.
            let out = unsafe { shared.part(range.clone()) };
            let rows = x[range.clone()].chunks_exact(width).zip(out.chunks_exact_mut(width));
            for ((x, out), &position) in rows.zip(&positions[range.start / width..]) {
                let at = position as usize * table;
                let (cos, sin) = (&cos[at..at + table], &sin[at..at + table]);
                for (x, out) in x.chunks_exact(d_head).zip(out.chunks_exact_mut(d_head)) {
                    rotate_head(level, x, cos, sin, sign, out);
                }
            }
        });
    }

    pub(super) fn project_rows(&self, x: &[f32], width: usize, rows: &[u32], vector: &[f32]) -> Vec<f32> {
        let level = self.level;
        let mut out = vec![0.0; rows.len()];
        let shared = Shared::new(&mut out);
        self.ranges(rows.len() * width, width, |range| {
            let (first, end) = (range.start / width, range.end / width);
            // SAFETY: ranges do not overlap.
            let out = unsafe { shared.part(first..end) };
            for (out, &row) in out.iter_mut().zip(&rows[first..end]) {
                *out = project(level, &x[row as usize * width..][..width], vector);
            }
        });
        out
    }
}

/// Edits rows in place, as [`Backend::edit`](crate::backend::Backend::edit) says.
pub(super) fn edit(
    x: &mut [f32],
    width: usize,
    rows: &[u32],
    columns: Option<&[u32]>,
    op: EditOp,
    values: &[f32],
) -> Result<()> {
    let n = columns.map_or(width, <[u32]>::len);
    if rows.is_empty() || n == 0 {
        return Ok(());
    }
    let (lower, upper) = match op {
        EditOp::Clamp => values.split_at(values.len() / 2),
        _ => (values, values),
    };
    // Steps from a row, and from a column, to the next value.
    let (row_step, column_step) = match lower.len() {
        1 => (0, 0),
        len if len == n => (0, 1),
        len if len == n * rows.len() => (n, 1),
        len => {
            return Err(Error::Internal(format!("edit of {} rows by {n} columns has {len} values", rows.len())));
        }
    };
    if lower.len() != upper.len() || columns.is_some_and(|list| list.iter().any(|&c| c as usize >= width)) {
        return Err(Error::Internal(format!("edit: limits in pairs and columns below {width} are needed")));
    }
    for (r, &row) in rows.iter().enumerate() {
        let row = &mut x[row as usize * width..][..width];
        for i in 0..n {
            let value = &mut row[columns.map_or(i, |list| list[i] as usize)];
            let at = r * row_step + i * column_step;
            let given = lower[at];
            *value = match op {
                EditOp::Set => given,
                EditOp::Add => *value + given,
                EditOp::Scale => *value * given,
                EditOp::Clamp => {
                    // Comparisons, so that NaN stays NaN.
                    let raised = if *value < given { given } else { *value };
                    if raised > upper[at] { upper[at] } else { raised }
                }
            };
        }
    }
    Ok(())
}
