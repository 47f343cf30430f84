//! Host weights, in the engine's terms, whatever the family and the file format.

use std::borrow::Cow;

use super::spec::ModelSpec;
use crate::backend::MatrixView;
use crate::error::Result;

/// A linear map `y = x Wᵀ + b`.
pub struct HostLinear<'a> {
    /// The elements, of which the map may be a part (GPT-2 keeps q, k and v in one tensor).
    pub data: Cow<'a, [f32]>,
    /// Index of the map's first element.
    pub offset: usize,
    /// Outputs.
    pub outputs: usize,
    /// Inputs.
    pub inputs: usize,
    /// Step from one output to the next.
    pub output_stride: usize,
    /// Step from one input to the next.
    pub input_stride: usize,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

impl HostLinear<'_> {
    /// The weight as a strided matrix.
    pub fn view(&self) -> MatrixView<'_> {
        MatrixView {
            data: &self.data[self.offset..],
            outputs: self.outputs,
            inputs: self.inputs,
            output_stride: self.output_stride,
            input_stride: self.input_stride,
        }
    }
}

/// Gain, and bias where the norm has one.
pub struct HostNorm {
    /// `[d_model]`.
    pub gain: Vec<f32>,
    /// `[d_model]`.
    pub bias: Option<Vec<f32>>,
}

/// The weights of one block.
pub struct HostBlock<'a> {
    /// In front of attention.
    pub attn_norm: HostNorm,
    /// Queries.
    pub q: HostLinear<'a>,
    /// Keys.
    pub k: HostLinear<'a>,
    /// Values.
    pub v: HostLinear<'a>,
    /// Attention's output map.
    pub o: HostLinear<'a>,
    /// In front of the MLP.
    pub mlp_norm: HostNorm,
    /// Input map that the nonlinearity reads (the gate, where gated): site `mlp.hook_pre`.
    pub input: HostLinear<'a>,
    /// Linear part's input map, where gated: site `mlp.hook_pre_linear`.
    pub linear: Option<HostLinear<'a>>,
    /// Output map.
    pub out: HostLinear<'a>,
}

/// The weights outside the blocks.
pub struct HostOuter<'a> {
    /// `[d_vocab, d_model]`.
    pub embed: Cow<'a, [f32]>,
    /// `[n_ctx, d_model]`.
    pub pos_embed: Option<Cow<'a, [f32]>>,
    /// After the last block.
    pub final_norm: HostNorm,
    /// Unembedding or reward head; `None` where it is tied to the embedding.
    pub head: Option<HostLinear<'a>>,
}

/// An opened checkpoint: its architecture, and its weights converted to f32 a block at a time.
pub trait Checkpoint {
    /// The architecture.
    fn spec(&self) -> &ModelSpec;
    /// The weights outside the blocks.
    fn outer(&self) -> Result<HostOuter<'_>>;
    /// The weights of one block.
    fn block(&self, layer: usize) -> Result<HostBlock<'_>>;
}
