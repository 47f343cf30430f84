//! The backward sweep: the gradient of one scalar of the reads, from the last site down to the embedding. Weights are
//! constants, so each layer needs only what its nonlinearities saw.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cache::{Chunk, Store, sources};
use super::model::Model;
use super::plan::Plan;
use super::request::{Columns, Context, Gradients, Output, Read, Request};
use super::rows::{Rows, copy, gathered};
use super::site::{Point, Site};
use super::tape::{LayerTape, Tape};
use crate::backend::{AttentionGradients, Backend, Check, KeyValues};
use crate::error::{Error, Result};

struct Sweep<'a, B: Backend> {
    model: &'a Model<B>,
    plan: &'a Plan,
    request: &'a Request,
    /// Keys and values of the cached segments.
    chunks: &'a [Arc<Chunk<B>>],
    seeds: &'a [Vec<f32>],
    wrt: &'a [Site],
    check: Check<'a>,
    found: BTreeMap<Site, Output>,
}

/// Propagates `seeds` (the derivative by each output value) back to the sites of `wrt`.
pub(super) fn run<B: Backend>(
    model: &Model<B>,
    plan: &Plan,
    request: &Request,
    tape: &Tape<B>,
    seeds: &[Vec<f32>],
    wrt: &[Site],
    from: Option<&[usize]>,
    context: &Context<'_>,
) -> Result<Gradients> {
    let chunks = Store::of(request)?;
    let check = context.check;
    let mut sweep = Sweep { model, plan, request, chunks: &chunks, seeds, wrt, check, found: BTreeMap::new() };
    sweep.layers(tape)?;
    let mut gradients = Vec::with_capacity(wrt.len());
    for &site in wrt {
        let width = site.width(&model.spec, plan.n_keys);
        let zeros = || Output { n_rows: plan.n_clean, n_cols: width, data: vec![0.0; plan.n_clean * width] };
        let mut gradient = sweep.found.get(&site).cloned().unwrap_or_else(zeros);
        for (s, &first) in from.unwrap_or(&[]).iter().enumerate() {
            let row = plan.segment_rows[s];
            let ungraded = first.min(request.segments[s].tokens.len());
            gradient.data[row * width..(row + ungraded) * width].fill(0.0);
        }
        gradients.push((site, gradient));
    }
    Ok(gradients)
}

