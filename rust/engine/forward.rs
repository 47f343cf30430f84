//! The forward sweep: one pass over the layers for all rows of a plan.

use std::any::Any;
use std::sync::Arc;

use super::model::{Linear, Model, Norm};
use super::plan::{Plan, PlannedEdit};
use super::request::{
    Cache, CachedSegment, Columns, Context, EditOp, HostRows, Output, Parent, Read, Request, Response,
};
use super::site::{Point, Site};
use crate::backend::{AttentionShape, Backend, Gemm, KeyValues, PANEL};
use crate::error::{Error, Result};
use crate::model::spec::Head;

/// Keys and values of one request's kept rows, every layer.
pub(super) struct Chunk<B: Backend> {
    pub k: Vec<B::Buffer>,
    pub v: Vec<B::Buffer>,
}

/// What a [`Cache`] holds on a backend.
pub(super) struct Store<B: Backend> {
    pub chunks: Vec<Arc<Chunk<B>>>,
}

impl<B: Backend> Store<B> {
    /// What this backend put into a cache.
    pub fn of(cache: &Cache) -> Result<Arc<Self>> {
        let store = Arc::clone(&cache.store).downcast::<Self>();
        store.map_err(|_| Error::argument("cache", "one of this model's device", "another device's"))
    }
}

/// What the backward sweep needs of one layer.
pub(super) struct LayerTape<B: Backend> {
    /// Residual that entered the block, all rows.
    pub resid_pre: B::Buffer,
    /// Queries after rotary, the tail's rows in the last layer.
    pub q: Option<B::Buffer>,
    /// Keys after rotary, all rows.
    pub k: Option<B::Buffer>,
    /// Values, all rows.
    pub v: Option<B::Buffer>,
    /// Residual between attention and MLP.
    pub resid_mid: Option<B::Buffer>,
    /// Pre-activations.
    pub pre: Option<B::Buffer>,
    /// Linear part.
    pub linear: Option<B::Buffer>,
}

/// What the backward sweep needs.
pub(super) struct Tape<B: Backend> {
    pub layers: Vec<LayerTape<B>>,
    /// Last residual and the final norm's output, the tail's rows.
    pub last: Option<(B::Buffer, B::Buffer)>,
}

/// Rows of a buffer: all of the plan's, or the tail's.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    tail: Option<&'a [u32]>,
    /// Plan rows that the tail was taken from.
    full: usize,
    /// Rows in the buffer.
    pub len: usize,
}

impl<'a> Rows<'a> {
    pub fn all(len: usize) -> Self {
        Self { tail: None, full: len, len }
    }

    pub fn tail(rows: Option<&'a [u32]>, full: usize) -> Self {
        Self { tail: rows, full, len: rows.map_or(full, <[u32]>::len) }
    }

    /// The buffer row of a plan row.
    fn find(self, row: u32) -> Option<u32> {
        match self.tail {
            None => ((row as usize) < self.len).then_some(row),
            Some(_) if row as usize >= self.full => {
                let at = self.tail.map_or(0, <[u32]>::len) + row as usize - self.full;
                (at < self.len).then_some(at as u32)
            }
            Some(tail) => tail.binary_search(&row).ok().map(|at| at as u32),
        }
    }

    pub fn is_tail(self) -> bool {
        self.tail.is_some()
    }

    /// The buffer rows of plan rows that must all be there.
    pub fn locate(self, rows: &[u32]) -> Result<Vec<u32>> {
        rows.iter()
            .map(|&row| self.find(row).ok_or_else(|| Error::Internal(format!("row {row} was not computed"))))
            .collect()
    }

    /// The plan rows, in the buffer's order.
    pub fn iter(self) -> Box<dyn Iterator<Item = u32> + 'a> {
        match self.tail {
            None => Box::new(0..self.len as u32),
            Some(tail) => {
                let extra = self.len - tail.len();
                Box::new(tail.iter().copied().chain(self.full as u32..(self.full + extra) as u32))
            }
        }
    }
}

struct Sweep<'a, 'c, B: Backend> {
    model: &'a Model<B>,
    plan: &'a Plan,
    request: &'a Request,
    context: &'a mut Context<'c>,
    outputs: Vec<Option<Output>>,
}

