//! The pools of worker threads that a device can switch between while models live.

use std::convert::Infallible;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// The most threads that can be asked for.
pub const MAX_THREADS: usize = 512;

/// One pool for each number of threads that was ever asked for; no result depends on which is used.
pub struct Threads {
    current: AtomicUsize,
    first: ThreadPool,
    others: Vec<OnceLock<ThreadPool>>,
}

impl Threads {
    /// Starts with `threads` workers; as many as the machine lets this process have if `None`.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let threads = threads.min(MAX_THREADS);
        Ok(Self {
            current: AtomicUsize::new(0),
            first: build(threads)?,
            others: (0..=MAX_THREADS).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Uses `threads` workers from now on.
    pub fn set(&self, threads: usize) -> Result<()> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::argument("threads", format!("1 to {MAX_THREADS}"), threads));
        }
        if self.others[threads].get().is_none() {
            let pool = build(threads)?;
            self.others[threads].get_or_init(|| pool);
        }
        self.current.store(threads, Ordering::Relaxed);
        Ok(())
    }

    /// The pool in use.
    pub fn pool(&self) -> &ThreadPool {
        self.others[self.current.load(Ordering::Relaxed)].get().unwrap_or(&self.first)
    }
}

/// Calls `f` for 0 to `n`, each once. The calling thread works too, at once: it need not wait for a worker to wake, nor
/// sleep until the last one is done.
pub(crate) fn each(pool: &ThreadPool, n: usize, f: impl Fn(usize) + Send + Sync) {
    match try_each(pool, n, || Ok::<(), Infallible>(()), f) {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

/// As [`each`]; the calling thread asks `check` before each of its calls, and an error keeps all threads from more of them.
pub(crate) fn try_each<E>(
    pool: &ThreadPool,
    n: usize,
    check: impl Fn() -> Result<(), E>,
    f: impl Fn(usize) + Send + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < n);
    pool.in_place_scope(|scope| {
        for _ in 1..pool.current_num_threads().min(n) {
            scope.spawn(|_| {
                while let Some(task) = take() {
                    f(task);
                }
            });
        }
        while let Some(task) = take() {
            if let Err(error) = check() {
                next.store(n, Ordering::Relaxed);
                return Err(error);
            }
            f(task);
        }
        Ok(())
    })
}

/// What `f` gives for 0 to `n`, in order; computed as by [`each`].
pub(crate) fn map<R: Send + Sync>(pool: &ThreadPool, n: usize, f: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
    let cells: Vec<OnceLock<R>> = (0..n).map(|_| OnceLock::new()).collect();
    each(pool, n, |i| {
        cells[i].get_or_init(|| f(i));
    });
    cells.into_iter().filter_map(OnceLock::into_inner).collect()
}

fn build(threads: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("signflip-{i}"))
        .build()
        .map_err(|error| Error::Device { device: "cpu".to_owned(), reason: error.to_string() })
}