impl<B: Backend> Sweep<'_, B> {
    fn backend(&self) -> &B {
        &self.model.backend
    }

    /// Adds a site's seeds to the gradient by it.
    fn seed(&self, site: Site, gradient: &mut B::Buffer, rows: Rows<'_>) -> Result<()> {
        let width = site.width(&self.model.spec, self.plan.n_keys);
        for &i in self.plan.reads.get(&site).map_or(&[][..], Vec::as_slice) {
            let at = rows.locate(&self.plan.read_rows[i])?;
            let (read, seed) = (&self.request.reads[i], &self.seeds[i]);
            self.backend().on_host(gradient, rows.len * width, &mut |host| {
                for (r, &row) in at.iter().enumerate() {
                    let row = &mut host[row as usize * width..][..width];
                    match read {
                        Read::Values { columns: Columns::All, .. } => add_scaled(row, &seed[r * width..], 1.0),
                        Read::Values { columns: Columns::Some(columns), .. } => {
                            for (c, &column) in columns.iter().enumerate() {
                                row[column as usize] += seed[r * columns.len() + c];
                            }
                        }
                        Read::Project { vector, .. } => add_scaled(row, vector, seed[r]),
                        Read::Logits { .. } | Read::LogProb { .. } => {}
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes a copy of the gradient by a site, if it is wanted.
    fn record(&mut self, site: Site, gradient: &B::Buffer, rows: Rows<'_>) -> Result<()> {
        if !self.wrt.contains(&site) {
            return Ok(());
        }
        let width = site.width(&self.model.spec, self.plan.n_keys);
        let mut data = vec![0.0; self.plan.n_clean * width];
        let host = self.backend().download(gradient, 0..rows.len * width)?;
        for (row, values) in rows.iter().zip(host.chunks_exact(width)) {
            data[row as usize * width..][..width].copy_from_slice(values);
        }
        self.found.insert(site, Output { n_rows: self.plan.n_clean, n_cols: width, data });
        Ok(())
    }

    fn visit(&mut self, site: Site, gradient: &mut B::Buffer, rows: Rows<'_>) -> Result<()> {
        if site > self.plan.stop {
            return Ok(());
        }
        self.seed(site, gradient, rows)?;
        self.record(site, gradient, rows)
    }

    fn layers(&mut self, tape: &Tape<B>) -> Result<()> {
        let (model, plan) = (self.model, self.plan);
        let (backend, d) = (&model.backend, model.spec.d_model);
        let last = plan.last_layer(&model.spec);
        let full = Rows::all(plan.n_clean);
        let tail = Rows::tail(plan.tail.as_deref(), plan.n_clean);
        let mut dx = match &tape.last {
            Some((x, h)) => self.finish(x, h, tail)?,
            None => backend.zeros(tail.len * d)?,
        };
        for layer in (0..=last).rev() {
            if let Some(check) = self.check {
                check()?;
            }
            let site = |point| Site { layer, point };
            let taped = tape.layers.get(layer).ok_or_else(|| Error::Internal(format!("layer {layer} has no tape")))?;
            let rows = if layer == last { tail } else { full };
            self.visit(site(Point::ResidPost), &mut dx, rows)?;
            self.mlp(layer, taped, &mut dx, rows)?;
            self.visit(site(Point::ResidMid), &mut dx, rows)?;
            dx = self.attention(layer, taped, dx, rows, full)?;
            self.visit(site(Point::ResidPre), &mut dx, full)?;
        }
        if model.pos_embed.is_some() {
            let mut positions = copy(backend, &dx, full.len * d)?;
            self.visit(Site { layer: 0, point: Point::PosEmbed }, &mut positions, full)?;
        }
        self.visit(Site::EMBED, &mut dx, full)
    }

    /// From the block's output to the middle residual: adds the MLP's part to `dx`.
    fn mlp(&mut self, layer: usize, taped: &LayerTape<B>, dx: &mut B::Buffer, rows: Rows<'_>) -> Result<()> {
        let (Some(mid), Some(pre)) = (&taped.resid_mid, &taped.pre) else { return Ok(()) };
        let model = self.model;
        let (spec, backend, block) = (&model.spec, &model.backend, &model.blocks[layer]);
        let site = |point| Site { layer, point };
        let (d, len) = (spec.d_model, rows.len * spec.d_mlp);
        let mut dpost = backend.zeros(len)?;
        if site(Point::MlpOut) <= self.plan.stop {
            let mut branch = copy(backend, dx, rows.len * d)?;
            self.visit(site(Point::MlpOut), &mut branch, rows)?;
            block.out.backward(backend, &branch, rows.len, &mut dpost, self.check)?;
        }
        self.visit(site(Point::Post), &mut dpost, rows)?;
        let mut dpre = backend.zeros(len)?;
        let mut dlinear = backend.zeros(if taped.linear.is_some() { len } else { 0 })?;
        if site(Point::Post) <= self.plan.stop {
            let gate = taped.linear.as_ref().map(|linear| (linear, &mut dlinear));
            backend.activate_backward(spec.activation, pre, gate, &dpost, len, &mut dpre)?;
        }
        let mut dnormed = backend.zeros(rows.len * d)?;
        if let Some(map) = block.linear.as_ref().filter(|_| taped.linear.is_some()) {
            self.visit(site(Point::PreLinear), &mut dlinear, rows)?;
            let mut part = backend.zeros(rows.len * d)?;
            map.backward(backend, &dlinear, rows.len, &mut part, self.check)?;
            self.visit(site(Point::Pre), &mut dpre, rows)?;
            block.input.backward(backend, &dpre, rows.len, &mut dnormed, self.check)?;
            backend.add_assign(&mut dnormed, &part, rows.len * d)?;
        } else {
            self.visit(site(Point::Pre), &mut dpre, rows)?;
            block.input.backward(backend, &dpre, rows.len, &mut dnormed, self.check)?;
        }
        let gain = Some(&block.mlp_norm.gain);
        backend.norm_backward(spec.norm, spec.norm_eps, mid, rows.len, d, gain, &dnormed, dx)
    }

    /// From the middle residual (of `rows`) to the one that entered the block (of all rows).
    fn attention(
        &mut self,
        layer: usize,
        taped: &LayerTape<B>,
        dx: B::Buffer,
        rows: Rows<'_>,
        full: Rows<'_>,
    ) -> Result<B::Buffer> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend, block) = (&model.spec, &model.backend, &model.blocks[layer]);
        let d = spec.d_model;
        let site = |point| Site { layer, point };
        let (Some(q), Some(k), Some(v)) = (&taped.q, &taped.k, &taped.v) else {
            return backend.zeros(full.len * d);
        };
        let mut dq = backend.zeros(rows.len * spec.q_width())?;
        let mut dk = backend.zeros(full.len * spec.kv_width())?;
        let mut dv = backend.zeros(full.len * spec.kv_width())?;
        if site(Point::Pattern) <= plan.stop {
            let mut dz = backend.zeros(rows.len * spec.q_width())?;
            if site(Point::AttnOut) <= plan.stop {
                let mut branch = copy(backend, &dx, rows.len * d)?;
                self.visit(site(Point::AttnOut), &mut branch, rows)?;
                block.o.backward(backend, &branch, rows.len, &mut dz, self.check)?;
            }
            self.visit(site(Point::Z), &mut dz, rows)?;
            let mut dpattern =
                if plan.patterns[layer] { Some(backend.zeros(rows.len * spec.n_heads * plan.n_keys)?) } else { None };
            if let Some(dpattern) = &mut dpattern {
                self.seed(site(Point::Pattern), dpattern, rows)?;
            }
            let who = plan.attention(layer, rows.is_tail())?;
            let sources = sources(KeyValues { k, v }, self.chunks, layer);
            let shape = model.attention_shape(layer);
            let d_pattern = dpattern.as_mut();
            let gradients = AttentionGradients { dz: &dz, d_pattern, dq: &mut dq, dk: &mut dk, dv: &mut dv };
            backend.attention_backward(who, shape, &sources, q, gradients, self.check)?;
            if let Some(dpattern) = &dpattern {
                self.record(site(Point::Pattern), dpattern, rows)?;
            }
        }
        if let Some(table) = &model.rotary {
            self.visit(site(Point::RotQ), &mut dq, rows)?;
            self.visit(site(Point::RotK), &mut dk, full)?;
            let turn = |x: &B::Buffer, rows: Rows<'_>, heads: usize| {
                let at = rows.positions(&plan.positions);
                let mut out = backend.zeros(rows.len * heads * spec.d_head)?;
                backend.rotate(x, &at, heads, spec.d_head, &table.cos, &table.sin, table.width, true, &mut out)?;
                Ok::<_, Error>(out)
            };
            dq = turn(&dq, rows, spec.n_heads)?;
            dk = turn(&dk, full, spec.n_kv_heads)?;
        }
        self.visit(site(Point::V), &mut dv, full)?;
        self.visit(site(Point::K), &mut dk, full)?;
        self.visit(site(Point::Q), &mut dq, rows)?;

        let mut dnormed = backend.zeros(full.len * d)?;
        let mut part = backend.zeros(full.len * d)?;
        block.k.backward(backend, &dk, full.len, &mut dnormed, self.check)?;
        block.v.backward(backend, &dv, full.len, &mut part, self.check)?;
        backend.add_assign(&mut dnormed, &part, full.len * d)?;
        let mut queries = backend.zeros(rows.len * d)?;
        block.q.backward(backend, &dq, rows.len, &mut queries, self.check)?;
        let mut below = dx;
        if rows.is_tail() {
            let at: Vec<u32> = rows.iter().collect();
            backend.scatter_add(&queries, d, &at, &mut dnormed)?;
            let mut spread = backend.zeros(full.len * d)?;
            backend.scatter_add(&below, d, &at, &mut spread)?;
            below = spread;
        } else {
            backend.add_assign(&mut dnormed, &queries, full.len * d)?;
        }
        let gain = Some(&block.attn_norm.gain);
        let x = &taped.resid_pre;
        backend.norm_backward(spec.norm, spec.norm_eps, x, full.len, d, gain, &dnormed, &mut below)?;
        Ok(below)
    }

    /// From the reads behind the final norm to the last residual.
    fn finish(&mut self, x: &B::Buffer, h: &B::Buffer, rows: Rows<'_>) -> Result<B::Buffer> {
        let (model, plan) = (self.model, self.plan);
        let (spec, backend, head) = (&model.spec, &model.backend, &model.head);
        let d = spec.d_model;
        let mut dh = backend.zeros(rows.len * d)?;
        for (i, read) in self.request.reads.iter().enumerate() {
            let seed = &self.seeds[i];
            let n = read.rows().len();
            let mut part = backend.zeros(n * d)?;
            match read {
                Read::Logits { columns: Columns::All, .. } => {
                    head.backward(backend, &backend.upload(seed)?, n, &mut part, self.check)?;
                }
                Read::Logits { columns: Columns::Some(columns), .. } => {
                    let weights = columns
                        .iter()
                        .map(|&column| backend.weight_row(&head.weight, column as usize))
                        .collect::<Result<Vec<_>>>()?;
                    backend.on_host(&mut part, n * d, &mut |host| {
                        for (row, seed) in host.chunks_exact_mut(d).zip(seed.chunks_exact(columns.len())) {
                            weights.iter().zip(seed).for_each(|(weight, &seed)| add_scaled(row, weight, seed));
                        }
                        Ok(())
                    })?;
                }
                Read::LogProb { targets, .. } => {
                    let at = rows.locate(&plan.read_rows[i])?;
                    let read_rows = gathered(backend, h, d, &at, n)?;
                    let (_, lse) = backend.log_prob(&read_rows, n, &head.weight, targets, self.check)?;
                    let transposed = head.transposed(backend)?;
                    backend.log_prob_backward(
                        &read_rows,
                        n,
                        &head.weight,
                        transposed,
                        targets,
                        &lse,
                        seed,
                        &mut part,
                        self.check,
                    )?;
                }
                Read::Values { .. } | Read::Project { .. } => continue,
            }
            // One read may name a row more than once, so its rows are added one by one.
            let at = rows.locate(&plan.read_rows[i])?;
            let part = backend.download(&part, 0..n * d)?;
            backend.on_host(&mut dh, rows.len * d, &mut |host| {
                for (&row, part) in at.iter().zip(part.chunks_exact(d)) {
                    add_scaled(&mut host[row as usize * d..][..d], part, 1.0);
                }
                Ok(())
            })?;
        }
        let mut dnormed = backend.zeros(rows.len * d)?;
        backend.affine(&dh, rows.len, d, Some(&model.final_norm.gain), None, &mut dnormed)?;
        self.visit(Site { layer: spec.n_layers, point: Point::Normalized }, &mut dnormed, rows)?;
        let mut dx = backend.zeros(rows.len * d)?;
        backend.norm_backward(spec.norm, spec.norm_eps, x, rows.len, d, None, &dnormed, &mut dx)?;
        Ok(dx)
    }
}

fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}
