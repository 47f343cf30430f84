//! One engine for every question: see [`request`].

mod backward;
mod block;
mod cache;
mod forward;
mod model;
mod plan;
pub mod request;
mod rows;
pub mod site;
mod tape;
mod visit;

pub use model::Model;
