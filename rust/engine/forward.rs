//! The forward sweep: one pass over the layers for all rows of a plan. A layer's own work is in [`block`](super::block).

use std::sync::Arc;

use super::block::{Layer, Scratch};
use super::cache::{Chunk, Store, extend};
use super::model::{Model, Norm};
use super::plan::Plan;
use super::request::{Context, Request, Response};
use super::rows::{Rows, copy, gathered};
use super::site::{Point, Site};
use super::tape::Tape;
use super::visit::Visitor;
use crate::backend::Backend;
use crate::error::Result;

/// A sweep under way.
pub(super) struct Sweep<'a, 'c, B: Backend> {
    pub model: &'a Model<B>,
    pub plan: &'a Plan,
    pub visitor: Visitor<'a, 'c, B>,
    /// Keys and values of the cached segments.
    pub chunks: &'a [Arc<Chunk<B>>],
    /// Keys and values to keep, if any are.
    pub kept: Option<Chunk<B>>,
    /// What the backward sweep needs, if there will be one.
    pub tape: Option<Tape<B>>,
    pub scratch: Scratch<B>,
}

/// Runs a plan. With `taped`, also what the backward sweep needs.
pub(super) fn run<B: Backend>(
    model: &Model<B>,
    plan: &Plan,
    request: &Request,
    context: &mut Context<'_>,
    taped: bool,
) -> Result<(Response, Option<Tape<B>>)> {
    let chunks = Store::of(request)?;
    let mut sweep = Sweep {
        model,
        plan,
        visitor: Visitor::new(model, plan, request, context),
        chunks: &chunks,
        kept: request.keep.then(Chunk::new),
        tape: taped.then(Tape::new),
        scratch: Scratch::new(model, plan)?,
    };
    sweep.layers()?;
    let Sweep { visitor, kept, tape, .. } = sweep;
    let outputs = visitor.outputs()?;
    let cache = kept.map(|chunk| extend(request, plan, chunks, chunk));
    Ok((Response { outputs, cache }, tape))
}

impl<B: Backend> Sweep<'_, '_, B> {
    fn layers(&mut self) -> Result<()> {
        let (model, plan) = (self.model, self.plan);
        let n_layers = model.spec.n_layers;
        let last = plan.last_layer(&model.spec);
        let mut x = self.embed()?;
        let mut rows = Rows::all(plan.n_clean);
        for layer in 0..=last {
            self.visitor.check()?;
            rows = self.join(layer, &mut x, rows)?;
            let tail = if layer == last { Rows::tail(plan.tail.as_deref(), rows.len) } else { rows };
            if !self.block(&Layer { index: layer, block: &model.blocks[layer], rows, tail }, &mut x)? {
                return Ok(());
            }
            rows = tail;
        }
        if plan.stop.layer == n_layers {
            self.visitor.check()?;
            rows = self.join(n_layers, &mut x, rows)?;
            self.head(&x, rows)?;
        }
        Ok(())
    }

    /// The residual that enters the first block, with room for every row of the plan.
    fn embed(&mut self) -> Result<B::Buffer> {
        let (model, plan, visitor) = (self.model, self.plan, &mut self.visitor);
        let (backend, d) = (&model.backend, model.spec.d_model);
        let pos_embed = Site { layer: 0, point: Point::PosEmbed };
        let joins_here =
            plan.joining.first().filter(|group| group.layer == 0).map_or(&[][..], |group| group.sources.as_slice());
        let edits_embedding = visitor.touched(Site::EMBED) || visitor.touched(pos_embed);
        let mut x = gathered(backend, &model.embed, d, &plan.tokens, plan.refs.len())?;
        // Variants that edit an embedding have rows here; the others of layer 0 get theirs in the same way.
        let mut n = plan.n_clean;
        if edits_embedding && !joins_here.is_empty() {
            backend.append_rows(&mut x, d, joins_here, n)?;
            n += joins_here.len();
        }
        visitor.visit(Site::EMBED, &mut x, Rows::all(n), None)?;
        if let Some(table) = &model.pos_embed {
            let mut positions = gathered(backend, table, d, &plan.positions[..n], n)?;
            visitor.visit(pos_embed, &mut positions, Rows::all(n), None)?;
            backend.add_assign(&mut x, &positions, n * d)?;
        }
        if !edits_embedding && !joins_here.is_empty() {
            backend.append_rows(&mut x, d, joins_here, n)?;
        }
        Ok(x)
    }

    /// Appends the rows that join at a layer (those of layer 0 are there already).
    fn join<'r>(&self, layer: usize, x: &mut B::Buffer, rows: Rows<'r>) -> Result<Rows<'r>> {
        let Some(group) = self.plan.joining.iter().find(|group| group.layer == layer) else { return Ok(rows) };
        if layer > 0 {
            let sources = rows.locate(&group.sources)?;
            self.model.backend.append_rows(x, self.model.spec.d_model, &sources, rows.len)?;
        }
        Ok(rows.joined_by(group.sources.len()))
    }

    /// The final norm, and the reads behind it.
    fn head(&mut self, x: &B::Buffer, rows: Rows<'_>) -> Result<()> {
        let (spec, backend) = (&self.model.spec, &self.model.backend);
        let d = spec.d_model;
        let mut normed = backend.zeros(rows.len * d)?;
        backend.norm(spec.norm, spec.norm_eps, x, rows.len, d, None, None, &mut normed)?;
        let site = Site { layer: spec.n_layers, point: Point::Normalized };
        self.visitor.visit(site, &mut normed, rows, None)?;
        let mut h = backend.zeros(rows.len * d)?;
        let Norm { gain, bias } = &self.model.final_norm;
        backend.affine(&normed, rows.len, d, Some(gain), bias.as_ref(), &mut h)?;
        self.visitor.read_head(&h, rows)?;
        if let Some(tape) = &mut self.tape {
            tape.last = Some((copy(backend, x, rows.len * d)?, h));
        }
        Ok(())
    }
}
