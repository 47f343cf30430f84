//! From a request to tables of rows: who is computed in which layer, who attends to whom, what is edited and read where.
//!
//! Rows lie in the order in which they join the sweep: the clean forest first, then each variant's own rows from the
//! layer of its lowest edit on. So the rows of any layer are a prefix of all rows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::request::{Columns, EditOp, Parent, Read, Request, RowRef};
use super::site::{Point, Site};
use crate::backend::{AttentionPlan, PANEL, Run, Span};
use crate::error::{Error, Result};
use crate::model::spec::{ModelSpec, Positions};

/// Where a node's chain goes on.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    /// The first `keep` rows of another node.
    Node(usize, usize),
    /// The first `keep` tokens of a cached segment.
    Cached(usize, usize),
}

/// A run of new rows: a segment, or the part of it that a variant computes anew.
struct Node {
    rows: Range<usize>,
    position: usize,
    before: Before,
}

/// The rows that a variant computes of one segment.
#[derive(Clone, Copy)]
struct Clone {
    /// Offset of the first within the segment.
    offset: usize,
    /// Plan row of that one.
    row: usize,
    node: usize,
}

/// An edit in terms of plan rows.
pub(super) struct PlannedEdit {
    pub rows: Vec<u32>,
    pub columns: Option<Vec<u32>>,
    pub op: EditOp,
    pub values: Vec<f32>,
    /// Whether `values` holds one a (row, column).
    pub per_row: bool,
}

/// The rows that join the sweep at one layer, copied from rows of the clean forest.
pub(super) struct Joining {
    pub layer: usize,
    pub sources: Vec<u32>,
}

/// Everything that a sweep needs to know, derived from the request alone.
pub(super) struct Plan {
    /// Token of each row of the clean forest (only these are embedded, with variants that edit the embedding).
    pub tokens: Vec<u32>,
    /// Position of each row.
    pub positions: Vec<u32>,
    /// What each row is.
    pub refs: Vec<RowRef>,
    /// Rows that are embedded: the clean forest's.
    pub n_clean: usize,
    /// First row of each segment.
    pub segment_rows: Vec<usize>,
    /// Variants' rows, by layer.
    pub joining: Vec<Joining>,
    /// Attention among the rows of layer `.0` and up, until the next entry.
    attention: Vec<(usize, AttentionPlan)>,
    /// The last site that is computed.
    pub stop: Site,
    /// In the last layer and after it, from the queries on, only these rows, in order; all if `None`.
    pub tail: Option<Vec<u32>>,
    /// Attention of the tail's rows.
    tail_attention: Option<AttentionPlan>,
    /// In the last layer, only these panels of the MLP's neurons; all if `None`.
    pub panels: Option<Vec<u32>>,
    /// Edits by site, in order.
    pub edits: BTreeMap<Site, Vec<PlannedEdit>>,
    /// Reads by site: index of the read. Logit and log-probability reads are not among them.
    pub reads: BTreeMap<Site, Vec<usize>>,
    /// Plan rows of each read.
    pub read_rows: Vec<Vec<u32>>,
    /// Sites that a host step wants.
    pub hosted: Vec<Site>,
    /// Key axis of materialised patterns.
    pub n_keys: usize,
    /// Layers whose pattern is materialised.
    pub patterns: Vec<bool>,
    /// Which of the kept variant's rows hold segment `s`'s tokens: `(first offset, first row, layer joined)`.
    pub kept: Vec<Option<(usize, usize, usize)>>,
}

