//! What can be asked of the engine: a forest of token segments, variants (edit sets), reads, and a gradient.

use std::any::Any;
use std::sync::Arc;

use super::site::Site;
use crate::backend::Check;
use crate::error::{Error, Result};
use crate::model::spec::ModelSpec;

/// Where a segment continues from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The segment starts a sequence (position 0).
    Root,
    /// It follows the first `keep` own tokens of an earlier segment of the same request.
    Segment {
        /// Index of that segment; smaller than this segment's own.
        index: usize,
        /// How many of its own tokens lie before this one, at least 1.
        keep: usize,
    },
    /// It follows the first `keep` own tokens of a segment of the request's [`Cache`].
    Cached {
        /// Index of that segment in the cache.
        index: usize,
        /// How many of its own tokens lie before this one, at least 1.
        keep: usize,
    },
}

/// Tokens that are computed once, whoever follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What lies before.
    pub parent: Parent,
    /// The segment's own tokens, at least one.
    pub tokens: Vec<u32>,
}

/// A token of a request: `offset` within the own tokens of `segment`, as variant `variant` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowRef {
    /// 0 is the clean forest, `v + 1` is `Request::variants[v]`.
    pub variant: usize,
    /// The segment.
    pub segment: usize,
    /// The token within the segment.
    pub offset: usize,
}

impl RowRef {
    /// A token of the clean forest.
    pub fn clean(segment: usize, offset: usize) -> Self {
        Self { variant: 0, segment, offset }
    }
}

/// What an edit does to the values it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditOp {
    /// Replaces by `values`.
    Set,
    /// Adds `values`.
    Add,
    /// Multiplies by `values`.
    Scale,
    /// Limits to `[values[0], values[1]]`, column by column: `values` holds all lower limits, then all upper ones.
    Clamp,
}

/// A change written into the forward pass.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Where.
    pub site: Site,
    /// What.
    pub op: EditOp,
    /// Columns (neurons, or `head * d_head + dim`), all if `None`.
    pub columns: Option<Vec<u32>>,
    /// Tokens `(segment, offset)`, all if `None`.
    pub rows: Option<Vec<(usize, usize)>>,
    /// One value (for all), one a column (`columns.len()`), or one a row and column (row-major, in the order of
    /// `rows`). For [`EditOp::Clamp`] twice that, lower limits first; never one a row.
    pub values: Vec<f32>,
}

/// A set of edits applied together, in order. Computes only what differs from the clean forest.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    /// The edits.
    pub edits: Vec<Edit>,
}

/// A vocabulary selection of a logit read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Every column of the site.
    All,
    /// These, in this order.
    Some(Vec<u32>),
}

/// Something to hand back. The value is that after edits and hooks.
#[derive(Clone, Debug)]
pub enum Read {
    /// Values at a site: output `[rows, columns]`.
    Values {
        /// The site.
        site: Site,
        /// The tokens, in output order.
        rows: Vec<RowRef>,
        /// The columns, in output order.
        columns: Columns,
    },
    /// The inner product of a site's values with a vector (float64 in 8 fixed lanes, rounded once): `[rows]`.
    Project {
        /// The site.
        site: Site,
        /// The tokens.
        rows: Vec<RowRef>,
        /// As wide as the site.
        vector: Arc<[f32]>,
    },
    /// Next-token logits: `[rows, columns]`. On a reward model, the head's outputs.
    Logits {
        /// The tokens.
        rows: Vec<RowRef>,
        /// The vocabulary columns.
        columns: Columns,
    },
    /// `log p(target | everything up to the row's token)`, without materialised logits: `[rows]`.
    LogProb {
        /// The tokens.
        rows: Vec<RowRef>,
        /// The next token at each.
        targets: Vec<u32>,
    },
}

impl Read {
    /// The tokens it covers.
    pub fn rows(&self) -> &[RowRef] {
        match self {
            Self::Values { rows, .. }
            | Self::Project { rows, .. }
            | Self::Logits { rows, .. }
            | Self::LogProb { rows, .. } => rows,
        }
    }
}

/// Keys and values of segments computed before, kept for requests that continue them. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    /// The kept segments: their place among the cache's segments is their index.
    pub segments: Arc<Vec<CachedSegment>>,
    /// The backend's own storage.
    pub(crate) store: Arc<dyn Any + Send + Sync>,
}

