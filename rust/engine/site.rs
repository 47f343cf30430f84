//! Sites: the named places of the forward pass, with TransformerLens' names.

use crate::error::{Error, Result};
use crate::model::spec::{ModelSpec, Positions};

/// A place within a block (or before the first, or after the last), in forward order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// Token embedding, `[d_model]`.
    Embed,
    /// Learned position embedding, `[d_model]`.
    PosEmbed,
    /// Residual that enters the block, `[d_model]`.
    ResidPre,
    /// Queries before rotary, `[n_heads, d_head]`.
    Q,
    /// Keys before rotary, `[n_kv_heads, d_head]`.
    K,
    /// Values, `[n_kv_heads, d_head]`.
    V,
    /// Queries after rotary, `[n_heads, d_head]`.
    RotQ,
    /// Keys after rotary, `[n_kv_heads, d_head]`.
    RotK,
    /// Attention probabilities, `[n_heads, keys]`.
    Pattern,
    /// Mixed values, `[n_heads, d_head]`.
    Z,
    /// What attention adds to the residual, `[d_model]`.
    AttnOut,
    /// Residual between attention and MLP, `[d_model]`.
    ResidMid,
    /// Pre-activation (of the gate, in a gated MLP), `[d_mlp]`.
    Pre,
    /// Linear part of a gated MLP, `[d_mlp]`.
    PreLinear,
    /// What the MLP's output map reads, `[d_mlp]`.
    Post,
    /// What the MLP adds to the residual, `[d_model]`.
    MlpOut,
    /// Residual that leaves the block, `[d_model]`.
    ResidPost,
    /// Last residual, normalised, before gain and bias, `[d_model]`.
    Normalized,
}

const BLOCK: [(Point, &str); 15] = [
    (Point::ResidPre, "hook_resid_pre"),
    (Point::Q, "attn.hook_q"),
    (Point::K, "attn.hook_k"),
    (Point::V, "attn.hook_v"),
    (Point::RotQ, "attn.hook_rot_q"),
    (Point::RotK, "attn.hook_rot_k"),
    (Point::Pattern, "attn.hook_pattern"),
    (Point::Z, "attn.hook_z"),
    (Point::AttnOut, "hook_attn_out"),
    (Point::ResidMid, "hook_resid_mid"),
    (Point::Pre, "mlp.hook_pre"),
    (Point::PreLinear, "mlp.hook_pre_linear"),
    (Point::Post, "mlp.hook_post"),
    (Point::MlpOut, "hook_mlp_out"),
    (Point::ResidPost, "hook_resid_post"),
];

/// A named place of one model's forward pass. Ordered as the forward pass meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The block; 0 for the embeddings, `n_layers` for the final norm.
    pub layer: usize,
    /// The place within it.
    pub point: Point,
}

impl Site {
    /// The token embedding.
    pub const EMBED: Self = Self { layer: 0, point: Point::Embed };

    /// Every site of a model, in forward order.
    pub fn all(spec: &ModelSpec) -> Vec<Self> {
        let mut sites = vec![Self::EMBED];
        if spec.positions == Positions::Learned {
            sites.push(Self { layer: 0, point: Point::PosEmbed });
        }
        for layer in 0..spec.n_layers {
            sites.extend(BLOCK.iter().map(|&(point, _)| Self { layer, point }).filter(|site| site.exists(spec)));
        }
        sites.push(Self { layer: spec.n_layers, point: Point::Normalized });
        sites
    }

    fn exists(self, spec: &ModelSpec) -> bool {
        match self.point {
            Point::Embed => self.layer == 0,
            Point::PosEmbed => self.layer == 0 && spec.positions == Positions::Learned,
            Point::RotQ | Point::RotK => self.layer < spec.n_layers && spec.positions != Positions::Learned,
            Point::PreLinear => self.layer < spec.n_layers && spec.gated,
            Point::Normalized => self.layer == spec.n_layers,
            _ => self.layer < spec.n_layers,
        }
    }

    /// The site of a name such as `blocks.5.mlp.hook_post`.
    ///
    /// A name that this model does not have is an [`Error::Site`] that gives the nearest ones it has.
    pub fn parse(name: &str, spec: &ModelSpec) -> Result<Self> {
        let found = match name {
            "hook_embed" => Some(Self::EMBED),
            "hook_pos_embed" => Some(Self { layer: 0, point: Point::PosEmbed }),
            "ln_final.hook_normalized" => Some(Self { layer: spec.n_layers, point: Point::Normalized }),
            _ => name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')).and_then(|(layer, rest)| {
                let layer = layer.parse().ok()?;
                let &(point, _) = BLOCK.iter().find(|(_, short)| *short == rest)?;
                Some(Self { layer, point })
            }),
        };
        found.filter(|site| site.exists(spec)).ok_or_else(|| {
            let nearest = nearest(name, spec);
            Error::Site {
                name: name.to_owned(),
                what: format!("this model has no such site; the nearest are {}", nearest.join(", ")),
            }
        })
    }

    /// The site's name.
    pub fn name(self) -> String {
        match self.point {
            Point::Embed => "hook_embed".to_owned(),
            Point::PosEmbed => "hook_pos_embed".to_owned(),
            Point::Normalized => "ln_final.hook_normalized".to_owned(),
            point => {
                let short = BLOCK.iter().find(|(p, _)| *p == point).map_or("", |(_, short)| short);
                format!("blocks.{}.{short}", self.layer)
            }
        }
    }

    /// Number of heads of a site that has a head axis.
    pub fn heads(self, spec: &ModelSpec) -> Option<usize> {
        match self.point {
            Point::Q | Point::RotQ | Point::Z | Point::Pattern => Some(spec.n_heads),
            Point::K | Point::V | Point::RotK => Some(spec.n_kv_heads),
            _ => None,
        }
    }

    /// Values a token at this site; `n_keys` is the key axis of [`Point::Pattern`].
    pub fn width(self, spec: &ModelSpec, n_keys: usize) -> usize {
        match self.point {
            Point::Q | Point::RotQ | Point::Z => spec.q_width(),
            Point::K | Point::V | Point::RotK => spec.kv_width(),
            Point::Pattern => spec.n_heads * n_keys,
            Point::Pre | Point::PreLinear | Point::Post => spec.d_mlp,
            _ => spec.d_model,
        }
    }
}

/// The four existing names nearest to a wrong one, by edit distance.
fn nearest(name: &str, spec: &ModelSpec) -> Vec<String> {
    let mut scored: Vec<(usize, String)> = Site::all(spec)
        .into_iter()
        .map(Site::name)
        .map(|candidate| (edit_distance(name, &candidate), candidate))
        .collect();
    scored.sort_by_key(|(distance, _)| *distance);
    scored.into_iter().take(4).map(|(_, candidate)| candidate).collect()
}

/// Levenshtein's distance between two short strings, in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.as_bytes().iter().take(256).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