impl Plan {
    /// Plans a request. `gradient` names the sites that a gradient is wanted at, if one is.
    pub fn new(
        request: &Request,
        spec: &ModelSpec,
        wants: &dyn Fn(Site) -> bool,
        gradient: Option<&[Site]>,
    ) -> Result<Self> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut refs = Vec::new();
        let mut segment_rows = Vec::with_capacity(request.segments.len());
        for (s, segment) in request.segments.iter().enumerate() {
            let (before, position) = match segment.parent {
                Parent::Root => (Before::Nothing, 0),
                Parent::Segment { index, keep } => (Before::Node(index, keep), nodes[index].position + keep),
                Parent::Cached { index, keep } => {
                    let start = request.cache.as_ref().map_or(0, |cache| cache.segments[index].position);
                    (Before::Cached(index, keep), start + keep)
                }
            };
            let first = tokens.len();
            segment_rows.push(first);
            for (offset, &token) in segment.tokens.iter().enumerate() {
                tokens.push(token);
                positions.push((position + offset) as u32);
                refs.push(RowRef::clean(s, offset));
            }
            nodes.push(Node { rows: first..tokens.len(), position, before });
        }
        let n_clean = tokens.len();
        let mut longest = positions.iter().max().map_or(0, |&p| p as usize + 1);

        let mut order: Vec<usize> = (0..request.variants.len()).collect();
        let joins: Vec<usize> = request
            .variants
            .iter()
            .map(|variant| variant.edits.iter().map(|edit| edit.site.layer).min().unwrap_or(spec.n_layers))
            .collect();
        order.sort_by_key(|&v| joins[v]);
        let mut clones: Vec<Vec<Option<Clone>>> = vec![Vec::new(); request.variants.len()];
        let mut joining: Vec<Joining> = Vec::new();
        for &v in &order {
            let starts = clone_starts(request, v)?;
            let mut made: Vec<Option<Clone>> = Vec::with_capacity(starts.len());
            for (s, start) in starts.into_iter().enumerate() {
                let segment = &request.segments[s];
                let Some(offset) = start else {
                    made.push(None);
                    continue;
                };
                let before = if offset > 0 {
                    Before::Node(s, offset)
                } else {
                    match segment.parent {
                        Parent::Root => Before::Nothing,
                        Parent::Cached { index, keep } => Before::Cached(index, keep),
                        Parent::Segment { index, keep } => match made[index] {
                            Some(parent) if parent.offset < keep => Before::Node(parent.node, keep - parent.offset),
                            _ => Before::Node(index, keep),
                        },
                    }
                };
                let row = refs.len();
                if joining.last().is_none_or(|last| last.layer != joins[v]) {
                    joining.push(Joining { layer: joins[v], sources: Vec::new() });
                }
                for o in offset..segment.tokens.len() {
                    positions.push((nodes[s].position + o) as u32);
                    refs.push(RowRef { variant: v + 1, segment: s, offset: o });
                    if let Some(last) = joining.last_mut() {
                        last.sources.push((segment_rows[s] + o) as u32);
                    }
                }
                made.push(Some(Clone { offset, row, node: nodes.len() }));
                nodes.push(Node { rows: row..refs.len(), position: nodes[s].position + offset, before });
            }
            clones[v] = made;
        }
        longest = longest.max(1);

        let resolve = |row: &RowRef, layer: usize| -> u32 {
            let clean = segment_rows[row.segment] + row.offset;
            if row.variant == 0 || layer < joins[row.variant - 1] {
                return clean as u32;
            }
            match clones[row.variant - 1][row.segment] {
                Some(clone) if row.offset >= clone.offset => (clone.row + row.offset - clone.offset) as u32,
                _ => clean as u32,
            }
        };

