//! What the checkpoints of all families have in common.

use std::collections::HashSet;

use super::Top;
use crate::error::Result;
use crate::model::source::Weights;
use crate::model::spec::{Head, ModelSpec};
use crate::model::weights::{HostLinear, HostOuter};

/// An opened checkpoint, but for the names of its tensors.
pub(super) struct Base {
    pub spec: ModelSpec,
    pub weights: Weights,
    pub tying: Tying,
    /// What stands in front of the base model's tensor names.
    pub prefix: &'static str,
}

impl Base {
    /// Checks that the file holds the architecture's tensors and no others: the embeddings, and `tensors` (names behind
    /// the prefix, and shapes). They are taken one by one: a config may claim more layers than any file holds.
    pub fn check(
        &self,
        tensors: impl Iterator<Item = (String, Vec<usize>)>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<()> {
        self.tying.check(&self.weights, self.spec.d_vocab, self.spec.d_model)?;
        let mut expected = HashSet::from([self.tying.embed.clone()]);
        for (name, shape) in tensors {
            let name = format!("{}{name}", self.prefix);
            self.weights.require(&name, &shape)?;
            expected.insert(name);
        }
        self.weights.refuse_unexpected(self.prefix, &expected, ignored)
    }

    /// The weights outside the blocks, from the names of the learned positions and of the final norm.
    pub fn outer(&self, positions: Option<&str>, final_norm: &str, norm_bias: bool) -> Result<HostOuter<'_>> {
        let Self { spec, weights, tying, prefix } = self;
        let d_model = spec.d_model;
        let embed = weights.tensor(&tying.embed, &[spec.d_vocab, d_model])?;
        let head = tying.head(weights, spec.head, spec.d_vocab, d_model, &embed)?;
        let pos_embed =
            positions.map(|name| weights.tensor(&format!("{prefix}{name}"), &[spec.n_ctx, d_model])).transpose()?;
        let final_norm = weights.norm(&format!("{prefix}{final_norm}"), d_model, norm_bias)?;
        Ok(HostOuter { embed, pos_embed, final_norm, head })
    }
}

/// The embedding's and the unembedding's tensors, tied or not.
///
/// Tying follows transformers: a tied model's file may hold either or both; both with different values are not tied.
pub(super) struct Tying {
    embed: String,
    unembed: Option<String>,
}

impl Tying {
    pub fn find(weights: &Weights, embed: String, top: Top, tied: bool) -> Self {
        let unembed = "lm_head.weight";
        if top == Top::Reward {
            return Self { embed, unembed: None };
        }
        match (tied, weights.contains(&embed), weights.contains(unembed)) {
            (true, true, false) => Self { embed, unembed: None },
            (true, false, true) => Self { embed: unembed.to_owned(), unembed: None },
            // Untied, the tensor is required: its absence is reported when it is checked.
            _ => Self { embed, unembed: Some(unembed.to_owned()) },
        }
    }

    fn check(&self, weights: &Weights, d_vocab: usize, d_model: usize) -> Result<()> {
        weights.require(&self.embed, &[d_vocab, d_model])?;
        self.unembed.iter().try_for_each(|name| weights.require(name, &[d_vocab, d_model]))
    }

    /// The head's map, `None` where it is the embedding.
    fn head<'a>(
        &self,
        weights: &'a Weights,
        head: Head,
        d_vocab: usize,
        d_model: usize,
        embed: &[f32],
    ) -> Result<Option<HostLinear<'a>>> {
        match (head, &self.unembed) {
            (Head::Reward { labels, .. }, _) => Ok(Some(weights.linear("score", labels, d_model, false)?)),
            (Head::Unembed, None) => Ok(None),
            (Head::Unembed, Some(_)) => {
                let unembed = weights.linear("lm_head", d_vocab, d_model, false)?;
                Ok((unembed.data[..] != *embed).then_some(unembed))
            }
        }
    }
}
