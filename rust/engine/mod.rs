//! One engine for every question: see [`request`].

pub mod request;
pub mod site;
