//! Token search.
