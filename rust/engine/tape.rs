//! What the forward sweep writes down for the backward one.

use crate::backend::Backend;

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

impl<B: Backend> Tape<B> {
    pub fn new() -> Self {
        Self { layers: Vec::new(), last: None }
    }

    /// Begins a layer with the residual that enters its block.
    pub fn enter(&mut self, resid_pre: B::Buffer) {
        let layer = LayerTape { resid_pre, q: None, k: None, v: None, resid_mid: None, pre: None, linear: None };
        self.layers.push(layer);
    }

    /// The layer that was entered last.
    pub fn layer(&mut self) -> Option<&mut LayerTape<B>> {
        self.layers.last_mut()
    }
}