/// Runs a plan. With `taped`, also what the backward sweep needs.
pub(super) fn run<B: Backend>(
    model: &Model<B>,
    plan: &Plan,
    request: &Request,
    context: &mut Context<'_>,
    taped: bool,
) -> Result<(Response, Option<Tape<B>>)> {
    let mut sweep = Sweep { model, plan, request, context, outputs: request.reads.iter().map(|_| None).collect() };
    let store = request.cache.as_ref().map(Store::of).transpose()?;
    let chunks = store.as_ref().map_or(&[][..], |store| &store.chunks);
    let mut kept = request.keep.then(|| Chunk { k: Vec::new(), v: Vec::new() });
    let tape = sweep.layers(chunks, kept.as_mut(), taped)?;
    let outputs = sweep
        .outputs
        .into_iter()
        .map(|output| output.ok_or_else(|| Error::Internal("a read was never reached".to_owned())))
        .collect::<Result<Vec<_>>>()?;
    let cache = kept.map(|chunk| extend(request, store.as_deref(), chunk, plan));
    Ok((Response { outputs, cache }, tape))
}

/// A cache with one more chunk: the request's segments.
fn extend<B: Backend>(request: &Request, store: Option<&Store<B>>, chunk: Chunk<B>, plan: &Plan) -> Cache {
    let mut segments = request.cache.as_ref().map_or_else(Vec::new, |cache| cache.segments.as_ref().clone());
    let mut chunks = store.map_or_else(Vec::new, |store| store.chunks.clone());
    let base = segments.len();
    for (s, segment) in request.segments.iter().enumerate() {
        let row = plan.segment_rows[s];
        segments.push(CachedSegment {
            parent: match segment.parent {
                Parent::Root => None,
                Parent::Segment { index, keep } => Some((base + index, keep)),
                Parent::Cached { index, keep } => Some((index, keep)),
            },
            position: plan.positions[row] as usize,
            tokens: segment.tokens.clone(),
            chunk: chunks.len(),
            row,
        });
    }
    chunks.push(Arc::new(chunk));
    let store: Arc<dyn Any + Send + Sync> = Arc::new(Store { chunks });
    Cache { segments: Arc::new(segments), store }
}

impl<B: Backend> Sweep<'_, '_, B> {
    fn backend(&self) -> &B {
        &self.model.backend
    }

    /// Whether the sweep computes a site.
    fn reaches(&self, layer: usize, point: Point) -> bool {
        Site { layer, point } <= self.plan.stop
    }

    /// Whether anyone looks at a site in any way.
    fn touched(&self, site: Site) -> bool {
        self.plan.reads.contains_key(&site) || self.plan.edits.contains_key(&site) || self.plan.hosted.contains(&site)
    }

    /// Edits, host steps and reads of a site, in this order.
    fn visit(&mut self, site: Site, buffer: &mut B::Buffer, rows: Rows<'_>, panels: Option<&[u32]>) -> Result<()> {
        if !self.touched(site) {
            return Ok(());
        }
        let spec = &self.model.spec;
        let plan = self.plan;
        let width = panels.map_or_else(|| site.width(spec, plan.n_keys), |panels| panels.len() * PANEL);
        for edit in plan.edits.get(&site).map_or(&[][..], Vec::as_slice) {
            apply(self.backend(), edit, buffer, width, rows)?;
        }
        if plan.hosted.contains(&site)
            && let Some(host) = self.context.host.as_deref_mut()
        {
            let host_rows = HostRows { rows: &plan.refs[..rows.len], positions: &plan.positions[..rows.len] };
            self.model
                .backend
                .on_host(buffer, rows.len * width, &mut |data| host.step(site, &host_rows, width, data))?;
        }
        for &i in plan.reads.get(&site).map_or(&[][..], Vec::as_slice) {
            let at = rows.locate(&plan.read_rows[i])?;
            let output = match &self.request.reads[i] {
                Read::Values { columns, .. } => self.values(buffer, width, rows.len, &at, columns, panels)?,
                Read::Project { vector, .. } => {
                    let data = self.backend().project(buffer, width, &at, vector)?;
                    Output { n_rows: data.len(), n_cols: 1, data }
                }
                _ => return Err(Error::Internal("a logit read at a site".to_owned())),
            };
            self.outputs[i] = Some(output);
        }
        Ok(())
    }

