//! Host memory that starts on a cache line.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;
/// Values of a cache line.
const LINE_VALUES: usize = LINE / size_of::<f32>();

/// A flat array of `f32` that starts on a cache line.
pub struct Buffer {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        // Zeroed by the allocator, so that memory of a large buffer is touched only when it is used.
        let data = vec![0.0; len + LINE_VALUES - 1];
        let start = data.as_ptr().align_offset(LINE).min(LINE_VALUES - 1);
        Self { data, start, len }
    }

    /// A copy.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// The values, moved to the front of the memory they lie in: new memory of this size would have to be faulted in.
    pub fn into_vec(self) -> Vec<f32> {
        let Self { mut data, start, len } = self;
        data.copy_within(start..start + len, 0);
        data.truncate(len);
        data
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.len]
    }
}

thread_local! {
    static SCRATCH: RefCell<Buffer> = RefCell::new(Buffer::zeros(0));
}

/// Hands `f` this thread's scratch memory, cut into pieces of the given lengths (each on a cache line). What they hold
/// is left over from before. Not to be nested.
pub(crate) fn with_scratch<const N: usize, R>(lens: [usize; N], f: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let whole: usize = lens.iter().map(|len| len.next_multiple_of(LINE_VALUES)).sum();
    SCRATCH.with(|cell| {
        // Taken out for the while, so that a nested use costs an allocation and not a panic.
        let mut buffer = cell.replace(Buffer::zeros(0));
        if buffer.len() < whole {
            buffer = Buffer::zeros(whole);
        }
        let mut rest: &mut [f32] = &mut buffer;
        let parts = lens.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE_VALUES));
            rest = tail;
            &mut part[..len]
        });
        let result = f(parts);
        cell.replace(buffer);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_and_scratch_are_aligned() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let buffer = Buffer::zeros(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(LINE), 0);
            with_scratch([len, 3, 40], |[a, b, c]| {
                assert_eq!((a.len(), b.len(), c.len()), (len, 3, 40));
                assert!([a, b, c].iter().all(|part| part.as_ptr().align_offset(LINE) == 0));
            });
        }
    }
}
