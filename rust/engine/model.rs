//! A model on a device: weights packed once, tables made once, and the [`Engine`] that runs requests on them.

use std::sync::OnceLock;

use super::plan::Plan;
use super::request::{
    Context, Engine, Gradients, Output, Request, Response, Table, TokenScore, TopTokens, WeightKind, validate,
};
use super::site::Site;
use super::{backward, forward};
use crate::backend::{AttentionShape, Backend, Check, Gemm, MatrixView};
use crate::error::{Error, Result};
use crate::model::spec::{Head, ModelSpec, Positions};
use crate::model::weights::{Checkpoint, HostLinear, HostNorm};

/// A linear map on the device; its transpose is packed when a gradient first asks for it.
pub(super) struct Linear<B: Backend> {
    pub weight: B::Weight,
    pub bias: Option<B::Buffer>,
    pub outputs: usize,
    transposed: OnceLock<B::Weight>,
}

impl<B: Backend> Linear<B> {
    fn new(backend: &B, host: &HostLinear<'_>) -> Result<Self> {
        Ok(Self {
            weight: backend.pack(host.view())?,
            bias: host.bias.as_deref().map(|bias| backend.upload(bias)).transpose()?,
            outputs: host.outputs,
            transposed: OnceLock::new(),
        })
    }

    pub fn transposed(&self, backend: &B) -> Result<&B::Weight> {
        once(&self.transposed, || backend.pack_transposed(&self.weight))
    }

    /// This map of `x`'s rows, or some panels of it, as one product of a parallel region.
    pub fn job<'a>(
        &'a self,
        x: &'a B::Buffer,
        rows: usize,
        panels: Option<&'a [u32]>,
        out: &'a mut B::Buffer,
    ) -> Gemm<'a, B> {
        Gemm { x, rows, weight: &self.weight, bias: self.bias.as_ref(), panels, out }
    }

    /// `out = x Wᵀ + bias`.
    pub fn forward(
        &self,
        backend: &B,
        x: &B::Buffer,
        rows: usize,
        out: &mut B::Buffer,
        check: Check<'_>,
    ) -> Result<()> {
        backend.gemm(&mut [self.job(x, rows, None, out)], check)
    }

    /// `dx = dy W`.
    pub fn backward(
        &self,
        backend: &B,
        dy: &B::Buffer,
        rows: usize,
        dx: &mut B::Buffer,
        check: Check<'_>,
    ) -> Result<()> {
        let weight = self.transposed(backend)?;
        backend.gemm(&mut [Gemm { x: dy, rows, weight, bias: None, panels: None, out: dx }], check)
    }
}

/// `OnceLock::get_or_try_init`, which is not stable. Two threads may both compute; one result is kept.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

pub(super) struct Norm<B: Backend> {
    pub gain: B::Buffer,
    pub bias: Option<B::Buffer>,
}

impl<B: Backend> Norm<B> {
    fn new(backend: &B, host: &HostNorm) -> Result<Self> {
        Ok(Self {
            gain: backend.upload(&host.gain)?,
            bias: host.bias.as_deref().map(|bias| backend.upload(bias)).transpose()?,
        })
    }
}

pub(super) struct Block<B: Backend> {
    pub attn_norm: Norm<B>,
    pub q: Linear<B>,
    pub k: Linear<B>,
    pub v: Linear<B>,
    pub o: Linear<B>,
    pub mlp_norm: Norm<B>,
    pub input: Linear<B>,
    pub linear: Option<Linear<B>>,
    pub out: Linear<B>,
}

pub(super) struct Rotary<B: Backend> {
    pub cos: B::Buffer,
    pub sin: B::Buffer,
    pub width: usize,
}

/// A model on a device.
pub struct Model<B: Backend> {
    pub(super) backend: B,
    pub(super) spec: ModelSpec,
    pub(super) embed: B::Buffer,
    pub(super) pos_embed: Option<B::Buffer>,
    pub(super) rotary: Option<Rotary<B>>,
    pub(super) blocks: Vec<Block<B>>,
    pub(super) final_norm: Norm<B>,
    pub(super) head: Linear<B>,
    /// The embedding, packed, where it is not the unembedding too.
    embed_packed: OnceLock<B::Weight>,
    tied: bool,
}

