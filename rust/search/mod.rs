//! Token search: objectives, their scores and gradients, and the methods that raise them.

pub mod candidates;
pub mod checkpoint;
pub mod contexts;
mod epo;
pub mod forest;
pub mod front;
mod gcg;
pub mod ledger;
pub mod objective;
pub mod rng;
pub mod run;
pub mod score;
#[cfg(test)]
mod tests;

pub use objective::{Objective, ObjectiveSpec, Objectives};
pub use run::{Aggregate, Method, Progress, SearchResult, Settings, Variant, search};
pub use score::{gradient, score};
