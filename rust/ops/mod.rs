//! What each operation of a [`Backend`](crate::backend::Backend) computes: the plain loops that the fast ones are held
//! against, forward beside backward. They work in float64, allocate as they like, and share no code with a backend.

pub mod activation;
pub mod attention;
pub mod edit;
pub mod linear;
pub mod log_prob;
pub mod norm;
pub mod rotary;
