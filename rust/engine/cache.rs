//! Keys and values that outlive a request: what a [`Cache`] holds, and how a request adds its own to it.

use std::any::Any;
use std::sync::Arc;

use super::plan::Plan;
use super::request::{Cache, CachedSegment, Parent, Request};
use super::rows::gathered;
use crate::backend::{Backend, KeyValues};
use crate::error::{Error, Result};

/// Keys and values of one request's kept rows, every layer.
pub(super) struct Chunk<B: Backend> {
    pub k: Vec<B::Buffer>,
    pub v: Vec<B::Buffer>,
}

impl<B: Backend> Chunk<B> {
    pub fn new() -> Self {
        Self { k: Vec::new(), v: Vec::new() }
    }

    /// Copies the kept variant's keys and values of the next layer, in the clean forest's order.
    pub fn keep(&mut self, backend: &B, plan: &Plan, width: usize, own: &KeyValues<'_, B>) -> Result<()> {
        let layer = self.k.len();
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
        self.k.push(gathered(backend, own.k, width, &rows, plan.n_clean)?);
        self.v.push(gathered(backend, own.v, width, &rows, plan.n_clean)?);
        Ok(())
    }
}

/// A layer's keys and values: the request's own, chunk 0, then those of the chunks before it.
pub(super) fn sources<'a, B: Backend>(
    own: KeyValues<'a, B>,
    chunks: &'a [Arc<Chunk<B>>],
    layer: usize,
) -> Vec<KeyValues<'a, B>> {
    let cached = chunks.iter().map(|chunk| KeyValues { k: &chunk.k[layer], v: &chunk.v[layer] });
    std::iter::once(own).chain(cached).collect()
}

/// What a [`Cache`] holds on a backend.
pub(super) struct Store<B: Backend> {
    chunks: Vec<Arc<Chunk<B>>>,
}

impl<B: Backend> Store<B> {
    /// What this backend put into a request's cache; nothing if the request has none.
    pub fn of(request: &Request) -> Result<Vec<Arc<Chunk<B>>>> {
        let Some(cache) = &request.cache else { return Ok(Vec::new()) };
        let store = Arc::clone(&cache.store).downcast::<Self>();
        let store = store.map_err(|_| Error::argument("cache", "one of this model's device", "another device's"))?;
        Ok(store.chunks.clone())
    }
}

/// The request's cache with one more chunk: the request's segments.
pub(super) fn extend<B: Backend>(
    request: &Request,
    plan: &Plan,
    mut chunks: Vec<Arc<Chunk<B>>>,
    chunk: Chunk<B>,
) -> Cache {
    let mut segments = request.cache.as_ref().map_or_else(Vec::new, |cache| cache.segments.as_ref().clone());
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
