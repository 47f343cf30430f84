//! The core of signflip: loads a language model, runs requests on it (forests of tokens, edits, reads, gradients),
//! surveys its features and searches for the tokens that flip them.

pub mod backend;
pub mod cpu;
pub mod cuda_stub;
pub mod engine;
pub mod error;
pub mod model;
pub mod ops;
pub mod search;
pub mod survey;
pub mod threads;

pub use error::{Error, Result};
