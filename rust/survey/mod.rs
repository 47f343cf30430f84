//! Surveys: statistics of every feature of chosen sites over a corpus.
//!
//! A survey is a commutative monoid **to the bit**. Its atom is the document: a document's float64 sums, in position
//! order, are rounded once to wide fixed point ([`fixed`]); everything else is a count, an extreme, or a list in a total
//! order. So shards, batches, threads and interruptions never show in the result.

pub mod document;
pub mod fixed;
pub mod histogram;
mod moments;
mod observe;
pub mod reach;
pub mod run;
pub mod settings;
pub mod stats;
pub mod store;
#[cfg(test)]
mod tests;
pub mod topk;
mod validate;

pub use observe::SINK_RATIO;
