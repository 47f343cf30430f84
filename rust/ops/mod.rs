//! What each operation of a [`Backend`](crate::backend::Backend) computes: the plain loops that the fast ones are held against.
