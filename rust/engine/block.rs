//! One block of the forward sweep: attention, then the MLP, each added to the residual.

use super::cache::sources;
use super::forward::Sweep;
use super::model::{Block, Model};
use super::plan::Plan;
use super::rows::{Rows, copy, gathered};
use super::site::{Point, Site};
use super::tape::Tape;
use crate::backend::{Backend, KeyValues, PANEL, Pass};
use crate::error::Result;

/// A layer that the sweep has come to.
pub(super) struct Layer<'a, B: Backend> {
    pub index: usize,
    pub block: &'a Block<B>,
    /// Rows of the residual that enters it: they have keys and values.
    pub rows: Rows<'a>,
    /// Those that go on from the queries: in the last layer fewer.
    pub tail: Rows<'a>,
}

impl<B: Backend> Layer<'_, B> {
    fn site(&self, point: Point) -> Site {
        Site { layer: self.index, point }
    }
}

/// Buffers that every layer uses anew, with room for every row of the plan.
pub(super) struct Scratch<B: Backend> {
    normed: B::Buffer,
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    turned_q: B::Buffer,
    turned_k: B::Buffer,
    z: B::Buffer,
    branch: B::Buffer,
    pre: B::Buffer,
    linear: B::Buffer,
    post: B::Buffer,
}

impl<B: Backend> Scratch<B> {
    pub fn new(model: &Model<B>, plan: &Plan) -> Result<Self> {
        let (spec, n) = (&model.spec, plan.refs.len());
        let mlp = spec.d_mlp.max(plan.panels.as_ref().map_or(0, |panels| panels.len() * PANEL));
        let buffer = |width: usize| model.backend.zeros(n * width);
        let turned = usize::from(model.rotary.is_some());
        Ok(Self {
            normed: buffer(spec.d_model)?,
            q: buffer(spec.q_width())?,
            k: buffer(spec.kv_width())?,
            v: buffer(spec.kv_width())?,
            turned_q: buffer(turned * spec.q_width())?,
            turned_k: buffer(turned * spec.kv_width())?,
            z: buffer(spec.q_width())?,
            branch: buffer(spec.d_model)?,
            pre: buffer(mlp)?,
            linear: buffer(usize::from(spec.gated) * mlp)?,
            post: buffer(mlp)?,
        })
    }
}

/// Each step says `false` if the sweep ends before what it leads to.
impl<B: Backend> Sweep<'_, '_, B> {
    /// From the residual that enters the block to the one that leaves it, in place.
    pub fn block(&mut self, at: &Layer<'_, B>, x: &mut B::Buffer) -> Result<bool> {
        let (backend, d) = (&self.model.backend, self.model.spec.d_model);
        self.visitor.visit(at.site(Point::ResidPre), x, at.rows, None)?;
        if let Some(tape) = &mut self.tape {
            tape.enter(copy(backend, x, at.rows.len * d)?);
        }
        if !self.visitor.reaches(at.site(Point::Q)) || !self.attention(at, x)? {
            return Ok(false);
        }
        self.visitor.check()?;
        let check = self.visitor.stop();
        at.block.o.forward(backend, &self.scratch.z, at.tail.len, &mut self.scratch.branch, check)?;
        self.visitor.visit(at.site(Point::AttnOut), &mut self.scratch.branch, at.tail, None)?;
        if !self.visitor.reaches(at.site(Point::ResidMid)) {
            return Ok(false);
        }
        if let Some(rows) = at.tail.picked() {
            *x = gathered(backend, x, d, rows, self.plan.refs.len().max(1))?;
        }
        backend.add_assign(x, &self.scratch.branch, at.tail.len * d)?;
        self.visitor.visit(at.site(Point::ResidMid), x, at.tail, None)?;
        if let Some(tape) = self.tape.as_mut().and_then(Tape::layer) {
            tape.resid_mid = Some(copy(backend, x, at.tail.len * d)?);
        }
        Ok(self.visitor.reaches(at.site(Point::Pre)) && self.mlp(at, x)?)
    }

    /// From the residual to the mixed values.
    fn attention(&mut self, at: &Layer<'_, B>, x: &B::Buffer) -> Result<bool> {
        let attends = self.visitor.reaches(at.site(Point::Pattern));
        let queries = attends || [Point::Q, Point::RotQ].iter().any(|&point| self.visitor.touched(at.site(point)));
        self.project(at, x, queries)?;
        self.rotate(at, queries)?;
        let (spec, backend) = (&self.model.spec, &self.model.backend);
        let Scratch { q, k, v, .. } = &self.scratch;
        if let Some(chunk) = &mut self.kept {
            chunk.keep(backend, self.plan, spec.kv_width(), &KeyValues { k, v })?;
        }
        if let Some(tape) = self.tape.as_mut().and_then(Tape::layer) {
            tape.q = Some(copy(backend, q, at.tail.len * spec.q_width())?);
            tape.k = Some(copy(backend, k, at.rows.len * spec.kv_width())?);
            tape.v = Some(copy(backend, v, at.rows.len * spec.kv_width())?);
        }
        if !attends {
            return Ok(false);
        }
        self.mix(at)?;
        if !self.visitor.reaches(at.site(Point::Z)) {
            return Ok(false);
        }
        self.visitor.visit(at.site(Point::Z), &mut self.scratch.z, at.tail, None)?;
        Ok(self.visitor.reaches(at.site(Point::AttnOut)))
    }