/// What a cache knows of one segment.
#[derive(Clone, Debug)]
pub struct CachedSegment {
    /// The cached segment it continues, and how many of that one's tokens it keeps.
    pub parent: Option<(usize, usize)>,
    /// Position of its first token.
    pub position: usize,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Which of the store's chunks holds its keys and values, and its first row there.
    pub(crate) chunk: usize,
    pub(crate) row: usize,
}

/// One question to the engine.
#[derive(Clone, Default)]
pub struct Request {
    /// The forest, parents before children.
    pub segments: Vec<Segment>,
    /// Segments computed before, which [`Parent::Cached`] refers to.
    pub cache: Option<Cache>,
    /// Edit sets. Edits of the clean forest itself do not exist: ask for a variant and read that.
    pub variants: Vec<Variant>,
    /// What to hand back, in this order.
    pub reads: Vec<Read>,
    /// Whether to keep the forest's keys and values of every layer: [`Response::cache`].
    pub keep: bool,
    /// Whose keys and values to keep: 0 the clean forest's, `v + 1` those of `variants[v]`.
    pub keep_variant: usize,
}

/// The answer to one read.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Rows of the answer.
    pub n_rows: usize,
    /// Values a row.
    pub n_cols: usize,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Output {
    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.n_cols..(index + 1) * self.n_cols]
    }
}

/// The engine's answer.
pub struct Response {
    /// One output a read.
    pub outputs: Vec<Output>,
    /// The cache, extended by this request's segments (in order, after those it had), if `keep` was set.
    pub cache: Option<Cache>,
}

/// Gradients of one scalar, `[rows of the clean forest, width]` a site, rows in segment order.
pub type Gradients = Vec<(Site, Output)>;

/// The rows that a host step sees: all rows of the plan that exist at that layer.
pub struct HostRows<'a> {
    /// Which token each row is.
    pub rows: &'a [RowRef],
    /// Its absolute position.
    pub positions: &'a [u32],
}

/// Code of the caller's that runs between parallel regions, on the calling thread.
pub trait Host {
    /// Whether [`Host::step`] wants this site. Asked once a site, when the request is planned.
    fn wants(&self, site: Site) -> bool;

    /// Sees, and may change, a site's values `[rows, width]`, after the edits and before the reads.
    fn step(&mut self, site: Site, rows: &HostRows<'_>, width: usize, data: &mut [f32]) -> Result<()>;
}

/// What a call brings along: how to learn that the caller wants to stop, and host steps.
#[derive(Default)]
pub struct Context<'a> {
    /// Asked at least once a layer, and between the tasks of what takes long.
    pub check: Check<'a>,
    /// Host steps.
    pub host: Option<&'a mut dyn Host>,
}

/// One addend of a token score: `scale[row] * (x[row] · table[token])`.
pub struct TokenScore<'a> {
    /// Which table the tokens' vectors come from.
    pub table: Table,
    /// `[rows, d_model]`.
    pub x: &'a [f32],
    /// One factor a row.
    pub scale: &'a [f32],
}

/// A table with one vector a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The token embedding.
    Embed,
    /// The unembedding (applied to the final norm's output, gain and bias included).
    Unembed,
}

/// The best tokens of each row.
pub struct TopTokens {
    /// `[rows][at most k]`, best first: highest score, then lowest id.
    pub ids: Vec<Vec<u32>>,
    /// The scores.
    pub scores: Vec<Vec<f32>>,
}

/// Reads of a weight table, for analysis on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// Input map of the MLP (of the gate, where gated), row = neuron: `[d_model]`.
    In,
    /// Linear part's input map, row = neuron: `[d_model]`.
    InLinear,
    /// Output map of the MLP, row = neuron: `[d_model]`.
    Out,
    /// Gain of the norm in front of the MLP, one row: `[d_model]`.
    MlpNormGain,
    /// Bias of the norm in front of the MLP, one row (zeros if it has none): `[d_model]`.
    MlpNormBias,
    /// Bias of the input map, one row `[d_mlp]` (zeros if it has none).
    InBias,
    /// Bias of the linear part's input map, one row `[d_mlp]` (zeros if it has none).
    InLinearBias,
    /// Token embedding, row = token: `[d_model]`.
    Embed,
    /// Unembedding, row = token: `[d_model]`.
    Unembed,
    /// Gain of the final norm, one row: `[d_model]`.
    FinalNormGain,
    /// Bias of the final norm, one row (zeros if it has none): `[d_model]`.
    FinalNormBias,
    /// Query map, row = `head * d_head + dim`: `[d_model]`.
    Q,
    /// Key map, row = `head * d_head + dim`: `[d_model]`.
    K,
    /// Value map, row = `head * d_head + dim`: `[d_model]`.
    V,
    /// Gain of the norm in front of attention, one row: `[d_model]`.
    AttnNormGain,
    /// Bias of the norm in front of attention, one row (zeros if it has none): `[d_model]`.
    AttnNormBias,
}