        let edits = plan_edits(request, spec, longest, &clones, &segment_rows)?;
        let mut reads: BTreeMap<Site, Vec<usize>> = BTreeMap::new();
        let mut read_rows = Vec::with_capacity(request.reads.len());
        let mut head = false;
        for (i, read) in request.reads.iter().enumerate() {
            let layer = match read {
                Read::Values { site, columns, .. } => {
                    check_columns(*site, columns, site.width(spec, longest))?;
                    reads.entry(*site).or_default().push(i);
                    site.layer
                }
                Read::Project { site, vector, .. } => {
                    let width = site.width(spec, longest);
                    if vector.len() != width {
                        return Err(Error::argument(
                            "vector",
                            format!("{width} values at {}", site.name()),
                            vector.len(),
                        ));
                    }
                    reads.entry(*site).or_default().push(i);
                    site.layer
                }
                Read::Logits { .. } | Read::LogProb { .. } => {
                    head = true;
                    spec.n_layers
                }
            };
            read_rows.push(read.rows().iter().map(|row| resolve(row, layer)).collect::<Vec<u32>>());
        }
        let hosted: Vec<Site> = Site::all(spec).into_iter().filter(|&site| wants(site)).collect();

        let mut stop = reads.keys().chain(&hosted).copied().max().unwrap_or(Site::EMBED);
        let last_kv = Site {
            layer: spec.n_layers - 1,
            point: if spec.positions == Positions::Learned { Point::V } else { Point::RotK },
        };
        if request.keep {
            stop = stop.max(last_kv);
        }
        let end = Site { layer: spec.n_layers, point: Point::Normalized };
        if head {
            stop = end;
        }

        let last = stop.layer.min(spec.n_layers - 1);
        let host_in_tail =
            hosted.iter().any(|site| site.layer > last || (site.layer == last && site.point >= Point::Q));
        let tail = (!host_in_tail)
            .then(|| {
                let mut rows: Vec<u32> = Vec::new();
                for (i, read) in request.reads.iter().enumerate() {
                    let site = match read {
                        Read::Values { site, .. } | Read::Project { site, .. } => *site,
                        Read::Logits { .. } | Read::LogProb { .. } => end,
                    };
                    let full_width = matches!(site.point, Point::K | Point::V | Point::RotK | Point::ResidPre);
                    if site.layer >= last && !(site.layer == last && full_width) {
                        rows.extend(&read_rows[i]);
                    }
                }
                for group in joining.iter().filter(|group| group.layer > last) {
                    rows.extend(&group.sources);
                }
                // Rows that join after the last layer are not the tail's own.
                let here = n_clean
                    + joining
                        .iter()
                        .filter(|group| group.layer <= last)
                        .map(|group| group.sources.len())
                        .sum::<usize>();
                rows.retain(|&row| (row as usize) < here);
                rows.sort_unstable();
                rows.dedup();
                (rows, here)
            })
            .filter(|(rows, here)| rows.len() < *here)
            .map(|(rows, _)| rows);

        let mut attention = Vec::new();
        let mut active = n_clean;
        attention.push((0, attend(&nodes, request, &positions, longest, |row| row < n_clean, None)));
        for group in &joining {
            active += group.sources.len();
            let plan = attend(&nodes, request, &positions, longest, |row| row < active, None);
            if let Some(entry) = attention.iter_mut().find(|entry| entry.0 == group.layer) {
                entry.1 = plan;
            } else {
                attention.push((group.layer, plan));
            }
        }
        let tail_attention =
            tail.as_deref().map(|rows| attend(&nodes, request, &positions, longest, |_| true, Some(rows)));

        let panels = panels(request, spec, stop, &reads, &hosted, &edits, gradient);
        let mut patterns = vec![false; spec.n_layers];
        for site in reads.keys().chain(&hosted).chain(edits.keys()).chain(gradient.unwrap_or(&[])) {
            if site.point == Point::Pattern {
                patterns[site.layer] = true;
            }
        }
        let kept = request
            .segments
            .iter()
            .enumerate()
            .map(|(s, _)| {
                let v = request.keep_variant.checked_sub(1)?;
                let clone = clones.get(v)?.get(s).copied().flatten()?;
                Some((clone.offset, clone.row, joins[v]))
            })
            .collect();
        Ok(Self {
            tokens,
            positions,
            refs,
            n_clean,
            segment_rows,
            joining,
            attention,
            stop,
            tail,
            tail_attention,
            panels,
            edits,
            reads,
            read_rows,
            hosted,
            n_keys: longest,
            patterns,
            kept,
        })
    }

    /// The last layer of which anything is computed.
    pub fn last_layer(&self, spec: &ModelSpec) -> usize {
        self.stop.layer.min(spec.n_layers - 1)
    }

    /// Who attends to whom in a layer.
    pub fn attention(&self, layer: usize, tail: bool) -> Result<&AttentionPlan> {
        if tail && let Some(plan) = &self.tail_attention {
            return Ok(plan);
        }
        self.attention
            .iter()
            .rfind(|(from, _)| *from <= layer)
            .map(|(_, plan)| plan)
            .ok_or_else(|| Error::Internal("no attention plan".to_owned()))
    }
}

