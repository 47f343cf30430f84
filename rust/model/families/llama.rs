//! Llama and what shares its blocks (SmolLM2): RMS norms, rotary positions, grouped heads, a gated MLP.

use super::base::{Base, Tying};
use super::rotary::inverse_frequencies;
use super::{Opened, Top, activation, head};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::source::Weights;
use crate::model::spec::{ModelSpec, NormKind, Positions};
use crate::model::weights::{Checkpoint, HostBlock, HostOuter};

/// Options of relatives of Llama that would change its forward pass.
const REFUSED: [&str; 14] = [
    "sliding_window",
    "use_sliding_window",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "use_qk_norm",
    "no_rope_layers",
];

struct Llama {
    base: Base,
    attention_bias: bool,
    mlp_bias: bool,
}

pub(super) fn open(config: &Config<'_>, top: Top, weights: Weights) -> Result<Opened> {
    config.refuse("llama", &REFUSED)?;
    let d_model = config.dimension("hidden_size")?;
    let n_heads = config.dimension("num_attention_heads")?;
    let n_kv_heads = config.dimension_if("num_key_value_heads")?.unwrap_or(n_heads);
    let d_head = match config.dimension_if("head_dim")? {
        Some(d_head) => d_head,
        None if d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let what = format!("hidden_size: expected a multiple of num_attention_heads = {n_heads}, found {d_model}");
            return Err(Error::checkpoint("config.json", what));
        }
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        let what = format!("num_key_value_heads: expected a divisor of {n_heads}, found {n_kv_heads}");
        return Err(Error::checkpoint("config.json", what));
    }
    if !d_head.is_multiple_of(2) {
        let what = format!("head_dim: expected an even number, found {d_head}");
        return Err(Error::checkpoint("config.json", what));
    }
    let act_fn = config.word("hidden_act")?.unwrap_or("silu");
    let prefix = weights.prefix("model.");
    let tied = config.boolean("tie_word_embeddings", false)?;
    let tying = Tying::find(&weights, format!("{prefix}embed_tokens.weight"), top, tied);
    let base = Base {
        spec: ModelSpec {
            family: "llama".to_owned(),
            n_layers: config.dimension("num_hidden_layers")?,
            d_model,
            d_mlp: config.dimension("intermediate_size")?,
            n_heads,
            n_kv_heads,
            d_head,
            d_vocab: config.dimension("vocab_size")?,
            n_ctx: config.dimension_if("max_position_embeddings")?.unwrap_or(2048),
            act_fn: act_fn.to_owned(),
            activation: activation(act_fn)?,
            gated: true,
            norm: NormKind::Rms,
            norm_eps: config.epsilon("rms_norm_eps", 1e-6)?,
            positions: Positions::Rotary { inverse_frequencies: Vec::new() },
            attn_scale: Vec::new(),
            head: head(config, top, &weights, d_model)?,
        },
        weights,
        tying,
        prefix,
    };
    let attention_bias = config.boolean("attention_bias", false)?;
    let mut model = Llama { base, attention_bias, mlp_bias: config.boolean("mlp_bias", false)? };
    model.check()?;
    // Only now: a config's sizes are to be trusted once tensors of those sizes exist.
    let n_ctx = model.base.spec.n_ctx;
    model.base.spec.positions = Positions::Rotary { inverse_frequencies: inverse_frequencies(config, d_head, n_ctx)? };
    model.base.spec.attn_scale = vec![(d_head as f64).powf(-0.5) as f32; model.base.spec.n_layers];
    Ok(Box::new(model))
}

impl Llama {
    fn layer(&self, layer: usize) -> String {
        format!("{}layers.{layer}", self.base.prefix)
    }

    /// Names, relative to the layer, and shapes of a block's tensors.
    fn block_tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let s = &self.base.spec;
        let (d, q, kv) = (s.d_model, s.q_width(), s.kv_width());
        let mut tensors = vec![
            ("input_layernorm.weight", vec![d]),
            ("self_attn.q_proj.weight", vec![q, d]),
            ("self_attn.k_proj.weight", vec![kv, d]),
            ("self_attn.v_proj.weight", vec![kv, d]),
            ("self_attn.o_proj.weight", vec![d, q]),
            ("post_attention_layernorm.weight", vec![d]),
            ("mlp.gate_proj.weight", vec![s.d_mlp, d]),
            ("mlp.up_proj.weight", vec![s.d_mlp, d]),
            ("mlp.down_proj.weight", vec![d, s.d_mlp]),
        ];
        if self.attention_bias {
            tensors.extend([
                ("self_attn.q_proj.bias", vec![q]),
                ("self_attn.k_proj.bias", vec![kv]),
                ("self_attn.v_proj.bias", vec![kv]),
                ("self_attn.o_proj.bias", vec![d]),
            ]);
        }
        if self.mlp_bias {
            tensors.extend([
                ("mlp.gate_proj.bias", vec![s.d_mlp]),
                ("mlp.up_proj.bias", vec![s.d_mlp]),
                ("mlp.down_proj.bias", vec![d]),
            ]);
        }
        tensors
    }

    fn check(&self) -> Result<()> {
        let block = self.block_tensors();
        let blocks = (0..self.base.spec.n_layers)
            .flat_map(|layer| block.iter().map(move |(name, shape)| (format!("layers.{layer}.{name}"), shape.clone())));
        let norm = ("norm.weight".to_owned(), vec![self.base.spec.d_model]);
        // Older files hold the rotary frequencies as a buffer.
        self.base.check(std::iter::once(norm).chain(blocks), |name| name.ends_with("rotary_emb.inv_freq"))
    }
}

impl Checkpoint for Llama {
    fn spec(&self) -> &ModelSpec {
        &self.base.spec
    }

    fn outer(&self) -> Result<HostOuter<'_>> {
        self.base.outer(None, "norm", false)
    }

    fn block(&self, layer: usize) -> Result<HostBlock<'_>> {
        let s = &self.base.spec;
        let (w, d, at) = (&self.base.weights, s.d_model, self.layer(layer));
        let linear = |name: &str, outputs, inputs, bias| w.linear(&format!("{at}.{name}"), outputs, inputs, bias);
        Ok(HostBlock {
            attn_norm: w.norm(&format!("{at}.input_layernorm"), d, false)?,
            q: linear("self_attn.q_proj", s.q_width(), d, self.attention_bias)?,
            k: linear("self_attn.k_proj", s.kv_width(), d, self.attention_bias)?,
            v: linear("self_attn.v_proj", s.kv_width(), d, self.attention_bias)?,
            o: linear("self_attn.o_proj", d, s.q_width(), self.attention_bias)?,
            mlp_norm: w.norm(&format!("{at}.post_attention_layernorm"), d, false)?,
            input: linear("mlp.gate_proj", s.d_mlp, d, self.mlp_bias)?,
            linear: Some(linear("mlp.up_proj", s.d_mlp, d, self.mlp_bias)?),
            out: linear("mlp.down_proj", d, s.d_mlp, self.mlp_bias)?,
        })
    }
}
