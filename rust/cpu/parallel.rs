//! Work in parallel regions. How work is cut never shows in a result.

use std::marker::PhantomData;
use std::ops::Range;

use super::Cpu;
use crate::backend::Check;
use crate::error::Result;
use crate::threads;

/// Work (in multiply-adds, or elements times [`ELEMENT`]) below which a region costs more than it saves.
const SERIAL: usize = 200_000;
/// What one element of an elementwise operation costs, in multiply-adds.
pub(super) const ELEMENT: usize = 8;
/// Elements of one task of an elementwise operation.
const CHUNK: usize = 8192;

impl Cpu {
    /// Threads of the pool.
    pub(super) fn threads(&self) -> usize {
        self.threads.pool().current_num_threads()
    }

    /// A lower limit on the size of tasks: 1 where a test wants work cut as finely as can be.
    pub(super) fn at_least(&self, size: usize) -> usize {
        if self.fine { 1 } else { size }
    }

    /// Whether `work` is worth a parallel region.
    pub(super) fn parallel(&self, work: usize) -> bool {
        work >= self.at_least(SERIAL) && self.threads() > 1
    }

    /// Calls `f` for each task.
    pub(super) fn tasks(&self, n: usize, work: usize, f: impl Fn(usize) + Send + Sync) {
        if n <= 1 || !self.parallel(work) {
            (0..n).for_each(f);
        } else {
            threads::each(self.threads.pool(), n, f);
        }
    }

    /// Calls `f` for each task, or until the caller wants the work to end: then nothing may be made of what is there.
    pub(super) fn tasks_until(
        &self,
        check: Check<'_>,
        n: usize,
        work: usize,
        f: impl Fn(usize) + Send + Sync,
    ) -> Result<()> {
        let Some(check) = check.filter(|_| n > 1 && work >= self.at_least(SERIAL)) else {
            self.tasks(n, work, f);
            return Ok(());
        };
        threads::try_each(self.threads.pool(), n, check, f)
    }

    /// Cuts `len` elements (a multiple of `unit`, kept whole) into ranges and calls `f` for each.
    pub(super) fn ranges(&self, len: usize, unit: usize, f: impl Fn(Range<usize>) + Send + Sync) {
        let step = self.at_least(CHUNK).div_ceil(unit.max(1)) * unit.max(1);
        if self.parallel(len * ELEMENT) {
            self.tasks(len.div_ceil(step), len * ELEMENT, |t| f(t * step..((t + 1) * step).min(len)));
        } else {
            f(0..len);
        }
    }
}

/// A mutable slice of which tasks take disjoint parts.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Shared` is a `&mut [f32]` whose parts are handed out under `part`'s contract.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above; parts given to different threads do not overlap.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The elements of `range`, which is clipped to the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        let (start, end) = (range.start.min(self.len), range.end.min(self.len));
        // SAFETY: `start <= len`, `end <= len`; the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end.saturating_sub(start)) }
    }

    /// The first element, for tiles that are not contiguous.
    pub(super) fn pointer(&self) -> *mut f32 {
        self.start
    }
}
