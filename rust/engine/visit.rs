//! What a request does at the sites that the forward sweep passes: edits, host steps and reads, in this order, and the
//! reads behind the last site.

use super::model::{Linear, Model};
use super::plan::{Plan, PlannedEdit};
use super::request::{Columns, Context, EditOp, HostRows, Output, Read, Request};
use super::rows::{Rows, gathered};
use super::site::Site;
use crate::backend::{Backend, Check, PANEL};
use crate::error::{Error, Result};

/// One sweep's edits, host steps and reads, with the answers so far.
pub(super) struct Visitor<'a, 'c, B: Backend> {
    model: &'a Model<B>,
    plan: &'a Plan,
    request: &'a Request,
    context: &'a mut Context<'c>,
    outputs: Vec<Option<Output>>,
}

impl<'a, 'c, B: Backend> Visitor<'a, 'c, B> {
    pub fn new(model: &'a Model<B>, plan: &'a Plan, request: &'a Request, context: &'a mut Context<'c>) -> Self {
        Self { model, plan, request, context, outputs: request.reads.iter().map(|_| None).collect() }
    }

    /// The answers to every read, once the sweep is over.
    pub fn outputs(self) -> Result<Vec<Output>> {
        let reached =
            |output: Option<Output>| output.ok_or_else(|| Error::Internal("a read was never reached".to_owned()));
        self.outputs.into_iter().map(reached).collect()
    }

    /// What long work asks whether it shall end.
    pub fn stop(&self) -> Check<'c> {
        self.context.check
    }

    /// Fails if the caller wants the work to end.
    pub fn check(&self) -> Result<()> {
        self.stop().map_or(Ok(()), |check| check())
    }

    /// Whether the sweep computes a site.
    pub fn reaches(&self, site: Site) -> bool {
        site <= self.plan.stop
    }

    /// Whether anyone looks at a site in any way.
    pub fn touched(&self, site: Site) -> bool {
        self.plan.reads.contains_key(&site) || self.plan.edits.contains_key(&site) || self.plan.hosted.contains(&site)
    }

    /// Edits, host steps and reads of a site, in this order.
    pub fn visit(&mut self, site: Site, buffer: &mut B::Buffer, rows: Rows<'_>, panels: Option<&[u32]>) -> Result<()> {
        if !self.touched(site) {
            return Ok(());
        }
        let (plan, backend) = (self.plan, &self.model.backend);
        let width = panels.map_or_else(|| site.width(&self.model.spec, plan.n_keys), |panels| panels.len() * PANEL);
        for edit in plan.edits.get(&site).map_or(&[][..], Vec::as_slice) {
            apply(backend, edit, buffer, width, rows)?;
        }
        if plan.hosted.contains(&site)
            && let Some(host) = self.context.host.as_deref_mut()
        {
            let host_rows = HostRows { rows: &plan.refs[..rows.len], positions: &plan.positions[..rows.len] };
            backend.on_host(buffer, rows.len * width, &mut |data| host.step(site, &host_rows, width, data))?;
        }
        for &i in plan.reads.get(&site).map_or(&[][..], Vec::as_slice) {
            let at = rows.locate(&plan.read_rows[i])?;
            let output = match &self.request.reads[i] {
                Read::Values { columns, .. } => pick(backend, buffer, width, rows.len, &at, columns, panels)?,
                Read::Project { vector, .. } => {
                    let data = backend.project(buffer, width, &at, vector)?;
                    Output { n_rows: data.len(), n_cols: 1, data }
                }
                _ => return Err(Error::Internal("a logit read at a site".to_owned())),
            };
            self.outputs[i] = Some(output);
        }
        Ok(())
    }

    /// The reads of the head, from the final norm's output.
    pub fn read_head(&mut self, h: &B::Buffer, rows: Rows<'_>) -> Result<()> {
        let (model, plan) = (self.model, self.plan);
        let backend = &model.backend;
        for (i, read) in self.request.reads.iter().enumerate() {
            if !matches!(read, Read::Logits { .. } | Read::LogProb { .. }) {
                continue;
            }
            self.check()?;
            let at = rows.locate(&plan.read_rows[i])?;
            let read_rows = gathered(backend, h, model.spec.d_model, &at, at.len())?;
            self.outputs[i] = Some(match read {
                Read::LogProb { targets, .. } => {
                    model.needs_unembedding()?;
                    let data = backend.log_prob(&read_rows, at.len(), &model.head.weight, targets, self.stop())?.0;
                    Output { n_rows: at.len(), n_cols: 1, data }
                }
                Read::Logits { columns, .. } => {
                    logits(backend, &model.head, (&read_rows, at.len()), columns, self.stop())?
                }
                _ => return Err(Error::Internal("a site read behind the sites".to_owned())),
            });
        }
        Ok(())
    }
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

/// The logits of `rows` rows of the final norm's output; only the panels that hold the columns are computed.
fn logits<B: Backend>(
    backend: &B,
    head: &Linear<B>,
    (h, rows): (&B::Buffer, usize),
    columns: &Columns,
    check: Check<'_>,
) -> Result<Output> {
    let panels = match columns {
        Columns::All => None,
        Columns::Some(columns) => {
            if let Some(&column) = columns.iter().find(|&&column| column as usize >= head.outputs) {
                return Err(Error::Tokens(format!("id {column} is outside the {} logits", head.outputs)));
            }
            let mut panels: Vec<u32> = columns.iter().map(|column| column / PANEL as u32).collect();
            panels.sort_unstable();
            panels.dedup();
            Some(panels)
        }
    };
    let width = panels.as_ref().map_or(head.outputs, |panels| panels.len() * PANEL);
    let mut out = backend.zeros(rows * width)?;
    backend.gemm(&mut [head.job(h, rows, panels.as_deref(), &mut out)], check)?;
    if panels.is_none() {
        return Ok(Output { n_rows: rows, n_cols: width, data: backend.take(out)? });
    }
    let every: Vec<u32> = (0..rows as u32).collect();
    pick(backend, &mut out, width, rows, &every, columns, panels.as_deref())
}

/// The values of some columns in some (`at`) of the buffer's `n_rows` rows, which hold `panels` of the columns, or all.
fn pick<B: Backend>(
    backend: &B,
    buffer: &mut B::Buffer,
    width: usize,
    n_rows: usize,
    at: &[u32],
    columns: &Columns,
    panels: Option<&[u32]>,
) -> Result<Output> {
    let picked: Option<Vec<usize>> = match (columns, panels) {
        (Columns::All, _) => None,
        (Columns::Some(columns), None) => Some(columns.iter().map(|&c| c as usize).collect()),
        (Columns::Some(columns), Some(panels)) => Some(compact(columns, panels)),
    };
    let n_cols = picked.as_ref().map_or(width, Vec::len);
    let mut data = Vec::with_capacity(at.len() * n_cols);
    backend.on_host(buffer, n_rows * width, &mut |host| {
        for &row in at {
            let row = &host[row as usize * width..][..width];
            match &picked {
                None => data.extend_from_slice(row),
                Some(columns) => data.extend(columns.iter().map(|&column| row[column])),
            }
        }
        Ok(())
    })?;
    Ok(Output { n_rows: at.len(), n_cols, data })
}

/// Where columns lie among the outputs of (sorted) panels.
fn compact(columns: &[u32], panels: &[u32]) -> Vec<usize> {
    let place = |column: u32| {
        let panel = panels.partition_point(|&panel| panel < column / PANEL as u32);
        panel * PANEL + column as usize % PANEL
    };
    columns.iter().map(|&column| place(column)).collect()
}
