//! The one door into long work: releases the GIL, lets Ctrl-C through, maps errors.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use signflip::Result;
use signflip::engine::request::Context;

use crate::error::{foreign, to_py};

/// How often Python's signals are looked at. Looking takes the GIL, which another thread may hold for a while.
const SIGNALS: Duration = Duration::from_millis(50);

/// A check for [`Context`] that raises what a pending signal raises.
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method itself is not general enough over its lifetime"
)]
pub fn signals() -> impl Fn() -> Result<()> {
    let last = Cell::new(Instant::now());
    move || {
        if last.get().elapsed() < SIGNALS {
            return Ok(());
        }
        last.set(Instant::now());
        Python::attach(|py| py.check_signals()).map_err(foreign)
    }
}

/// Runs work of the core without the GIL. Anything that may take more than a millisecond goes through here.
pub fn enter<T: Send>(py: Python<'_>, work: impl FnOnce(&mut Context<'_>) -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| {
        let check = signals();
        work(&mut Context { check: Some(&check), host: None })
    })
    .map_err(to_py)
}
