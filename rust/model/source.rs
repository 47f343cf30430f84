//! Where a checkpoint's tensors come from, and the checks that all of them pass through.

use std::borrow::Cow;
use std::collections::HashSet;

use rayon::prelude::*;

use super::weights::{HostLinear, HostNorm};
use crate::error::{Error, Result};

/// Elements a task checks or converts.
pub(crate) const CHUNK: usize = 1 << 16;

/// Named tensors, read as f32.
pub trait TensorSource: Send + Sync {
    /// What messages call the whole.
    fn name(&self) -> String;
    /// What messages call one tensor.
    fn label(&self, tensor: &str) -> String;
    /// Names of all tensors, sorted.
    fn tensors(&self) -> Vec<&str>;
    /// Shape of a tensor, `None` where there is none of that name; an error where it could not be read as f32.
    fn shape(&self, tensor: &str) -> Result<Option<Vec<usize>>>;
    /// The elements of a tensor, row-major.
    fn read(&self, tensor: &str) -> Result<Cow<'_, [f32]>>;
}

/// A source whose tensors are checked for presence, shape and finiteness on their way out.
pub(crate) struct Weights {
    source: Box<dyn TensorSource>,
}

impl Weights {
    pub fn new(source: Box<dyn TensorSource>) -> Self {
        Self { source }
    }

    pub fn contains(&self, tensor: &str) -> bool {
        !matches!(self.source.shape(tensor), Ok(None))
    }

    /// The prefix, where any tensor has it, else none.
    pub fn prefix(&self, prefix: &'static str) -> &'static str {
        if self.source.tensors().iter().any(|name| name.starts_with(prefix)) { prefix } else { "" }
    }

    /// Shape of a tensor that must be there.
    pub fn shape(&self, tensor: &str) -> Result<Vec<usize>> {
        self.source
            .shape(tensor)?
            .ok_or_else(|| Error::checkpoint(self.source.name(), format!("expected a tensor {tensor}, found none")))
    }

    /// Checks that a tensor is there, in the expected shape and a readable dtype, without reading its elements.
    pub fn require(&self, tensor: &str, shape: &[usize]) -> Result<()> {
        let found = self.shape(tensor)?;
        if found == shape {
            Ok(())
        } else {
            let what = format!("expected shape {shape:?}, found {found:?}");
            Err(Error::checkpoint(self.source.label(tensor), what))
        }
    }

    /// The elements of a tensor of the expected shape.
    pub fn tensor(&self, tensor: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>> {
        self.require(tensor, shape)?;
        let data = self.source.read(tensor)?;
        let expected: usize = shape.iter().product();
        if data.len() != expected {
            let what = format!("expected {expected} elements, found {}", data.len());
            return Err(Error::checkpoint(self.source.label(tensor), what));
        }
        if let Some(at) = first_not_finite(&data) {
            let what = format!("expected finite weights, found {} at element {at}", data[at]);
            return Err(Error::checkpoint(self.source.label(tensor), what));
        }
        Ok(data)
    }

    /// A tensor of one dimension.
    pub fn vector(&self, tensor: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.tensor(tensor, &[len])?.into_owned())
    }

    /// `{stem}.weight` `[outputs, inputs]`, and `{stem}.bias` `[outputs]` where there is to be one.
    pub fn linear(&self, stem: &str, outputs: usize, inputs: usize, bias: bool) -> Result<HostLinear<'_>> {
        Ok(HostLinear {
            data: self.tensor(&format!("{stem}.weight"), &[outputs, inputs])?,
            offset: 0,
            outputs,
            inputs,
            output_stride: inputs,
            input_stride: 1,
            bias: if bias { Some(self.vector(&format!("{stem}.bias"), outputs)?) } else { None },
        })
    }

    /// `{stem}.weight` `[inputs, outputs]` (GPT-2's `Conv1D`) with `{stem}.bias`.
    pub fn conv1d(&self, stem: &str, outputs: usize, inputs: usize) -> Result<HostLinear<'_>> {
        Ok(HostLinear {
            data: self.tensor(&format!("{stem}.weight"), &[inputs, outputs])?,
            offset: 0,
            outputs,
            inputs,
            output_stride: 1,
            input_stride: outputs,
            bias: Some(self.vector(&format!("{stem}.bias"), outputs)?),
        })
    }

    /// `{stem}.weight` and, where there is to be one, `{stem}.bias`.
    pub fn norm(&self, stem: &str, width: usize, bias: bool) -> Result<HostNorm> {
        Ok(HostNorm {
            gain: self.vector(&format!("{stem}.weight"), width)?,
            bias: if bias { Some(self.vector(&format!("{stem}.bias"), width)?) } else { None },
        })
    }

    /// Refuses tensors of the base model (those that begin with `prefix`) that the architecture does not have: they
    /// would change the forward pass if they were used, so leaving them out would give wrong numbers in silence.
    pub fn refuse_unexpected(
        &self,
        prefix: &str,
        expected: &HashSet<String>,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let unexpected = |name: &&str| {
            name.starts_with(prefix)
                && !expected.contains(*name)
                && !ignore(name)
                && !HEADS.iter().any(|h| name.starts_with(h))
        };
        let mut found = self.source.tensors().into_iter().filter(unexpected);
        let Some(first) = found.next() else { return Ok(()) };
        let more = found.count();
        let and = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!("expected only tensors that the config's architecture has, found {first}{and}");
        Err(Error::checkpoint(self.source.name(), what))
    }
}

/// Heads that sit on top of a base model; those not used do not change the forward pass.
const HEADS: [&str; 3] = ["lm_head.", "score.", "v_head."];

fn first_not_finite(data: &[f32]) -> Option<usize> {
    data.par_chunks(CHUNK)
        .enumerate()
        .find_map_first(|(chunk, values)| {
            // A whole chunk without an early exit, so that the compiler vectorises it.
            let bad = values.iter().fold(false, |bad, x| bad | !x.is_finite());
            bad.then(|| values.iter().position(|x| !x.is_finite()).map(|at| chunk * CHUNK + at))
        })
        .flatten()
}