    fn values(
        &self,
        buffer: &mut B::Buffer,
        width: usize,
        n_rows: usize,
        rows: &[u32],
        columns: &Columns,
        panels: Option<&[u32]>,
    ) -> Result<Output> {
        let mut data = Vec::new();
        let picked: Option<Vec<usize>> = match (columns, panels) {
            (Columns::All, _) => None,
            (Columns::Some(columns), None) => Some(columns.iter().map(|&c| c as usize).collect()),
            (Columns::Some(columns), Some(panels)) => Some(compact(columns, panels)),
        };
        self.backend().on_host(buffer, n_rows * width, &mut |host| {
            for &row in rows {
                let row = &host[row as usize * width..][..width];
                match &picked {
                    None => data.extend_from_slice(row),
                    Some(columns) => data.extend(columns.iter().map(|&column| row[column])),
                }
            }
            Ok(())
        })?;
        Ok(Output { n_rows: rows.len(), n_cols: picked.map_or(width, |columns| columns.len()), data })
    }

    fn check(&self) -> Result<()> {
        self.context.check.map_or(Ok(()), |check| check())
    }

    fn layers(
        &mut self,
        chunks: &[Arc<Chunk<B>>],
        mut kept: Option<&mut Chunk<B>>,
        taped: bool,
    ) -> Result<Option<Tape<B>>> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend) = (&model.spec, &model.backend);
        let d = spec.d_model;
        let last = plan.last_layer(spec);
        let total = plan.refs.len();
        let mut x = self.embed()?;
        let mut tape = taped.then(|| Tape { layers: Vec::new(), last: None });
        let mut rows = Rows::all(plan.n_clean);
        let mut scratch = Scratch::new(model, plan)?;
        for layer in 0..=last {
            self.check()?;
            rows = self.join(layer, &mut x, rows)?;
            let site = |point| Site { layer, point };
            self.visit(site(Point::ResidPre), &mut x, rows, None)?;
            let tail = if layer == last { Rows::tail(plan.tail.as_deref(), rows.len) } else { rows };
            if let Some(tape) = &mut tape {
                tape.layers.push(LayerTape {
                    resid_pre: copy(backend, &x, rows.len * d)?,
                    q: None,
                    k: None,
                    v: None,
                    resid_mid: None,
                    pre: None,
                    linear: None,
                });
            }
            if !self.reaches(layer, Point::Q) {
                break;
            }
            let attends =
                self.attention(layer, &x, rows, tail, chunks, kept.as_deref_mut(), &mut scratch, tape.as_mut())?;
            if !attends {
                break;
            }
            self.check()?;
            let block = &model.blocks[layer];
            linear(backend, &scratch.z, tail.len, &block.o, None, &mut scratch.branch)?;
            self.visit(site(Point::AttnOut), &mut scratch.branch, tail, None)?;
            if !self.reaches(layer, Point::ResidMid) {
                break;
            }
            if let Some(rows) = plan.tail.as_deref().filter(|_| layer == last) {
                let mut compact = backend.zeros(total.max(1) * d)?;
                backend.gather(&x, d, rows, &mut compact)?;
                x = compact;
            }
            rows = tail;
            backend.add_assign(&mut x, &scratch.branch, rows.len * d)?;
            self.visit(site(Point::ResidMid), &mut x, rows, None)?;
            if let Some(tape) = tape.as_mut().and_then(|tape| tape.layers.last_mut()) {
                tape.resid_mid = Some(copy(backend, &x, rows.len * d)?);
            }
            if !self.reaches(layer, Point::Pre) {
                break;
            }
            if !self.mlp(layer, &mut x, rows, &mut scratch, tape.as_mut())? {
                break;
            }
        }
        if plan.stop.layer == spec.n_layers {
            self.check()?;
            rows = self.join(spec.n_layers, &mut x, rows)?;
            let last = self.finish(&x, rows, taped)?;
            if let Some(tape) = &mut tape {
                tape.last = last;
            }
        }
        Ok(tape)
    }

    /// The residual that enters the first block, with room for every row of the plan.
    fn embed(&mut self) -> Result<B::Buffer> {
        let (model, plan) = (self.model, self.plan);
        let (backend, d) = (&model.backend, model.spec.d_model);
        let joins_here =
            plan.joining.first().filter(|group| group.layer == 0).map_or(&[][..], |group| group.sources.as_slice());
        let edits_embedding =
            [Point::Embed, Point::PosEmbed].iter().any(|&point| self.touched(Site { layer: 0, point }));
        let mut x = backend.zeros(plan.refs.len() * d)?;
        backend.gather(&model.embed, d, &plan.tokens, &mut x)?;
        // Variants that edit an embedding have rows here; the others of layer 0 get theirs in the same way.
        let mut n = plan.n_clean;
        if edits_embedding && !joins_here.is_empty() {
            backend.append_rows(&mut x, d, joins_here, n)?;
            n += joins_here.len();
        }
        self.visit(Site::EMBED, &mut x, Rows::all(n), None)?;
        if let Some(table) = &model.pos_embed {
            let mut positions = backend.zeros(n * d)?;
            backend.gather(table, d, &plan.positions[..n], &mut positions)?;
            self.visit(Site { layer: 0, point: Point::PosEmbed }, &mut positions, Rows::all(n), None)?;
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
        let joined = match rows.tail {
            None => Rows::all(rows.len + group.sources.len()),
            Some(_) => Rows { len: rows.len + group.sources.len(), ..rows },
        };
        if layer > 0 {
            self.backend().append_rows(x, self.model.spec.d_model, &rows.locate(&group.sources)?, rows.len)?;
        }
        Ok(joined)
    }

    /// From the residual to the mixed values; `false` if the sweep ends before them.
    fn attention(
        &mut self,
        layer: usize,
        x: &B::Buffer,
        rows: Rows<'_>,
        tail: Rows<'_>,
        chunks: &[Arc<Chunk<B>>],
        kept: Option<&mut Chunk<B>>,
        scratch: &mut Scratch<B>,
        tape: Option<&mut Tape<B>>,
    ) -> Result<bool> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend, block) = (&model.spec, &model.backend, &model.blocks[layer]);
        let d = spec.d_model;
        let site = |point| Site { layer, point };
        let attends = self.reaches(layer, Point::Pattern);
        let needs_q = attends || self.touched(site(Point::Q)) || self.touched(site(Point::RotQ));
        norm(model, x, rows.len, &block.attn_norm, &mut scratch.normed)?;
        let compacted;
        let queries = match tail.tail {
            Some(rows) if needs_q => {
                let mut compact = backend.zeros(rows.len() * d)?;
                backend.gather(&scratch.normed, d, rows, &mut compact)?;
                compacted = compact;
                &compacted
            }
            _ => &scratch.normed,
        };
        let mut jobs = vec![
            job(&scratch.normed, rows.len, &block.k, None, &mut scratch.k),
            job(&scratch.normed, rows.len, &block.v, None, &mut scratch.v),
        ];
        if needs_q {
            jobs.push(job(queries, tail.len, &block.q, None, &mut scratch.q));
        }
        backend.gemm(&mut jobs)?;
        drop(jobs);
        self.check()?;
        if needs_q {
            self.visit(site(Point::Q), &mut scratch.q, tail, None)?;
        }
        self.visit(site(Point::K), &mut scratch.k, rows, None)?;
        self.visit(site(Point::V), &mut scratch.v, rows, None)?;
        if let Some(table) = &model.rotary {
            let n = if needs_q { tail.len } else { 0 };
            let at: Vec<u32> = tail.iter().take(n).map(|row| plan.positions[row as usize]).collect();
            let turn = |x: &B::Buffer, at: &[u32], heads, out: &mut B::Buffer| {
                backend.rotate(x, at, heads, spec.d_head, &table.cos, &table.sin, table.width, false, out)
            };
            turn(&scratch.q, &at, spec.n_heads, &mut scratch.turned_q)?;
            std::mem::swap(&mut scratch.q, &mut scratch.turned_q);
            turn(&scratch.k, &plan.positions[..rows.len], spec.n_kv_heads, &mut scratch.turned_k)?;
            std::mem::swap(&mut scratch.k, &mut scratch.turned_k);
            if needs_q {
                self.visit(site(Point::RotQ), &mut scratch.q, tail, None)?;
            }
            self.visit(site(Point::RotK), &mut scratch.k, rows, None)?;
        }
        if let Some(chunk) = kept {
            self.keep(layer, chunk, scratch)?;
        }
        if let Some(tape) = tape.and_then(|tape| tape.layers.last_mut()) {
            tape.q = Some(copy(backend, &scratch.q, tail.len * spec.q_width())?);
            tape.k = Some(copy(backend, &scratch.k, rows.len * spec.kv_width())?);
            tape.v = Some(copy(backend, &scratch.v, rows.len * spec.kv_width())?);
        }
        if !attends {
            return Ok(false);
        }
        let who = plan.attention(layer, tail.tail.is_some())?;
        let shape = model.attention_shape(layer);
        let mut sources: Vec<KeyValues<'_, B>> = vec![KeyValues { k: &scratch.k, v: &scratch.v }];
        sources.extend(chunks.iter().map(|chunk| KeyValues { k: &chunk.k[layer], v: &chunk.v[layer] }));
        if plan.patterns[layer] {
            let mut pattern = backend.zeros(tail.len * spec.n_heads * plan.n_keys)?;
            backend.attention_pattern(who, shape, &scratch.q, &sources, &mut pattern)?;
            self.visit(site(Point::Pattern), &mut pattern, tail, None)?;
            backend.attention_mix(who, shape, &pattern, &sources, &mut scratch.z)?;
        } else {
            backend.attention(who, shape, &scratch.q, &sources, &mut scratch.z)?;
        }
        if !self.reaches(layer, Point::Z) {
            return Ok(false);
        }
        self.visit(site(Point::Z), &mut scratch.z, tail, None)?;
        Ok(self.reaches(layer, Point::AttnOut))
    }

    /// Copies the kept variant's keys and values of a layer, in the clean forest's order.
    fn keep(&self, layer: usize, chunk: &mut Chunk<B>, scratch: &Scratch<B>) -> Result<()> {
        let plan = self.plan;
        let rows: Vec<u32> = plan.refs[..plan.n_clean]
            .iter()
            .enumerate()
            .map(|(row, token)| match plan.kept[token.segment] {
                Some((offset, first, joined)) if layer >= joined && token.offset >= offset => {
                    (first + token.offset - offset) as u32
                }
                _ => row as u32,
            })
            .collect();
        let width = self.model.spec.kv_width();
        for (from, to) in [(&scratch.k, &mut chunk.k), (&scratch.v, &mut chunk.v)] {
            let mut copy = self.backend().zeros(plan.n_clean * width)?;
            self.backend().gather(from, width, &rows, &mut copy)?;
            to.push(copy);
        }
        Ok(())
    }

    /// From the middle residual to the block's output, in place; `false` if the sweep ends before that.
    fn mlp(
        &mut self,
        layer: usize,
        x: &mut B::Buffer,
        rows: Rows<'_>,
        scratch: &mut Scratch<B>,
        tape: Option<&mut Tape<B>>,
    ) -> Result<bool> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend, block) = (&model.spec, &model.backend, &model.blocks[layer]);
        let d = spec.d_model;
        let site = |point| Site { layer, point };
        let panels = plan.panels.as_deref().filter(|_| layer == plan.stop.layer);
        let width = panels.map_or(spec.d_mlp, |panels| panels.len() * PANEL);
        norm(model, x, rows.len, &block.mlp_norm, &mut scratch.normed)?;
        let linear_wanted = self.reaches(layer, Point::PreLinear);
        let mut jobs = vec![job(&scratch.normed, rows.len, &block.input, panels, &mut scratch.pre)];
        if let Some(map) = block.linear.as_ref().filter(|_| linear_wanted) {
            jobs.push(job(&scratch.normed, rows.len, map, panels, &mut scratch.linear));
        }
        backend.gemm(&mut jobs)?;
        drop(jobs);
        self.check()?;
        self.visit(site(Point::Pre), &mut scratch.pre, rows, panels)?;
        let gated = block.linear.is_some() && linear_wanted;
        if gated {
            self.visit(site(Point::PreLinear), &mut scratch.linear, rows, panels)?;
        }
        if let Some(tape) = tape.and_then(|tape| tape.layers.last_mut()) {
            tape.pre = Some(copy(backend, &scratch.pre, rows.len * width)?);
            tape.linear = gated.then(|| copy(backend, &scratch.linear, rows.len * width)).transpose()?;
        }
        if !self.reaches(layer, Point::Post) {
            return Ok(false);
        }
        let gate = gated.then_some(&scratch.linear);
        backend.activate(spec.activation, &scratch.pre, gate, rows.len * width, &mut scratch.post)?;
        self.visit(site(Point::Post), &mut scratch.post, rows, panels)?;
        if !self.reaches(layer, Point::MlpOut) {
            return Ok(false);
        }
        self.check()?;
        linear(backend, &scratch.post, rows.len, &block.out, None, &mut scratch.branch)?;
        self.check()?;
        self.visit(site(Point::MlpOut), &mut scratch.branch, rows, None)?;
        if !self.reaches(layer, Point::ResidPost) {
            return Ok(false);
        }
        backend.add_assign(x, &scratch.branch, rows.len * d)?;
        self.visit(site(Point::ResidPost), x, rows, None)?;
        Ok(true)
    }

    /// The final norm, and the reads behind it.
    fn finish(&mut self, x: &B::Buffer, rows: Rows<'_>, taped: bool) -> Result<Option<(B::Buffer, B::Buffer)>> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend) = (&model.spec, &model.backend);
        let d = spec.d_model;
        let mut normed = backend.zeros(rows.len * d)?;
        backend.norm(spec.norm, spec.norm_eps, x, rows.len, d, None, None, &mut normed)?;
        self.visit(Site { layer: spec.n_layers, point: Point::Normalized }, &mut normed, rows, None)?;
        let mut h = backend.zeros(rows.len * d)?;
        let Norm { gain, bias } = &model.final_norm;
        backend.affine(&normed, rows.len, d, Some(gain), bias.as_ref(), &mut h)?;
        for (i, read) in self.request.reads.iter().enumerate() {
            if !matches!(read, Read::Logits { .. } | Read::LogProb { .. }) {
                continue;
            }
            self.check()?;
            let at = rows.locate(&plan.read_rows[i])?;
            let mut read_rows = backend.zeros(at.len() * d)?;
            backend.gather(&h, d, &at, &mut read_rows)?;
            self.outputs[i] = Some(match read {
                Read::LogProb { targets, .. } => {
                    model.needs_unembedding()?;
                    let data = backend.log_prob(&read_rows, at.len(), &model.head.weight, targets)?.0;
                    Output { n_rows: at.len(), n_cols: 1, data }
                }
                Read::Logits { columns, .. } => self.logits(&read_rows, at.len(), columns)?,
                _ => return Err(Error::Internal("a site read behind the sites".to_owned())),
            });
        }
        Ok(if taped { Some((copy(backend, x, rows.len * d)?, h)) } else { None })
    }

    fn logits(&self, h: &B::Buffer, rows: usize, columns: &Columns) -> Result<Output> {
        let (backend, head) = (self.backend(), &self.model.head);
        let (picked, panels) = match columns {
            Columns::All => (None, None),
            Columns::Some(columns) => {
                if let Some(&column) = columns.iter().find(|&&column| column as usize >= head.outputs) {
                    return Err(Error::Tokens(format!("id {column} is outside the {} logits", head.outputs)));
                }
                let mut panels: Vec<u32> = columns.iter().map(|column| column / PANEL as u32).collect();
                panels.sort_unstable();
                panels.dedup();
                (Some(compact(columns, &panels)), Some(panels))
            }
        };
        let width = panels.as_ref().map_or(head.outputs, |panels| panels.len() * PANEL);
        let mut out = backend.zeros(rows * width)?;
        linear(backend, h, rows, head, panels.as_deref(), &mut out)?;
        let data = match &picked {
            None => backend.download(&out, 0..rows * width)?,
            Some(columns) => {
                let mut data = Vec::with_capacity(rows * columns.len());
                backend.on_host(&mut out, rows * width, &mut |host| {
                    for row in host.chunks_exact(width) {
                        data.extend(columns.iter().map(|&column| row[column]));
                    }
                    Ok(())
                })?;
                data
            }
        };
        Ok(Output { n_rows: rows, n_cols: picked.map_or(width, |columns| columns.len()), data })
    }
}

