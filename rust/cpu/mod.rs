//! The CPU backend: `f32`, weights packed once, an own register-tiled kernel, rayon over (row, column) tasks. A result at
//! one row is a function of that row alone, to the bit, whatever the other rows, the threads or the instruction set.

mod attention;
mod buffer;
mod gemm;
mod kernel;
mod level;
mod math;
mod norm;
mod pack;
mod parallel;
mod rows;
#[cfg(test)]
mod tests;
mod vocab;

use std::ops::Range;
use std::sync::Arc;

pub use buffer::Buffer;
pub use pack::Weight;

use crate::backend::{
    AttentionGradients, AttentionPlan, AttentionShape, Backend, Check, Gemm, KeyValues, MatrixView, Pass,
};
use crate::engine::request::EditOp;
use crate::error::{Error, Result};
use crate::model::spec::{Activation, NormKind};
use crate::threads::Threads;
pub use level::features;
pub(crate) use level::{Level, by_level};
use math::{activate, activate_backward, activations};
use rows::check_rows;

/// The CPU as a [`Backend`].
pub struct Cpu {
    threads: Arc<Threads>,
    level: Level,
    /// Whether to cut work finely, however small it is.
    fine: bool,
}

impl Cpu {
    /// The best instruction set of this machine, on threads that may be shared with other devices.
    pub fn new(threads: Arc<Threads>) -> Self {
        Self { threads, level: Level::detect(), fine: false }
    }

    /// As [`Cpu::new`], without special instructions: the same bits, slowly.
    pub fn portable(threads: Arc<Threads>) -> Self {
        Self { threads, level: Level::Portable, fine: false }
    }

    /// Name of the instruction set in use.
    pub fn instructions(&self) -> &'static str {
        self.level.name()
    }
}

/// Fails if a buffer is shorter than what is used of it.
fn need(what: &'static str, have: usize, want: usize) -> Result<()> {
    if have < want {
        return Err(Error::Internal(format!("{what}: {want} values needed, the buffer holds {have}")));
    }
    Ok(())
}

fn need_vector(what: &'static str, vector: Option<&Buffer>, width: usize) -> Result<()> {
    vector.map_or(Ok(()), |vector| need(what, vector.len(), width))
}

