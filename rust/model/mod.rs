//! Models: what they are built of, and how a checkpoint becomes one.

pub mod families;
pub mod spec;
pub mod tokenizer;
pub mod weights;
