//! Rows of a buffer: which of the plan's rows it holds, and copies of some of them.

use crate::backend::Backend;
use crate::error::{Error, Result};

/// Rows of a buffer: all of the plan's, or the tail's.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    tail: Option<&'a [u32]>,
    /// Plan rows that the tail was taken from.
    full: usize,
    /// Rows in the buffer.
    pub len: usize,
}

impl<'a> Rows<'a> {
    pub fn all(len: usize) -> Self {
        Self { tail: None, full: len, len }
    }

    pub fn tail(rows: Option<&'a [u32]>, full: usize) -> Self {
        Self { tail: rows, full, len: rows.map_or(full, <[u32]>::len) }
    }

    /// These, and the `n` plan rows that join behind them.
    pub fn joined_by(self, n: usize) -> Self {
        let len = self.len + n;
        match self.tail {
            None => Self::all(len),
            Some(_) => Self { len, ..self },
        }
    }

    /// The tail's plan rows, as they were picked; `None` if these are all.
    pub fn picked(self) -> Option<&'a [u32]> {
        self.tail
    }

    pub fn is_tail(self) -> bool {
        self.tail.is_some()
    }

    /// The buffer row of a plan row.
    pub fn find(self, row: u32) -> Option<u32> {
        match self.tail {
            None => ((row as usize) < self.len).then_some(row),
            Some(_) if row as usize >= self.full => {
                let at = self.tail.map_or(0, <[u32]>::len) + row as usize - self.full;
                (at < self.len).then_some(at as u32)
            }
            Some(tail) => tail.binary_search(&row).ok().map(|at| at as u32),
        }
    }

    /// The buffer rows of plan rows that must all be there.
    pub fn locate(self, rows: &[u32]) -> Result<Vec<u32>> {
        rows.iter()
            .map(|&row| self.find(row).ok_or_else(|| Error::Internal(format!("row {row} was not computed"))))
            .collect()
    }

    /// The plan rows, in the buffer's order.
    pub fn iter(self) -> Box<dyn Iterator<Item = u32> + 'a> {
        match self.tail {
            None => Box::new(0..self.len as u32),
            Some(tail) => {
                let extra = self.len - tail.len();
                Box::new(tail.iter().copied().chain(self.full as u32..(self.full + extra) as u32))
            }
        }
    }

    /// The position of each row.
    pub fn positions(self, of_plan: &[u32]) -> Vec<u32> {
        self.iter().map(|row| of_plan[row as usize]).collect()
    }
}

/// A buffer with room for `room` rows that begins with copies of some rows of another.
pub(super) fn gathered<B: Backend>(
    backend: &B,
    x: &B::Buffer,
    width: usize,
    rows: &[u32],
    room: usize,
) -> Result<B::Buffer> {
    let mut out = backend.zeros(room * width)?;
    backend.gather(x, width, rows, &mut out)?;
    Ok(out)
}

/// A copy of the first `len` values.
pub(super) fn copy<B: Backend>(backend: &B, buffer: &B::Buffer, len: usize) -> Result<B::Buffer> {
    if len == 0 { backend.zeros(0) } else { gathered(backend, buffer, len, &[0], 1) }
}
