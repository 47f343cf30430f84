//! Matrix products with packed weights.

use super::Cpu;
use super::buffer::Buffer;
use super::kernel::{Tile, for_tiles, tile};
use super::level::Level;
use super::pack::{BLOCK, Weight};
use super::parallel::Shared;
use crate::backend::{Check, Gemm, PANEL};
use crate::error::{Error, Result};

/// Rows of a task: their part of `x` (a block of inputs wide) stays in the second-level cache.
const TASK_ROWS: usize = 96;
/// Multiply-adds of a task, at least.
const TASK_WORK: usize = 400_000;
/// Inputs over which a tile of the output is summed before the next panel is taken: the tile stays in the first-level cache
/// between its blocks, and the rows' part of `x` still in the second-level one.
const GROUP: usize = 4 * BLOCK;

/// `x Wᵀ` for some rows and panels, in the kernel's terms.
pub(super) struct Product<'a> {
    /// `[rows, inputs]`.
    pub x: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// The weight.
    pub weight: &'a Weight,
    /// Panels to compute: the `i`th goes to columns `16 i ..` of the output.
    pub panels: Panels<'a>,
    /// Added last, `[outputs]`.
    pub bias: Option<&'a [f32]>,
}

/// Which panels.
#[derive(Clone, Copy)]
pub(super) enum Panels<'a> {
    /// `n` from the first given.
    From(usize, usize),
    /// These.
    Listed(&'a [u32]),
}

impl Panels<'_> {
    pub(super) fn len(self) -> usize {
        match self {
            Self::From(_, n) => n,
            Self::Listed(list) => list.len(),
        }
    }

    fn get(self, index: usize) -> usize {
        match self {
            Self::From(first, _) => first + index,
            Self::Listed(list) => list[index] as usize,
        }
    }

    fn slice(&self, start: usize, end: usize) -> Self {
        match self {
            Self::From(first, _) => Self::From(first + start, end - start),
            Self::Listed(list) => Self::Listed(&list[start..end]),
        }
    }
}

impl Product<'_> {
    /// Computes on this thread. `out` is where the first row's first panel goes, `stride` leads to the next row. Columns past
    /// the last output are left alone, or zeroed if `pad`.
    ///
    /// # Safety
    /// `out` must be writable for `rows` rows of `16 * panels.len()` columns (without `pad`, of the outputs among them)
    /// that no other thread touches; `x`, `bias` and the panels must be in range.
    pub(super) unsafe fn compute(&self, level: Level, out: *mut f32, stride: usize, pad: bool) {
        let (weight, inputs) = (self.weight, self.weight.inputs());
        debug_assert!(self.x.len() >= self.rows * inputs);
        for from in (0..inputs).step_by(GROUP) {
            for i in 0..self.panels.len() {
                let panel = self.panels.get(i);
                let columns = PANEL.min(weight.outputs() - panel * PANEL);
                // SAFETY: the caller's promise.
                let out = unsafe { out.add(i * PANEL) };
                for start in (from..inputs.min(from + GROUP)).step_by(BLOCK) {
                    // SAFETY: the caller's promise.
                    unsafe { self.block(level, (start, panel, columns), out, stride, pad) };
                }
            }
        }
    }

    /// Adds what one block of inputs gives to one panel of the output, all rows.
    ///
    /// # Safety
    /// As [`Self::compute`]; `out` is where the panel's first column goes, `columns` how many it has.
    unsafe fn block(
        &self,
        level: Level,
        (start, panel, columns): (usize, usize, usize),
        out: *mut f32,
        stride: usize,
        pad: bool,
    ) {
        let (weight, inputs) = (self.weight, self.weight.inputs());
        let k = weight.block_len(start);
        let last = start + k == inputs;
        let b = weight.panel(start, panel);
        let mut padded = [0.0; PANEL];
        let bias = match self.bias {
            Some(bias) if last => {
                padded[..columns].copy_from_slice(&bias[panel * PANEL..panel * PANEL + columns]);
                padded.as_ptr()
            }
            _ => std::ptr::null(),
        };
        for_tiles(self.rows, |first, rows| {
            // SAFETY: `x` holds `rows * inputs` values, `b` `16 k`; `out` is the caller's promise.
            unsafe {
                let c = out.add(first * stride);
                let a = self.x.as_ptr().add(first * inputs + start);
                let t =
                    Tile { k, a, a_stride: inputs, b: b.as_ptr(), c, c_stride: stride, columns, add: start > 0, bias };
                tile(level, rows, &t);
                if pad && last && columns < PANEL {
                    for r in 0..rows {
                        c.add(r * stride + columns).write_bytes(0, PANEL - columns);
                    }
                }
            }
        });
    }
}

