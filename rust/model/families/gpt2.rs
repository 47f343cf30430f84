//! GPT-2: layer norms, learned positions, one tensor for queries, keys and values, weights stored `[in, out]`.

use std::borrow::Cow;

use super::base::{Base, Tying};
use super::{Opened, Top, activation, head};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::model::source::Weights;
use crate::model::spec::{ModelSpec, NormKind, Positions};
use crate::model::weights::{Checkpoint, HostBlock, HostLinear, HostOuter};

struct Gpt2 {
    base: Base,
}

pub(super) fn open(config: &Config<'_>, top: Top, weights: Weights) -> Result<Opened> {
    let d_model = config.dimension("n_embd")?;
    let n_heads = config.dimension("n_head")?;
    if !d_model.is_multiple_of(n_heads) {
        let what = format!("n_embd: expected a multiple of n_head = {n_heads}, found {d_model}");
        return Err(Error::checkpoint("config.json", what));
    }
    let d_head = d_model / n_heads;
    let n_ctx = match config.dimension_if("n_positions")? {
        Some(n) => n,
        None => config.dimension("n_ctx")?,
    };
    let act_fn = config.word("activation_function")?.unwrap_or("gelu_new");
    let prefix = weights.prefix("transformer.");
    let tied = config.boolean("tie_word_embeddings", true)?;
    let tying = Tying::find(&weights, format!("{prefix}wte.weight"), top, tied);
    let base = Base {
        spec: ModelSpec {
            family: "gpt2".to_owned(),
            n_layers: config.dimension("n_layer")?,
            d_model,
            d_mlp: config.dimension_if("n_inner")?.unwrap_or(4 * d_model),
            n_heads,
            n_kv_heads: n_heads,
            d_head,
            d_vocab: config.dimension("vocab_size")?,
            n_ctx,
            act_fn: act_fn.to_owned(),
            activation: activation(act_fn)?,
            gated: false,
            norm: NormKind::Layer,
            norm_eps: config.epsilon("layer_norm_epsilon", 1e-5)?,
            positions: Positions::Learned,
            attn_scale: Vec::new(),
            head: head(config, top, &weights, d_model)?,
        },
        weights,
        tying,
        prefix,
    };
    let mut model = Gpt2 { base };
    model.check()?;
    // `reorder_and_upcast_attn` changes only the order of rounding, and nothing in f32: read to see that it is a flag.
    config.boolean("reorder_and_upcast_attn", false)?;
    let base = if config.boolean("scale_attn_weights", true)? { (d_head as f64).powf(-0.5) } else { 1.0 };
    let by_layer = config.boolean("scale_attn_by_inverse_layer_idx", false)?;
    let scale = |layer: usize| (if by_layer { base / (layer + 1) as f64 } else { base }) as f32;
    model.base.spec.attn_scale = (0..model.base.spec.n_layers).map(scale).collect();
    Ok(Box::new(model))
}

impl Gpt2 {
    fn layer(&self, layer: usize) -> String {
        format!("{}h.{layer}", self.base.prefix)
    }

    fn check(&self) -> Result<()> {
        let s = &self.base.spec;
        let d = s.d_model;
        let outer = [("wpe.weight", vec![s.n_ctx, d]), ("ln_f.weight", vec![d]), ("ln_f.bias", vec![d])];
        let block = [
            ("ln_1.weight", vec![d]),
            ("ln_1.bias", vec![d]),
            ("attn.c_attn.weight", vec![d, 3 * d]),
            ("attn.c_attn.bias", vec![3 * d]),
            ("attn.c_proj.weight", vec![d, d]),
            ("attn.c_proj.bias", vec![d]),
            ("ln_2.weight", vec![d]),
            ("ln_2.bias", vec![d]),
            ("mlp.c_fc.weight", vec![d, s.d_mlp]),
            ("mlp.c_fc.bias", vec![s.d_mlp]),
            ("mlp.c_proj.weight", vec![s.d_mlp, d]),
            ("mlp.c_proj.bias", vec![d]),
        ];
        let outer = outer.into_iter().map(|(name, shape)| (name.to_owned(), shape));
        let blocks = (0..s.n_layers)
            .flat_map(|layer| block.iter().map(move |(name, shape)| (format!("h.{layer}.{name}"), shape.clone())));
        // Older files hold the causal mask as buffers.
        let buffer = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
        self.base.check(outer.chain(blocks), buffer)
    }

    /// Queries, keys and values: thirds of the columns of `c_attn` `[in, 3 * out]`.
    fn attention(&self, at: &str) -> Result<[HostLinear<'_>; 3]> {
        let (d, weights) = (self.base.spec.d_model, &self.base.weights);
        let data = weights.tensor(&format!("{at}.attn.c_attn.weight"), &[d, 3 * d])?;
        let bias = weights.vector(&format!("{at}.attn.c_attn.bias"), 3 * d)?;
        let third = |i: usize| {
            let (data, offset, input_stride) = match &data {
                Cow::Borrowed(all) => (Cow::Borrowed(*all), i * d, 3 * d),
                // Each map owns its columns only, instead of all three owning everything.
                Cow::Owned(all) => {
                    let columns = all.chunks_exact(3 * d).flat_map(|row| &row[i * d..(i + 1) * d]).copied();
                    (Cow::Owned(columns.collect()), 0, d)
                }
            };
            let bias = Some(bias[i * d..(i + 1) * d].to_vec());
            HostLinear { data, offset, outputs: d, inputs: d, output_stride: 1, input_stride, bias }
        };
        Ok([third(0), third(1), third(2)])
    }
}

impl Checkpoint for Gpt2 {
    fn spec(&self) -> &ModelSpec {
        &self.base.spec
    }

    fn outer(&self) -> Result<HostOuter<'_>> {
        self.base.outer(Some("wpe.weight"), "ln_f", true)
    }

    fn block(&self, layer: usize) -> Result<HostBlock<'_>> {
        let (w, d, d_mlp, at) = (&self.base.weights, self.base.spec.d_model, self.base.spec.d_mlp, self.layer(layer));
        let [q, k, v] = self.attention(&at)?;
        Ok(HostBlock {
            attn_norm: w.norm(&format!("{at}.ln_1"), d, true)?,
            q,
            k,
            v,
            o: w.conv1d(&format!("{at}.attn.c_proj"), d, d)?,
            mlp_norm: w.norm(&format!("{at}.ln_2"), d, true)?,
            input: w.conv1d(&format!("{at}.mlp.c_fc"), d_mlp, d)?,
            linear: None,
            out: w.conv1d(&format!("{at}.mlp.c_proj"), d, d_mlp)?,
        })
    }
}
