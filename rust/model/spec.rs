//! What a model is built of, in the engine's terms. A family file turns a `config.json` into this; nothing else in the
//! engine knows families.

use serde::Serialize;

/// How the residual is normalised in front of a linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean removed, divided by the standard deviation; gain and bias.
    Layer,
    /// Divided by the root mean square; gain only.
    Rms,
}

/// How positions enter the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector is added to the embedding.
    Learned,
    /// The first `2 * inverse_frequencies.len()` dimensions of each query and key are rotated, half split
    /// (dimension `i` pairs with `i + n/2`), by `position * inverse_frequencies[i]` radians.
    Rotary {
        /// One angular frequency a pair, radians a position.
        inverse_frequencies: Vec<f64>,
    },
}

/// The nonlinearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)` by the error function.
    Gelu,
    /// GELU's tanh form (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `x σ(x)`.
    Silu,
}

/// What reads the last residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Next-token logits over the vocabulary.
    Unembed,
    /// A sequence-classification (reward) head, read at the last token that is not `pad`.
    Reward {
        /// Number of outputs.
        labels: usize,
        /// The padding token, if the config names one.
        pad: Option<u32>,
    },
}

/// Everything the engine needs to know of an architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpec {
    /// `llama`, `gpt2`, ...
    pub family: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of neurons of a block's MLP.
    pub d_mlp: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Number of token ids.
    pub d_vocab: usize,
    /// Longest sequence.
    pub n_ctx: usize,
    /// The nonlinearity, in the checkpoint's own word.
    pub act_fn: String,
    /// The nonlinearity, in the engine's.
    pub activation: Activation,
    /// Whether the MLP is gated: `post = act(pre) * pre_linear`.
    pub gated: bool,
    /// The norms' kind.
    pub norm: NormKind,
    /// Added to the variance (or mean square) under the root.
    pub norm_eps: f32,
    /// How positions enter.
    pub positions: Positions,
    /// Factor on query-key products, one a layer.
    pub attn_scale: Vec<f32>,
    /// What reads the last residual.
    pub head: Head,
}

impl ModelSpec {
    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.d_head
    }
}
