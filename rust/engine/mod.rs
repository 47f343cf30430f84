//! One engine for every question: see [`request`].

mod backward;
mod forward;
mod model;
mod plan;
pub mod request;
pub mod site;

pub use model::Model;