/// The first `width` values of an optional vector.
fn head(vector: Option<&Buffer>, width: usize) -> Option<&[f32]> {
    vector.map(|vector| &vector[..width])
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Weight = Weight;

    fn zeros(&self, len: usize) -> Result<Buffer> {
        Ok(Buffer::zeros(len))
    }

    fn upload(&self, data: &[f32]) -> Result<Buffer> {
        Ok(Buffer::from_slice(data))
    }

    fn download(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<f32>> {
        let found = buffer.get(range.clone());
        let found =
            found.ok_or_else(|| Error::Internal(format!("download of {range:?} from {} values", buffer.len())))?;
        Ok(found.to_vec())
    }

    fn take(&self, buffer: Buffer) -> Result<Vec<f32>> {
        Ok(buffer.into_vec())
    }

    fn on_host(&self, buffer: &mut Buffer, len: usize, f: &mut dyn FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
        need("on_host", buffer.len(), len)?;
        f(&mut buffer[..len])
    }

    fn clear(&self, buffer: &mut Buffer, len: usize) -> Result<()> {
        need("clear", buffer.len(), len)?;
        buffer[..len].fill(0.0);
        Ok(())
    }

    fn pool(&self) -> &rayon::ThreadPool {
        self.threads.pool()
    }

    fn pack(&self, weight: MatrixView<'_>) -> Result<Weight> {
        self.pack_view(weight)
    }

    fn pack_transposed(&self, weight: &Weight) -> Result<Weight> {
        self.pack_transpose_of(weight)
    }

    fn weight_row(&self, weight: &Weight, output: usize) -> Result<Vec<f32>> {
        Self::row_of(weight, output)
    }

    fn gather(&self, x: &Buffer, width: usize, rows: &[u32], out: &mut Buffer) -> Result<()> {
        check_rows("gather", rows, width, x.len())?;
        need("gather", out.len(), rows.len() * width)?;
        self.gather_rows(x, width, rows, out);
        Ok(())
    }

    fn scatter_add(&self, x: &Buffer, width: usize, rows: &[u32], out: &mut Buffer) -> Result<()> {
        check_rows("scatter_add", rows, width, out.len())?;
        need("scatter_add", x.len(), rows.len() * width)?;
        self.scatter_rows(x, width, rows, out);
        Ok(())
    }

    fn append_rows(&self, buffer: &mut Buffer, width: usize, rows: &[u32], at: usize) -> Result<()> {
        check_rows("append_rows", rows, width, buffer.len())?;
        need("append_rows", buffer.len(), (at + rows.len()) * width)?;
        for (i, &row) in rows.iter().enumerate() {
            let start = row as usize * width;
            buffer.copy_within(start..start + width, (at + i) * width);
        }
        Ok(())
    }

    fn add(&self, a: &Buffer, b: &Buffer, len: usize, out: &mut Buffer) -> Result<()> {
        need("add", a.len().min(b.len()).min(out.len()), len)?;
        self.add_all(&a[..len], &b[..len], &mut out[..len]);
        Ok(())
    }

    fn add_assign(&self, a: &mut Buffer, b: &Buffer, len: usize) -> Result<()> {
        need("add_assign", a.len().min(b.len()), len)?;
        self.add_assign_all(&mut a[..len], &b[..len]);
        Ok(())
    }

    fn norm(
        &self,
        kind: NormKind,
        eps: f32,
        x: &Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Buffer>,
        bias: Option<&Buffer>,
        out: &mut Buffer,
    ) -> Result<()> {
        let len = rows * width;
        need("norm", x.len().min(out.len()), len)?;
        need_vector("norm's gain", gain, width)?;
        need_vector("norm's bias", bias, width)?;
        self.norm_rows(Some((kind, eps)), &x[..len], width, head(gain, width), head(bias, width), &mut out[..len]);
        Ok(())
    }

    fn affine(
        &self,
        x: &Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Buffer>,
        bias: Option<&Buffer>,
        out: &mut Buffer,
    ) -> Result<()> {
        let len = rows * width;
        need("affine", x.len().min(out.len()), len)?;
        need_vector("affine's gain", gain, width)?;
        need_vector("affine's bias", bias, width)?;
        self.norm_rows(None, &x[..len], width, head(gain, width), head(bias, width), &mut out[..len]);
        Ok(())
    }

    fn norm_backward(
        &self,
        kind: NormKind,
        eps: f32,
        x: &Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Buffer>,
        dy: &Buffer,
        dx: &mut Buffer,
    ) -> Result<()> {
        let len = rows * width;
        need("norm_backward", x.len().min(dy.len()).min(dx.len()), len)?;
        need_vector("norm_backward's gain", gain, width)?;
        self.norm_rows_backward(kind, eps, &x[..len], width, head(gain, width), &dy[..len], &mut dx[..len]);
        Ok(())
    }

    fn gemm(&self, jobs: &mut [Gemm<'_, Self>], check: Check<'_>) -> Result<()> {
        self.gemm_jobs(jobs, check)
    }

    fn rotate(
        &self,
        x: &Buffer,
        positions: &[u32],
        heads: usize,
        d_head: usize,
        cos: &Buffer,
        sin: &Buffer,
        table_width: usize,
        inverse: bool,
        out: &mut Buffer,
    ) -> Result<()> {
        let len = positions.len() * heads * d_head;
        need("rotate", x.len().min(out.len()), len)?;
        need("rotate's head", d_head, 2 * table_width)?;
        check_rows("rotate", positions, table_width, cos.len().min(sin.len()))?;
        let tables: (&[f32], &[f32], usize) = (cos, sin, table_width);
        self.rotate_rows(&x[..len], positions, (heads, d_head), tables, inverse, &mut out[..len]);
        Ok(())
    }

    fn attention(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        pass: Pass<'_, Self>,
        check: Check<'_>,
    ) -> Result<()> {
        self.attend(plan, shape, chunks, pass, check)
    }

    fn attention_backward(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        q: &Buffer,
        gradients: AttentionGradients<'_, Self>,
        check: Check<'_>,
    ) -> Result<()> {
        self.attend_backward(plan, shape, chunks, q, gradients, check)
    }

    fn activate(
        &self,
        act: Activation,
        pre: &Buffer,
        linear: Option<&Buffer>,
        len: usize,
        out: &mut Buffer,
    ) -> Result<()> {
        need("activate", pre.len().min(out.len()), len)?;
        need_vector("activate's linear part", linear, len)?;
        let shared = parallel::Shared::new(&mut out[..len]);
        let level = self.level;
        self.ranges(len, 16, |range| {
            // SAFETY: ranges do not overlap.
            let out = unsafe { shared.part(range.clone()) };
            let linear = linear.map(|l| &l[range.clone()]);
            activations!(act, level, activate(&pre[range], linear, out));
        });
        Ok(())
    }

    fn activate_backward(
        &self,
        act: Activation,
        pre: &Buffer,
        linear: Option<(&Buffer, &mut Buffer)>,
        dout: &Buffer,
        len: usize,
        dpre: &mut Buffer,
    ) -> Result<()> {
        need("activate_backward", pre.len().min(dout.len()).min(dpre.len()), len)?;
        if let Some((linear, dlinear)) = &linear {
            need("activate_backward's linear part", linear.len().min(dlinear.len()), len)?;
        }
        let shared = parallel::Shared::new(&mut dpre[..len]);
        let linear = linear.map(|(linear, dlinear)| (linear, parallel::Shared::new(&mut dlinear[..len])));
        let level = self.level;
        self.ranges(len, 16, |range| {
            // SAFETY: ranges do not overlap.
            let dpre = unsafe { shared.part(range.clone()) };
            let linear = linear.as_ref().map(|(linear, dlinear)| {
                // SAFETY: as above.
                (&linear[range.clone()], unsafe { dlinear.part(range.clone()) })
            });
            activations!(act, level, activate_backward(&pre[range.clone()], linear, &dout[range], dpre));
        });
        Ok(())
    }

    fn edit(
        &self,
        x: &mut Buffer,
        width: usize,
        rows: &[u32],
        columns: Option<&[u32]>,
        op: EditOp,
        values: &[f32],
    ) -> Result<()> {
        check_rows("edit", rows, width, x.len())?;
        rows::edit(x, width, rows, columns, op, values)
    }

    fn project(&self, x: &Buffer, width: usize, rows: &[u32], vector: &[f32]) -> Result<Vec<f32>> {
        check_rows("project", rows, width, x.len())?;
        need("project's vector", vector.len(), width)?;
        Ok(self.project_rows(x, width, rows, &vector[..width]))
    }

    fn log_prob(
        &self,
        h: &Buffer,
        rows: usize,
        weight: &Weight,
        targets: &[u32],
        check: Check<'_>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        need("log_prob", h.len(), rows * weight.inputs())?;
        vocab::check_targets(targets, rows, weight)?;
        self.log_probs((h, rows), weight, targets, check)
    }

    fn log_prob_backward(
        &self,
        h: &Buffer,
        rows: usize,
        weight: &Weight,
        transposed: &Weight,
        targets: &[u32],
        lse: &[f32],
        weights: &[f32],
        dh: &mut Buffer,
        check: Check<'_>,
    ) -> Result<()> {
        need("log_prob_backward", h.len().min(dh.len()), rows * weight.inputs())?;
        need("log_prob_backward's rows", lse.len().min(weights.len()), rows)?;
        vocab::check_targets(targets, rows, weight)?;
        if (transposed.inputs(), transposed.outputs()) != (weight.outputs(), weight.inputs()) {
            return Err(Error::Internal(
                "log_prob_backward: the second weight is not the first one's transpose".into(),
            ));
        }
        self.log_probs_backward((h, rows), (weight, transposed), targets, lse, weights, dh, check)
    }

    fn top_outputs(
        &self,
        terms: &[(&Buffer, &Weight, &[f32])],
        rows: usize,
        allowed: &[bool],
        k: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>> {
        for (x, weight, scale) in terms {
            need("top_outputs", x.len(), rows * weight.inputs())?;
            need("top_outputs' scales", scale.len(), rows)?;
            if weight.outputs() != allowed.len() {
                return Err(Error::Internal(format!(
                    "top_outputs: {} outputs and a mask of {}",
                    weight.outputs(),
                    allowed.len()
                )));
            }
        }
        let terms: Vec<(&[f32], &Weight, &[f32])> = terms.iter().map(|&(x, w, s)| (&**x, w, s)).collect();
        Ok(self.best_outputs(&terms, rows, allowed, k))
    }
}
