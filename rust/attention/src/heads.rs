//! What attention runs over, as pointers: several threads write their own heads of the same rows.

use std::ops::Range;

use crate::CHUNK;

/// The rows that ask (`own`), and those before them that each of these sees (`prefix`).
#[derive(Clone, Debug)]
pub struct Side {
    pub prefix: Range<usize>,
    pub own: Range<usize>,
}

impl Side {
    /// How many rows the last of `own` sees.
    pub(crate) fn keys(&self) -> usize {
        self.prefix.len() + self.own.len()
    }

    /// How many rows the one at `number` in `own` sees.
    pub(crate) fn seen(&self, number: usize) -> usize {
        self.prefix.len() + number + 1
    }

    /// How many of the `CHUNK` rows from `chunk` on it sees.
    pub(crate) fn seen_of(&self, number: usize, chunk: usize) -> usize {
        self.seen(number).saturating_sub(chunk).min(CHUNK)
    }

    /// All rows that any of `own` sees, in order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> {
        self.prefix.clone().chain(self.own.clone())
    }
}

/// A head's part of rows that hold `width` numbers, `size` of them this head's.
#[derive(Clone, Copy)]
pub struct Head {
    pub(crate) start: *const f32,
    pub(crate) width: usize,
    pub(crate) size: usize,
}

impl Head {
    /// Head `number` of `rows`, each of `width` numbers.
    ///
    /// # Safety
    /// Every row that is asked for must lie behind `rows`, and nobody may write to this head's part of it.
    pub unsafe fn of(rows: *const f32, width: usize, number: usize, size: usize) -> Head {
        assert!((number + 1) * size <= width && size.is_multiple_of(16));
        Head {
            start: unsafe { rows.add(number * size) },
            width,
            size,
        }
    }

    pub(crate) unsafe fn row(&self, row: usize) -> *const f32 {
        unsafe { self.start.add(row * self.width) }
    }

    /// The rows of `side`, one behind the other: [keys, size].
    pub(crate) unsafe fn copied(&self, side: &Side) -> Vec<f32> {
        let mut copy = Vec::with_capacity(side.keys() * self.size);
        for row in side.rows() {
            copy.extend_from_slice(unsafe { std::slice::from_raw_parts(self.row(row), self.size) });
        }
        copy
    }

    /// These rows as columns, in panels of `width` rows: [rows / width, size, width], zero behind the last.
    /// `width` is a multiple of 4.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn panels(
        &self,
        rows: impl Iterator<Item = usize>,
        width: usize,
    ) -> Vec<f32> {
        use std::arch::x86_64::*;
        let none = vec![0.0; self.size];
        let mut starts: Vec<*const f32> = rows.map(|row| unsafe { self.row(row) }).collect();
        let count = starts.len();
        starts.resize(count.next_multiple_of(4), none.as_ptr());
        let mut all = vec![0.0; count.div_ceil(width) * width * self.size];
        for (number, four) in starts.chunks_exact(4).enumerate() {
            let first = 4 * number;
            for i in (0..self.size).step_by(4) {
                // SAFETY: a row has `size` numbers, a multiple of 4, and so has a column of a panel.
                unsafe {
                    let mut a = _mm_loadu_ps(four[0].add(i));
                    let mut b = _mm_loadu_ps(four[1].add(i));
                    let mut c = _mm_loadu_ps(four[2].add(i));
                    let mut d = _mm_loadu_ps(four[3].add(i));
                    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                    let panel = first / width * width * self.size;
                    let to = all.as_mut_ptr().add(panel + i * width + first % width);
                    _mm_storeu_ps(to, a);
                    _mm_storeu_ps(to.add(width), b);
                    _mm_storeu_ps(to.add(2 * width), c);
                    _mm_storeu_ps(to.add(3 * width), d);
                }
            }
        }
        all
    }
}

/// A head's part of rows that are written.
#[derive(Clone, Copy)]
pub struct HeadMut {
    pub(crate) start: *mut f32,
    pub(crate) width: usize,
    pub(crate) size: usize,
}

impl HeadMut {
    /// As `Head::of`.
    ///
    /// # Safety
    /// Every row that is written must lie behind `rows`, and nobody else may touch this head's part of it.
    pub unsafe fn of(rows: *mut f32, width: usize, number: usize, size: usize) -> HeadMut {
        assert!((number + 1) * size <= width && size.is_multiple_of(16));
        HeadMut {
            start: unsafe { rows.add(number * size) },
            width,
            size,
        }
    }

    pub(crate) unsafe fn row(&self, row: usize) -> *mut f32 {
        unsafe { self.start.add(row * self.width) }
    }

    /// Puts `numbers` ([keys, size]) where the rows of `side` are: added in the prefix, as they are else.
    pub(crate) unsafe fn put(&self, side: &Side, numbers: &[f32]) {
        for (row, from) in side.rows().zip(numbers.chunks_exact(self.size)) {
            let to = unsafe { std::slice::from_raw_parts_mut(self.row(row), self.size) };
            if side.prefix.contains(&row) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            } else {
                to.copy_from_slice(from);
            }
        }
    }
}

/// What the forward pass has, and where what it gives goes: a result for each row that asks, and in `lse` the
/// logarithm of the sum of the exponentials of its scaled scores.
#[derive(Clone, Copy)]
pub struct Pass {
    pub query: Head,
    pub key: Head,
    pub value: Head,
    pub out: HeadMut,
    pub lse: *mut f32,
}

/// What the forward pass had and gave, and the gradient of what it gave.
#[derive(Clone, Copy)]
pub struct Given {
    pub query: Head,
    pub key: Head,
    pub value: Head,
    pub out: Head,
    pub lse: *const f32,
    pub of_out: Head,
}

/// Where gradients go. Those of keys and values are added where a side has a prefix.
#[derive(Clone, Copy)]
pub struct Gradients {
    pub query: HeadMut,
    pub key: HeadMut,
    pub value: HeadMut,
}