    /// Queries (if wanted), keys and values before rotary.
    fn project(&mut self, at: &Layer<'_, B>, x: &B::Buffer, queries: bool) -> Result<()> {
        let Self { model, visitor, scratch: Scratch { normed, q, k, v, .. }, .. } = self;
        let (backend, block) = (&model.backend, at.block);
        model.norm(x, at.rows.len, &block.attn_norm, normed)?;
        let compacted = match at.tail.picked() {
            Some(rows) if queries => Some(gathered(backend, normed, model.spec.d_model, rows, rows.len())?),
            _ => None,
        };
        let mut jobs = vec![block.k.job(normed, at.rows.len, None, k), block.v.job(normed, at.rows.len, None, v)];
        if queries {
            jobs.push(block.q.job(compacted.as_ref().unwrap_or(normed), at.tail.len, None, q));
        }
        backend.gemm(&mut jobs, visitor.stop())?;
        visitor.check()?;
        if queries {
            visitor.visit(at.site(Point::Q), q, at.tail, None)?;
        }
        visitor.visit(at.site(Point::K), k, at.rows, None)?;
        visitor.visit(at.site(Point::V), v, at.rows, None)
    }

    /// Turns queries (if wanted) and keys to their positions, in models that have rotary ones.
    fn rotate(&mut self, at: &Layer<'_, B>, queries: bool) -> Result<()> {
        let Self { model, plan, visitor, scratch: Scratch { q, k, turned_q, turned_k, .. }, .. } = self;
        let Some(table) = &model.rotary else { return Ok(()) };
        let spec = &model.spec;
        let turn = |x: &B::Buffer, positions: &[u32], heads, out: &mut B::Buffer| {
            let (cos, sin) = (&table.cos, &table.sin);
            model.backend.rotate(x, positions, heads, spec.d_head, cos, sin, table.width, false, out)
        };
        if queries {
            turn(q, &at.tail.positions(&plan.positions), spec.n_heads, turned_q)?;
            std::mem::swap(q, turned_q);
        }
        turn(k, &plan.positions[..at.rows.len], spec.n_kv_heads, turned_k)?;
        std::mem::swap(k, turned_k);
        if queries {
            visitor.visit(at.site(Point::RotQ), q, at.tail, None)?;
        }
        visitor.visit(at.site(Point::RotK), k, at.rows, None)
    }

    /// Mixes the values by the pattern, which exists only if someone looks at it.
    fn mix(&mut self, at: &Layer<'_, B>) -> Result<()> {
        let Self { model, plan, visitor, chunks, scratch: Scratch { q, k, v, z, .. }, .. } = self;
        let backend = &model.backend;
        let who = plan.attention(at.index, at.tail.is_tail())?;
        let shape = model.attention_shape(at.index);
        let sources = sources(KeyValues { k, v }, chunks, at.index);
        if !plan.patterns[at.index] {
            return backend.attention(who, shape, &sources, Pass::Whole { q, z }, visitor.stop());
        }
        let mut pattern = backend.zeros(at.tail.len * model.spec.n_heads * plan.n_keys)?;
        backend.attention(who, shape, &sources, Pass::Pattern { q, pattern: &mut pattern }, visitor.stop())?;
        visitor.visit(at.site(Point::Pattern), &mut pattern, at.tail, None)?;
        backend.attention(who, shape, &sources, Pass::Mix { pattern: &pattern, z }, visitor.stop())
    }

    /// From the middle residual to the block's output, in place.
    fn mlp(&mut self, at: &Layer<'_, B>, x: &mut B::Buffer) -> Result<bool> {
        let Self { model, plan, visitor, tape, scratch, .. } = self;
        let Scratch { normed, pre, linear, post, branch, .. } = scratch;
        let (spec, backend, block, rows) = (&model.spec, &model.backend, at.block, at.tail);
        let panels = plan.panels.as_deref().filter(|_| at.index == plan.stop.layer);
        let len = rows.len * panels.map_or(spec.d_mlp, |panels| panels.len() * PANEL);
        model.norm(x, rows.len, &block.mlp_norm, normed)?;
        let gate = block.linear.as_ref().filter(|_| visitor.reaches(at.site(Point::PreLinear)));
        let mut jobs = vec![block.input.job(normed, rows.len, panels, pre)];
        if let Some(map) = gate {
            jobs.push(map.job(normed, rows.len, panels, linear));
        }
        backend.gemm(&mut jobs, visitor.stop())?;
        visitor.check()?;
        visitor.visit(at.site(Point::Pre), pre, rows, panels)?;
        if gate.is_some() {
            visitor.visit(at.site(Point::PreLinear), linear, rows, panels)?;
        }
        let gate = gate.map(|_| &*linear);
        if let Some(tape) = tape.as_mut().and_then(Tape::layer) {
            tape.pre = Some(copy(backend, pre, len)?);
            tape.linear = gate.map(|gate| copy(backend, gate, len)).transpose()?;
        }
        if !visitor.reaches(at.site(Point::Post)) {
            return Ok(false);
        }
        backend.activate(spec.activation, pre, gate, len, post)?;
        visitor.visit(at.site(Point::Post), post, rows, panels)?;
        if !visitor.reaches(at.site(Point::MlpOut)) {
            return Ok(false);
        }
        visitor.check()?;
        block.out.forward(backend, post, rows.len, branch, visitor.stop())?;
        visitor.check()?;
        visitor.visit(at.site(Point::MlpOut), branch, rows, None)?;
        if !visitor.reaches(at.site(Point::ResidPost)) {
            return Ok(false);
        }
        backend.add_assign(x, branch, rows.len * spec.d_model)?;
        visitor.visit(at.site(Point::ResidPost), x, rows, None)?;
        Ok(true)
    }
}