impl<B: Backend> Model<B> {
    /// Packs a checkpoint's weights for a device, a block at a time.
    ///
    /// `check` is called between blocks and may end the work.
    pub fn load(backend: B, checkpoint: &dyn Checkpoint, check: &dyn Fn() -> Result<()>) -> Result<Self> {
        let spec = checkpoint.spec().clone();
        let mut blocks = Vec::with_capacity(spec.n_layers);
        for layer in 0..spec.n_layers {
            check()?;
            let host = checkpoint.block(layer)?;
            blocks.push(Block {
                attn_norm: Norm::new(&backend, &host.attn_norm)?,
                q: Linear::new(&backend, &host.q)?,
                k: Linear::new(&backend, &host.k)?,
                v: Linear::new(&backend, &host.v)?,
                o: Linear::new(&backend, &host.o)?,
                mlp_norm: Norm::new(&backend, &host.mlp_norm)?,
                input: Linear::new(&backend, &host.input)?,
                linear: host.linear.as_ref().map(|linear| Linear::new(&backend, linear)).transpose()?,
                out: Linear::new(&backend, &host.out)?,
            });
        }
        check()?;
        let outer = checkpoint.outer()?;
        let tied = outer.head.is_none();
        let tied_head = HostLinear {
            data: outer.embed.as_ref().into(),
            offset: 0,
            outputs: spec.d_vocab,
            inputs: spec.d_model,
            output_stride: spec.d_model,
            input_stride: 1,
            bias: None,
        };
        let head = Linear::new(&backend, outer.head.as_ref().unwrap_or(&tied_head))?;
        let rotary = match &spec.positions {
            Positions::Learned => None,
            Positions::Rotary { inverse_frequencies } => Some(rotary(&backend, inverse_frequencies, spec.n_ctx)?),
        };
        Ok(Self {
            embed: backend.upload(&outer.embed)?,
            pos_embed: outer.pos_embed.as_deref().map(|table| backend.upload(table)).transpose()?,
            rotary,
            blocks,
            final_norm: Norm::new(&backend, &outer.final_norm)?,
            head,
            embed_packed: OnceLock::new(),
            tied,
            backend,
            spec,
        })
    }

    /// The shape of a layer's attention.
    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        let spec = &self.spec;
        AttentionShape {
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            d_head: spec.d_head,
            scale: spec.attn_scale[layer],
        }
    }

    /// A block's norm, with gain and bias.
    pub(super) fn norm(&self, x: &B::Buffer, rows: usize, norm: &Norm<B>, out: &mut B::Buffer) -> Result<()> {
        let (spec, bias) = (&self.spec, norm.bias.as_ref());
        self.backend.norm(spec.norm, spec.norm_eps, x, rows, spec.d_model, Some(&norm.gain), bias, out)
    }

    /// Fails on a model whose head scores sequences, not tokens.
    pub(super) fn needs_unembedding(&self) -> Result<()> {
        if self.spec.head == Head::Unembed {
            return Ok(());
        }
        Err(Error::argument("objective", "a model with an unembedding", "a reward model"))
    }

    fn table(&self, table: Table) -> Result<&B::Weight> {
        if table == Table::Unembed {
            self.needs_unembedding()?;
            return Ok(&self.head.weight);
        }
        if self.tied {
            return Ok(&self.head.weight);
        }
        once(&self.embed_packed, || {
            let data = self.backend.download(&self.embed, 0..self.spec.d_vocab * self.spec.d_model)?;
            self.backend.pack(MatrixView {
                data: &data,
                outputs: self.spec.d_vocab,
                inputs: self.spec.d_model,
                output_stride: self.spec.d_model,
                input_stride: 1,
            })
        })
    }
}

/// Cosines and sines of every position, computed in float64 and rounded once.
fn rotary<B: Backend>(backend: &B, frequencies: &[f64], n_ctx: usize) -> Result<Rotary<B>> {
    let angle = |i: usize| (i / frequencies.len()) as f64 * frequencies[i % frequencies.len()];
    let cells = n_ctx * frequencies.len();
    let cos: Vec<f32> = (0..cells).map(|i| angle(i).cos() as f32).collect();
    let sin: Vec<f32> = (0..cells).map(|i| angle(i).sin() as f32).collect();
    Ok(Rotary { cos: backend.upload(&cos)?, sin: backend.upload(&sin)?, width: frequencies.len() })
}

