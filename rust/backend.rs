//! What a device must be able to do. The engine is written once, against this; each operation's definition is the plain
//! loop in `ops`, and a backend's result at one row never depends on which other rows are computed with it.

use std::ops::Range;

use crate::engine::request::EditOp;
use crate::error::Result;
use crate::model::spec::{Activation, NormKind};

/// How to learn that the caller wants the work to end: called on the calling thread, between tasks; an error ends it.
pub type Check<'a> = Option<&'a dyn Fn() -> Result<()>>;

/// A matrix on the host, `[outputs, inputs]` in the sense of `y = x Wᵀ`, by strides (in elements).
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Rows: outputs.
    pub outputs: usize,
    /// Columns: inputs.
    pub inputs: usize,
    /// Step from one output to the next.
    pub output_stride: usize,
    /// Step from one input to the next.
    pub input_stride: usize,
}

/// Keys at consecutive positions, stored in consecutive rows of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which of the key-value chunks holds them; the request's own rows are chunk 0.
    pub chunk: u32,
    /// First row within the chunk.
    pub row: u32,
    /// Position of the first key.
    pub position: u32,
    /// Number of keys.
    pub len: u32,
}

/// Query rows that read one chain of keys. A query sees the keys at its own position and before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the query buffer, at increasing positions.
    pub queries: Range<u32>,
    /// The chain: runs that cover positions 0 up to the last query's, in order.
    pub runs: Range<u32>,
    /// How many leading runs are those of the span before it, so that what was gathered for that one serves again.
    pub shared_runs: u32,
}

/// Who attends to whom, for one request; the same in each layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Position of each query row.
    pub positions: Vec<u32>,
    /// The spans, which cover every query row once.
    pub spans: Vec<Span>,
    /// The chains of all spans.
    pub runs: Vec<Run>,
    /// Width of the key axis of a materialised pattern: the largest position plus one.
    pub n_keys: usize,
}

/// Shape of one attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; head `h` reads key head `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Factor on the products.
    pub scale: f32,
}

/// Keys and values of one chunk, `[rows, n_kv_heads * d_head]` each.
pub struct KeyValues<'a, B: Backend> {
    /// Keys, after rotary.
    pub k: &'a B::Buffer,
    /// Values.
    pub v: &'a B::Buffer,
}

/// Which part of attention to run. Queries and mixed values are `[queries, n_heads * d_head]`, a pattern is
/// `[queries, n_heads, plan.n_keys]`, zero where a query does not see.
pub enum Pass<'a, B: Backend> {
    /// `pattern = softmax(scale q kᵀ)`.
    Pattern {
        /// Queries.
        q: &'a B::Buffer,
        /// The pattern: written.
        pattern: &'a mut B::Buffer,
    },
    /// `z = pattern v`.
    Mix {
        /// The pattern.
        pattern: &'a B::Buffer,
        /// The mixed values: written.
        z: &'a mut B::Buffer,
    },
    /// Both without a materialised pattern, to the same bits.
    Whole {
        /// Queries.
        q: &'a B::Buffer,
        /// The mixed values: written.
        z: &'a mut B::Buffer,
    },
}

/// What flows back into attention, and out of it.
pub struct AttentionGradients<'a, B: Backend> {
    /// By the mixed values.
    pub dz: &'a B::Buffer,
    /// By the pattern, where someone asks: holds what flows into it from elsewhere, receives its whole gradient.
    pub d_pattern: Option<&'a mut B::Buffer>,
    /// By the queries: written.
    pub dq: &'a mut B::Buffer,
    /// By chunk 0's keys: added to.
    pub dk: &'a mut B::Buffer,
    /// By chunk 0's values: added to.
    pub dv: &'a mut B::Buffer,
}