/// One job, as its tasks share it.
struct Side<'a> {
    x: &'a [f32],
    weight: &'a Weight,
    panels: Panels<'a>,
    bias: Option<&'a [f32]>,
    out: Shared<'a>,
    width: usize,
    pad: bool,
}

/// A tile of one job.
struct Task {
    job: usize,
    rows: (usize, usize),
    panels: (usize, usize),
}

impl Cpu {
    pub(super) fn gemm_jobs(&self, jobs: &mut [Gemm<'_, Self>], check: Check<'_>) -> Result<()> {
        let mut work = 0;
        for job in jobs.iter() {
            let (w, listed) = (job.weight, job.panels);
            let width = listed.map_or(w.outputs(), |list| list.len() * PANEL);
            let fits = job.x.len() >= job.rows * w.inputs()
                && job.out.len() >= job.rows * width
                && job.bias.is_none_or(|bias| bias.len() >= w.outputs())
                && listed.is_none_or(|list| list.iter().all(|&panel| (panel as usize) < w.panels()));
            if !fits {
                return Err(Error::Internal(format!(
                    "gemm of {} rows by {} inputs and {width} of {} outputs does not fit its buffers ({} in, {} out)",
                    job.rows,
                    w.inputs(),
                    w.outputs(),
                    job.x.len(),
                    job.out.len()
                )));
            }
            work += job.rows * width * w.inputs();
        }
        let mut tasks = Vec::new();
        let target = (work / (4 * self.threads())).max(self.at_least(TASK_WORK));
        for (index, job) in jobs.iter().enumerate() {
            if job.rows == 0 {
                continue;
            }
            let panels = job.panels.map_or(job.weight.panels(), <[u32]>::len);
            let blocks = job.rows.div_ceil(TASK_ROWS);
            for block in 0..blocks {
                let rows = (job.rows * block / blocks, job.rows * (block + 1) / blocks);
                let pieces =
                    ((rows.1 - rows.0) * panels * PANEL * job.weight.inputs() / target).clamp(1, panels.max(1));
                for piece in 0..pieces {
                    tasks.push(Task {
                        job: index,
                        rows,
                        panels: (panels * piece / pieces, panels * (piece + 1) / pieces),
                    });
                }
            }
        }
        let sides: Vec<Side<'_>> = jobs
            .iter_mut()
            .map(|job| {
                let (x, weight, bias): (&Buffer, &Weight, _) = (job.x, job.weight, job.bias.map(|b| &**b));
                let panels = job.panels.map_or(Panels::From(0, weight.panels()), Panels::Listed);
                let width = job.panels.map_or(weight.outputs(), |list| list.len() * PANEL);
                Side { x, weight, panels, bias, out: Shared::new(job.out), width, pad: job.panels.is_some() }
            })
            .collect();
        let level = self.level;
        self.tasks_until(check, tasks.len(), work, |index| {
            let Task { job, rows, panels } = tasks[index];
            let side = &sides[job];
            let product = Product {
                x: &side.x[rows.0 * side.weight.inputs()..],
                rows: rows.1 - rows.0,
                weight: side.weight,
                panels: side.panels.slice(panels.0, panels.1),
                bias: side.bias,
            };
            // SAFETY: sizes were checked above, and tasks are disjoint tiles of rows and panels.
            unsafe {
                let out = side.out.pointer().add(rows.0 * side.width + panels.0 * PANEL);
                product.compute(level, out, side.width, side.pad);
            }
        })
    }
}