/// A loaded model on a device. Object-safe: search and survey are written against it.
pub trait Engine: Send + Sync {
    /// The architecture.
    fn spec(&self) -> &ModelSpec;

    /// Runs a request: computes what its reads need and nothing else.
    fn run(&self, request: &Request, context: &mut Context<'_>) -> Result<Response>;

    /// Runs a request of the clean forest (no variants, no host steps), asks `seed` for the derivative of one scalar by
    /// each output (same shapes as the outputs), and propagates it back.
    ///
    /// Rows before the first row of `from` on their path need no gradient and get none: `from[s]` is the first own
    /// offset of segment `s` that does (its length: none of it; `None`: every row). Rows without a gradient are zero in
    /// the result. Cached segments are constants.
    fn gradient(
        &self,
        request: &Request,
        wrt: &[Site],
        from: Option<&[usize]>,
        seed: &mut dyn FnMut(&[Output]) -> Result<Vec<Vec<f32>>>,
        context: &mut Context<'_>,
    ) -> Result<(Response, Gradients)>;

    /// The `k` best tokens of each row by a sum of table products, among those that `allowed` (one flag a token) lets
    /// through, without a `[rows, vocabulary]` buffer.
    fn top_tokens(&self, terms: &[TokenScore<'_>], rows: usize, allowed: &[bool], k: usize) -> Result<TopTokens>;

    /// One row of a weight table.
    fn weight_row(&self, kind: WeightKind, layer: usize, row: usize) -> Result<Vec<f32>>;

    /// A thread pool to share parallel host work with.
    fn pool(&self) -> &rayon::ThreadPool;
}

/// Checks a request against a model: token ids, parents, lengths, rows, columns.
pub fn validate(request: &Request, spec: &ModelSpec) -> Result<()> {
    if request.segments.is_empty() {
        return Err(Error::Tokens("expected at least one sequence, found none".to_owned()));
    }
    let cached = request.cache.as_ref().map(|cache| Arc::clone(&cache.segments));
    let mut start: Vec<usize> = Vec::with_capacity(request.segments.len());
    for (i, segment) in request.segments.iter().enumerate() {
        if segment.tokens.is_empty() {
            return Err(Error::Tokens(format!("expected at least one token in sequence {i}, found none")));
        }
        if let Some(&id) = segment.tokens.iter().find(|&&id| id as usize >= spec.d_vocab) {
            return Err(Error::Tokens(format!(
                "id {id} in sequence {i} is outside the vocabulary of {} ids",
                spec.d_vocab
            )));
        }
        let position = match segment.parent {
            Parent::Root => 0,
            Parent::Segment { index, keep } => {
                let parent =
                    request.segments.get(index).filter(|parent| index < i && (1..=parent.tokens.len()).contains(&keep));
                let Some(_) = parent else {
                    return Err(Error::Internal(format!("segment {i} continues {keep} tokens of segment {index}")));
                };
                start[index] + keep
            }
            Parent::Cached { index, keep } => {
                let parent = cached.as_ref().and_then(|all| all.get(index));
                let Some(parent) = parent.filter(|parent| (1..=parent.tokens.len()).contains(&keep)) else {
                    return Err(Error::Internal(format!(
                        "segment {i} continues {keep} tokens of cached segment {index}"
                    )));
                };
                parent.position + keep
            }
        };
        let length = position + segment.tokens.len();
        if length > spec.n_ctx {
            return Err(Error::ContextLength { found: length, limit: spec.n_ctx });
        }
        start.push(position);
    }
    for read in &request.reads {
        for row in read.rows() {
            let known = request.segments.get(row.segment).is_some_and(|s| row.offset < s.tokens.len());
            if !known || row.variant > request.variants.len() {
                return Err(Error::Internal(format!("a read names {row:?}, which the request does not have")));
            }
        }
        if let Read::LogProb { rows, targets } = read {
            if rows.len() != targets.len() {
                return Err(Error::Internal("a log-probability read needs one target a row".to_owned()));
            }
            if let Some(&id) = targets.iter().find(|&&id| id as usize >= spec.d_vocab) {
                return Err(Error::Tokens(format!("target id {id} is outside the vocabulary of {} ids", spec.d_vocab)));
            }
        }
    }
    Ok(())
}