/// Per segment, the first offset that a variant computes anew, or `None` if it shares the whole segment.
fn clone_starts(request: &Request, v: usize) -> Result<Vec<Option<usize>>> {
    let mut starts: Vec<Option<usize>> = vec![None; request.segments.len()];
    for edit in &request.variants[v].edits {
        match &edit.rows {
            None => starts.fill(Some(0)),
            Some(rows) => {
                for &(segment, offset) in rows {
                    let known = request.segments.get(segment).is_some_and(|s| offset < s.tokens.len());
                    if !known {
                        return Err(Error::Internal(format!("an edit names token {offset} of segment {segment}")));
                    }
                    starts[segment] = Some(starts[segment].map_or(offset, |start| start.min(offset)));
                }
            }
        }
    }
    for s in 0..starts.len() {
        if let Parent::Segment { index, keep } = request.segments[s].parent
            && starts[index].is_some_and(|start| start < keep)
        {
            starts[s] = Some(0);
        }
    }
    Ok(starts)
}

fn plan_edits(
    request: &Request,
    spec: &ModelSpec,
    n_keys: usize,
    clones: &[Vec<Option<Clone>>],
    segment_rows: &[usize],
) -> Result<BTreeMap<Site, Vec<PlannedEdit>>> {
    let mut planned: BTreeMap<Site, Vec<PlannedEdit>> = BTreeMap::new();
    for (v, variant) in request.variants.iter().enumerate() {
        for edit in &variant.edits {
            let width = edit.site.width(spec, n_keys);
            if let Some(columns) = &edit.columns {
                check_columns(edit.site, &Columns::Some(columns.clone()), width)?;
            }
            let place = |segment: usize, offset: usize| {
                let clean = segment_rows[segment] + offset;
                clones[v][segment].map_or(clean, |clone| clone.row + offset - clone.offset) as u32
            };
            let rows: Vec<u32> = match &edit.rows {
                Some(rows) => rows.iter().map(|&(segment, offset)| place(segment, offset)).collect(),
                None => (0..request.segments.len())
                    .flat_map(|s| (0..request.segments[s].tokens.len()).map(move |offset| (s, offset)))
                    .map(|(s, offset)| place(s, offset))
                    .collect(),
            };
            let n_columns = edit.columns.as_ref().map_or(width, Vec::len);
            let n = edit.values.len();
            let (fits, per_row) = if edit.op == EditOp::Clamp {
                (n == 2 || n == 2 * n_columns, false)
            } else {
                let per_row = n == rows.len() * n_columns && n != 1 && n != n_columns;
                (n == 1 || n == n_columns || per_row, per_row)
            };
            if !fits {
                return Err(Error::argument(
                    "value",
                    format!("1, {n_columns} or {} x {n_columns} values at {}", rows.len(), edit.site.name()),
                    n,
                ));
            }
            let (columns, op, values) = (edit.columns.clone(), edit.op, edit.values.clone());
            planned.entry(edit.site).or_default().push(PlannedEdit { rows, columns, op, values, per_row });
        }
    }
    Ok(planned)
}