impl<B: Backend> Model<B> {
    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        let spec = &self.spec;
        AttentionShape {
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            d_head: spec.d_head,
            scale: spec.attn_scale[layer],
        }
    }

    pub(super) fn needs_unembedding(&self) -> Result<()> {
        if self.spec.head == Head::Unembed {
            return Ok(());
        }
        Err(Error::Argument {
            name: "objective",
            expected: "a model with an unembedding".to_owned(),
            found: "a reward model".to_owned(),
        })
    }
}

/// Buffers that every layer uses anew, with room for every row of the plan.
struct Scratch<B: Backend> {
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
    fn new(model: &Model<B>, plan: &Plan) -> Result<Self> {
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

fn job<'a, B: Backend>(
    x: &'a B::Buffer,
    rows: usize,
    map: &'a Linear<B>,
    panels: Option<&'a [u32]>,
    out: &'a mut B::Buffer,
) -> Gemm<'a, B> {
    Gemm { x, rows, weight: &map.weight, bias: map.bias.as_ref(), panels, out }
}

fn linear<B: Backend>(
    backend: &B,
    x: &B::Buffer,
    rows: usize,
    map: &Linear<B>,
    panels: Option<&[u32]>,
    out: &mut B::Buffer,
) -> Result<()> {
    backend.gemm(&mut [job(x, rows, map, panels, out)])
}