/// One matrix product of a parallel region.
pub struct Gemm<'a, B: Backend> {
    /// `[rows, inputs]`.
    pub x: &'a B::Buffer,
    /// Rows to compute.
    pub rows: usize,
    /// The packed weight.
    pub weight: &'a B::Weight,
    /// Added to each row, `[outputs]`.
    pub bias: Option<&'a B::Buffer>,
    /// Panels of 16 outputs to compute (their columns, in order, are all that `out` holds); all if `None`.
    pub panels: Option<&'a [u32]>,
    /// `[rows, outputs]`, or `[rows, 16 * panels.len()]` (columns past the last output are then zero).
    pub out: &'a mut B::Buffer,
}

/// Outputs of a packed weight that are computed together.
pub const PANEL: usize = 16;

/// A kind of device and its memory. Buffers are flat `f32`, row-major; a buffer may be longer than what an operation
/// uses of it.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Device memory.
    type Buffer: Send + Sync;
    /// A weight laid out for [`Backend::gemm`].
    type Weight: Send + Sync;

    /// A buffer of `len` zeros.
    fn zeros(&self, len: usize) -> Result<Self::Buffer>;
    /// A copy of host values.
    fn upload(&self, data: &[f32]) -> Result<Self::Buffer>;
    /// A copy on the host.
    fn download(&self, buffer: &Self::Buffer, range: Range<usize>) -> Result<Vec<f32>>;

    /// A whole buffer that is not needed any more.
    fn take(&self, buffer: Self::Buffer) -> Result<Vec<f32>>;
    /// Lets the host see and change the first `len` values.
    fn on_host(&self, buffer: &mut Self::Buffer, len: usize, f: &mut dyn FnMut(&mut [f32]) -> Result<()>)
    -> Result<()>;
    /// Sets the first `len` values to zero.
    fn clear(&self, buffer: &mut Self::Buffer, len: usize) -> Result<()>;
    /// The device's host thread pool.
    fn pool(&self) -> &rayon::ThreadPool;

    /// Packs `y = x Wᵀ`.
    fn pack(&self, weight: MatrixView<'_>) -> Result<Self::Weight>;
    /// Packs the transpose of a packed weight: `dx = dy W`.
    fn pack_transposed(&self, weight: &Self::Weight) -> Result<Self::Weight>;
    /// One output's inputs, as packed.
    fn weight_row(&self, weight: &Self::Weight, output: usize) -> Result<Vec<f32>>;

    /// `out[r] = x[rows[r]]`.
    fn gather(&self, x: &Self::Buffer, width: usize, rows: &[u32], out: &mut Self::Buffer) -> Result<()>;
    /// `out[rows[r]] += x[r]`, rows distinct.
    fn scatter_add(&self, x: &Self::Buffer, width: usize, rows: &[u32], out: &mut Self::Buffer) -> Result<()>;
    /// `out[at + r] = x[rows[r]]`, within one buffer: appends copies of rows.
    fn append_rows(&self, buffer: &mut Self::Buffer, width: usize, rows: &[u32], at: usize) -> Result<()>;
    /// `out[i] = a[i] + b[i]`.
    fn add(&self, a: &Self::Buffer, b: &Self::Buffer, len: usize, out: &mut Self::Buffer) -> Result<()>;
    /// `a[i] += b[i]`.
    fn add_assign(&self, a: &mut Self::Buffer, b: &Self::Buffer, len: usize) -> Result<()>;

    /// Normalises each row; then gain and bias where given. `inv[r]` is the reciprocal of the divisor, `mean[r]` the mean
    /// removed (0 for RMS).
    fn norm(
        &self,
        kind: NormKind,
        eps: f32,
        x: &Self::Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Self::Buffer>,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `out = x * gain + bias`, row by row, as [`Backend::norm`] ends.
    fn affine(
        &self,
        x: &Self::Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Self::Buffer>,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `dx += ∂norm/∂x · dy`, where `dy` is by the norm's output (after gain).
    fn norm_backward(
        &self,
        kind: NormKind,
        eps: f32,
        x: &Self::Buffer,
        rows: usize,
        width: usize,
        gain: Option<&Self::Buffer>,
        dy: &Self::Buffer,
        dx: &mut Self::Buffer,
    ) -> Result<()>;

    /// Several matrix products in one parallel region. Each output is summed over inputs by fused multiply-adds in
    /// order, in blocks of 192 whose sums are added in order; then the bias.
    fn gemm(&self, jobs: &mut [Gemm<'_, Self>], check: Check<'_>) -> Result<()>;

    /// Rotates the leading `2 * table_width` dimensions of each head, half split, by tables `[n_ctx, table_width]` of
    /// cosine and sine at the row's position. `inverse` rotates back (the backward). `out` may not alias `x`.
    fn rotate(
        &self,
        x: &Self::Buffer,
        positions: &[u32],
        heads: usize,
        d_head: usize,
        cos: &Self::Buffer,
        sin: &Self::Buffer,
        table_width: usize,
        inverse: bool,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Attention, whole or cut at the pattern.
    fn attention(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        pass: Pass<'_, Self>,
        check: Check<'_>,
    ) -> Result<()>;
    /// Gradients of attention, summed over queries in the plan's order; keys of chunks other than 0 are constants.
    fn attention_backward(
        &self,
        plan: &AttentionPlan,
        shape: AttentionShape,
        chunks: &[KeyValues<'_, Self>],
        q: &Self::Buffer,
        gradients: AttentionGradients<'_, Self>,
        check: Check<'_>,
    ) -> Result<()>;

    /// `out = act(pre)`, or `act(pre) * linear` where a linear part is given.
    fn activate(
        &self,
        act: Activation,
        pre: &Self::Buffer,
        linear: Option<&Self::Buffer>,
        len: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `dpre = dout * act'(pre) (* linear)`, and `dlinear = dout * act(pre)` where a linear part is given.
    fn activate_backward(
        &self,
        act: Activation,
        pre: &Self::Buffer,
        linear: Option<(&Self::Buffer, &mut Self::Buffer)>,
        dout: &Self::Buffer,
        len: usize,
        dpre: &mut Self::Buffer,
    ) -> Result<()>;

    /// An edit of some rows (`rows[i]` is a row of `x`). `columns` `None`: all of `width`. `values` is one value, one a
    /// column, or one a (row, column) in the order of `rows`; for `Clamp` lower limits, then upper ones.
    fn edit(
        &self,
        x: &mut Self::Buffer,
        width: usize,
        rows: &[u32],
        columns: Option<&[u32]>,
        op: EditOp,
        values: &[f32],
    ) -> Result<()>;

    /// `x[rows[r]] · vector`, summed in float64 in 8 lanes (lane = index mod 8, then lanes in order), rounded once.
    fn project(&self, x: &Self::Buffer, width: usize, rows: &[u32], vector: &[f32]) -> Result<Vec<f32>>;

    /// `log softmax(h Wᵀ)[target]` and the log-sum-exp of each row, without materialised logits.
    fn log_prob(
        &self,
        h: &Self::Buffer,
        rows: usize,
        weight: &Self::Weight,
        targets: &[u32],
        check: Check<'_>,
    ) -> Result<(Vec<f32>, Vec<f32>)>;
    /// `dh += Σ_r weights[r] · ∂ log_prob(r) / ∂h`; `transposed` is the packed transpose of `weight`, `lse` what
    /// [`Backend::log_prob`] gave.
    fn log_prob_backward(
        &self,
        h: &Self::Buffer,
        rows: usize,
        weight: &Self::Weight,
        transposed: &Self::Weight,
        targets: &[u32],
        lse: &[f32],
        weights: &[f32],
        dh: &mut Self::Buffer,
        check: Check<'_>,
    ) -> Result<()>;

    /// For each row the `k` best outputs of `Σ_t scale_t[row] · (x_t[row] · W_t[output])` among the allowed ones:
    /// highest first, lower index first on a tie (NaN never). Terms are `(x, weight, scale)`.
    fn top_outputs(
        &self,
        terms: &[(&Self::Buffer, &Self::Weight, &[f32])],
        rows: usize,
        allowed: &[bool],
        k: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>>;
}