fn check_columns(site: Site, columns: &Columns, width: usize) -> Result<()> {
    if let Columns::Some(columns) = columns
        && let Some(&column) = columns.iter().find(|&&column| column as usize >= width)
    {
        return Err(Error::Site { name: site.name(), what: format!("index {column} is outside its {width} values") });
    }
    Ok(())
}

/// The attention of rows that `exists` lets through, or of the (sorted) rows of a tail.
fn attend(
    nodes: &[Node],
    request: &Request,
    positions: &[u32],
    n_keys: usize,
    exists: impl Fn(usize) -> bool,
    tail: Option<&[u32]>,
) -> AttentionPlan {
    let mut plan = AttentionPlan { n_keys, ..AttentionPlan::default() };
    let mut previous: Vec<Run> = Vec::new();
    for node in nodes.iter().filter(|node| exists(node.rows.start)) {
        let first = plan.positions.len();
        let last = match tail {
            None => {
                plan.positions.extend(&positions[node.rows.clone()]);
                node.rows.end
            }
            Some(rows) => {
                let from = rows.partition_point(|&row| (row as usize) < node.rows.start);
                let to = rows.partition_point(|&row| (row as usize) < node.rows.end);
                let Some(&last) = rows[from..to].last() else { continue };
                plan.positions.extend(rows[from..to].iter().map(|&row| positions[row as usize]));
                last as usize + 1
            }
        };
        let mut chain = vec![Run {
            chunk: 0,
            row: node.rows.start as u32,
            position: node.position as u32,
            len: (last - node.rows.start) as u32,
        }];
        let mut before = node.before;
        loop {
            before = match before {
                Before::Nothing => break,
                Before::Node(index, keep) => {
                    let node = &nodes[index];
                    chain.push(Run {
                        chunk: 0,
                        row: node.rows.start as u32,
                        position: node.position as u32,
                        len: keep as u32,
                    });
                    node.before
                }
                Before::Cached(index, keep) => {
                    let Some(segment) = request.cache.as_ref().map(|cache| &cache.segments[index]) else { break };
                    chain.push(Run {
                        chunk: segment.chunk as u32 + 1,
                        row: segment.row as u32,
                        position: segment.position as u32,
                        len: keep as u32,
                    });
                    segment.parent.map_or(Before::Nothing, |(index, keep)| Before::Cached(index, keep))
                }
            };
        }
        chain.reverse();
        let shared = chain.iter().zip(&previous).take_while(|(a, b)| a == b).count();
        let runs = plan.runs.len() as u32..(plan.runs.len() + chain.len()) as u32;
        plan.runs.extend(&chain);
        plan.spans.push(Span { queries: first as u32..plan.positions.len() as u32, runs, shared_runs: shared as u32 });
        previous = chain;
    }
    plan
}

/// The panels of neurons that the last layer's reads need, where nothing there needs them all.
fn panels(
    request: &Request,
    spec: &ModelSpec,
    stop: Site,
    reads: &BTreeMap<Site, Vec<usize>>,
    hosted: &[Site],
    edits: &BTreeMap<Site, Vec<PlannedEdit>>,
    gradient: Option<&[Site]>,
) -> Option<Vec<u32>> {
    let neuron = |point| matches!(point, Point::Pre | Point::PreLinear | Point::Post);
    if gradient.is_some() || stop.layer == spec.n_layers || !neuron(stop.point) {
        return None;
    }
    let here = |site: &Site| site.layer == stop.layer && neuron(site.point);
    if hosted.iter().any(here) || edits.keys().any(here) {
        return None;
    }
    let mut panels = Vec::new();
    for (_, indices) in reads.iter().filter(|(site, _)| here(site)) {
        for &i in indices {
            let Read::Values { columns: Columns::Some(columns), .. } = &request.reads[i] else { return None };
            panels.extend(columns.iter().map(|column| column / PANEL as u32));
        }
    }
    panels.sort_unstable();
    panels.dedup();
    Some(panels)
}