impl<B: Backend> Engine for Model<B> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(&self, request: &Request, context: &mut Context<'_>) -> Result<Response> {
        validate(request, &self.spec)?;
        let host = context.host.as_deref();
        let plan = Plan::new(request, &self.spec, &|site| host.is_some_and(|host| host.wants(site)), None)?;
        let (response, _) = forward::run(self, &plan, request, context, false)?;
        Ok(response)
    }

    fn gradient(
        &self,
        request: &Request,
        wrt: &[Site],
        from: Option<&[usize]>,
        seed: &mut dyn FnMut(&[Output]) -> Result<Vec<Vec<f32>>>,
        context: &mut Context<'_>,
    ) -> Result<(Response, Gradients)> {
        validate(request, &self.spec)?;
        if !request.variants.is_empty() || context.host.is_some() {
            return Err(Error::Internal("a gradient is of the clean forest, without host steps".to_owned()));
        }
        let plan = Plan::new(request, &self.spec, &|_| false, Some(wrt))?;
        let (response, tape) = forward::run(self, &plan, request, context, true)?;
        let seeds = seed(&response.outputs)?;
        let shapes_agree = seeds.len() == response.outputs.len()
            && seeds.iter().zip(&response.outputs).all(|(seed, output)| seed.len() == output.data.len());
        let Some(tape) = tape.filter(|_| shapes_agree) else {
            return Err(Error::Internal("a gradient needs one seed an output value".to_owned()));
        };
        let gradients = backward::run(self, &plan, request, &tape, &seeds, wrt, from, context)?;
        Ok((response, gradients))
    }

    fn top_tokens(&self, terms: &[TokenScore<'_>], rows: usize, allowed: &[bool], k: usize) -> Result<TopTokens> {
        if allowed.len() != self.spec.d_vocab {
            return Err(Error::argument("allowed", format!("{} flags", self.spec.d_vocab), allowed.len()));
        }
        let buffers: Vec<B::Buffer> =
            terms.iter().map(|term| self.backend.upload(term.x)).collect::<Result<Vec<_>>>()?;
        let mut tables = Vec::with_capacity(terms.len());
        for (term, buffer) in terms.iter().zip(&buffers) {
            if term.x.len() != rows * self.spec.d_model || term.scale.len() != rows {
                return Err(Error::Internal("a token score needs one vector and one factor a row".to_owned()));
            }
            tables.push((buffer, self.table(term.table)?, term.scale));
        }
        let best = self.backend.top_outputs(&tables, rows, allowed, k)?;
        Ok(TopTokens {
            ids: best.iter().map(|row| row.iter().map(|&(id, _)| id).collect()).collect(),
            scores: best.iter().map(|row| row.iter().map(|&(_, score)| score).collect()).collect(),
        })
    }

    fn weight_row(&self, kind: WeightKind, layer: usize, row: usize) -> Result<Vec<f32>> {
        let spec = &self.spec;
        let outer = matches!(
            kind,
            WeightKind::Embed | WeightKind::Unembed | WeightKind::FinalNormGain | WeightKind::FinalNormBias
        );
        if !outer && layer >= spec.n_layers {
            return Err(Error::argument("layer", format!("0 to {}", spec.n_layers - 1), layer));
        }
        let block = &self.blocks[if outer { 0 } else { layer }];
        let vector = |buffer: Option<&B::Buffer>, len: usize| match buffer {
            Some(buffer) => self.backend.download(buffer, 0..len),
            None => Ok(vec![0.0; len]),
        };
        let map_row = |linear: &Linear<B>| {
            if row >= linear.outputs {
                return Err(Error::argument("row", format!("below {}", linear.outputs), row));
            }
            self.backend.weight_row(&linear.weight, row)
        };
        let gated = || block.linear.as_ref().ok_or_else(|| Error::argument("kind", "a gated MLP", "a plain one"));
        match kind {
            WeightKind::In => map_row(&block.input),
            WeightKind::InLinear => map_row(gated()?),
            WeightKind::Out => {
                if row >= spec.d_mlp {
                    return Err(Error::argument("row", format!("below {}", spec.d_mlp), row));
                }
                self.backend.weight_row(block.out.transposed(&self.backend)?, row)
            }
            WeightKind::Q => map_row(&block.q),
            WeightKind::K => map_row(&block.k),
            WeightKind::V => map_row(&block.v),
            WeightKind::AttnNormGain => vector(Some(&block.attn_norm.gain), spec.d_model),
            WeightKind::AttnNormBias => vector(block.attn_norm.bias.as_ref(), spec.d_model),
            WeightKind::MlpNormGain => vector(Some(&block.mlp_norm.gain), spec.d_model),
            WeightKind::MlpNormBias => vector(block.mlp_norm.bias.as_ref(), spec.d_model),
            WeightKind::InBias => vector(block.input.bias.as_ref(), spec.d_mlp),
            WeightKind::InLinearBias => vector(gated()?.bias.as_ref(), spec.d_mlp),
            WeightKind::Embed => {
                if row >= spec.d_vocab {
                    return Err(Error::argument("row", format!("below {}", spec.d_vocab), row));
                }
                self.backend.download(&self.embed, row * spec.d_model..(row + 1) * spec.d_model)
            }
            WeightKind::Unembed => map_row(&self.head),
            WeightKind::FinalNormGain => vector(Some(&self.final_norm.gain), spec.d_model),
            WeightKind::FinalNormBias => vector(self.final_norm.bias.as_ref(), spec.d_model),
        }
    }

    fn pool(&self) -> &rayon::ThreadPool {
        self.backend.pool()
    }
}
