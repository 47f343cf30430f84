//! Weights laid out for the kernel: for each panel of 16 outputs, a row of 16 outputs an input. Outputs past the last are
//! zero.

use super::Cpu;
use super::buffer::Buffer;
use super::parallel::Shared;
use crate::backend::{MatrixView, PANEL};
use crate::error::{Error, Result};

/// Inputs that are summed by one chain of fused multiply-adds. Shorter chains have a smaller error than whole ones.
pub(super) const BLOCK: usize = 192;

/// A packed weight.
pub struct Weight {
    outputs: usize,
    inputs: usize,
    data: Buffer,
}

impl Weight {
    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Panels of 16 outputs.
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Length of the block of inputs that starts at `input`.
    pub(super) fn block_len(&self, input: usize) -> usize {
        BLOCK.min(self.inputs - input)
    }

    /// One panel's part in the block of inputs that starts at `input` (a multiple of [`BLOCK`]).
    pub(super) fn panel(&self, input: usize, panel: usize) -> &[f32] {
        let start = (panel * self.inputs + input) * PANEL;
        &self.data[start..start + self.block_len(input) * PANEL]
    }

    /// One element.
    fn at(&self, output: usize, input: usize) -> f32 {
        self.data[(output / PANEL * self.inputs + input) * PANEL + output % PANEL]
    }
}

/// Packs `at(output, input)`.
fn pack_with(
    cpu: &Cpu,
    outputs: usize,
    inputs: usize,
    at: impl Fn(usize, usize) -> f32 + Send + Sync,
) -> Result<Weight> {
    if outputs == 0 || inputs == 0 {
        return Err(Error::Internal(format!("a weight of {outputs} outputs and {inputs} inputs")));
    }
    let panels = outputs.div_ceil(PANEL);
    let mut weight = Weight { outputs, inputs, data: Buffer::zeros(panels * PANEL * inputs) };
    let data = Shared::new(&mut weight.data);
    let at = &at;
    cpu.tasks(panels, outputs * inputs, |panel| {
        // SAFETY: each panel has its own range, and is one task's.
        let part = unsafe { data.part(panel * inputs * PANEL..(panel + 1) * inputs * PANEL) };
        for (block, rows) in part.chunks_mut(BLOCK * PANEL).enumerate() {
            for lane in 0..PANEL.min(outputs - panel * PANEL) {
                for (i, row) in rows.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                    row[lane] = at(panel * PANEL + lane, block * BLOCK + i);
                }
            }
        }
    });
    Ok(weight)
}

impl Cpu {
    pub(super) fn pack_view(&self, view: MatrixView<'_>) -> Result<Weight> {
        let (outputs, inputs) = (view.outputs, view.inputs);
        let last = outputs.saturating_sub(1) * view.output_stride + inputs.saturating_sub(1) * view.input_stride;
        if last >= view.data.len() {
            return Err(Error::Internal(format!(
                "a matrix of {outputs} by {inputs} reaches element {last} of {}",
                view.data.len()
            )));
        }
        pack_with(self, outputs, inputs, |o, i| view.data[o * view.output_stride + i * view.input_stride])
    }

    pub(super) fn pack_transpose_of(&self, weight: &Weight) -> Result<Weight> {
        pack_with(self, weight.inputs, weight.outputs, |o, i| weight.at(i, o))
    }

    pub(super) fn row_of(weight: &Weight, output: usize) -> Result<Vec<f32>> {
        if output >= weight.outputs {
            return Err(Error::Internal(format!("output {output} of a weight with {}", weight.outputs)));
        }
        Ok((0..weight.inputs).map(|input| weight.at(output, input)).collect())
    }
}