fn norm<B: Backend>(model: &Model<B>, x: &B::Buffer, rows: usize, norm: &Norm<B>, out: &mut B::Buffer) -> Result<()> {
    let spec = &model.spec;
    let Norm { gain, bias } = norm;
    model.backend.norm(spec.norm, spec.norm_eps, x, rows, spec.d_model, Some(gain), bias.as_ref(), out)
}

pub(super) fn copy<B: Backend>(backend: &B, buffer: &B::Buffer, len: usize) -> Result<B::Buffer> {
    let mut copy = backend.zeros(len)?;
    if len > 0 {
        backend.gather(buffer, len, &[0], &mut copy)?;
    }
    Ok(copy)
}

/// Where columns lie among the outputs of (sorted) panels.
fn compact(columns: &[u32], panels: &[u32]) -> Vec<usize> {
    let place = |column: u32| {
        let panel = panels.partition_point(|&panel| panel < column / PANEL as u32);
        panel * PANEL + column as usize % PANEL
    };
    columns.iter().map(|&column| place(column)).collect()
}

/// Applies an edit to those of its rows that are computed.
fn apply<B: Backend>(
    backend: &B,
    edit: &PlannedEdit,
    buffer: &mut B::Buffer,
    width: usize,
    rows: Rows<'_>,
) -> Result<()> {
    let found: Vec<(usize, u32)> =
        edit.rows.iter().enumerate().filter_map(|(i, &row)| rows.find(row).map(|at| (i, at))).collect();
    let at: Vec<u32> = found.iter().map(|&(_, row)| row).collect();
    let columns = edit.columns.as_deref();
    if edit.per_row && edit.op != EditOp::Clamp {
        let n = columns.map_or(width, <[u32]>::len);
        let values: Vec<f32> = found.iter().flat_map(|&(i, _)| edit.values[i * n..][..n].iter().copied()).collect();
        return backend.edit(buffer, width, &at, columns, edit.op, &values);
    }
    backend.edit(buffer, width, &at, columns, edit.op, &edit.values)
}
