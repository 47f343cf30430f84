//! Models: what they are built of, and how a checkpoint becomes one.

mod config;
pub mod families;
pub mod safetensors;
pub mod source;
pub mod spec;
pub mod tokenizer;
pub mod weights;
