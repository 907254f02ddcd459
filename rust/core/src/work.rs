//! Work on many items: on the threads of the rayon pool that the caller is in, else one after the other.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::Result;

/// `f` of each item, in order. A task takes at least `least` items.
pub fn each<I: Sync, T: Send>(
    items: &[I],
    least: usize,
    f: impl Fn(&I) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    if rayon::current_thread_index().is_none() {
        return items.iter().map(f).collect();
    }
    items.par_iter().with_min_len(least).map(f).collect()
}

/// Buffers that are lent to one task at a time and used again.
#[derive(Debug, Default)]
pub struct Lent<T>(Mutex<Vec<T>>);

impl<T: Default> Lent<T> {
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lent = free().pop().unwrap_or_default();
        let result = f(&mut lent);
        free().push(lent);
        result
    }
}
