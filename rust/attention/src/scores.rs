//! A few rows of what queries and some of the keys give, before they are weighed.

use crate::heads::{Head, HeadMut};
use crate::lanes::Lanes;
use crate::tile::{COLUMNS, Left, Right, Target};
use crate::{BLOCK, CHUNK};

/// Numbers from one row to the next: an odd number of cache lines, so that rows share few places of a cache.
const WIDTH: usize = CHUNK + COLUMNS;

pub struct Scores {
    numbers: Vec<f32>,
}

impl Scores {
    pub fn new() -> Scores {
        Scores {
            numbers: vec![0.0; BLOCK * WIDTH],
        }
    }

    #[inline(always)]
    pub fn row(&mut self, number: usize) -> *mut f32 {
        self.numbers[number * WIDTH..].as_mut_ptr()
    }

    /// Multiplies the `rows` rows that `left` has as columns ([size, BLOCK]) with the first `keys` columns in
    /// `panels`, and more: up to a multiple of 16.
    ///
    /// # Safety
    /// As `forward`'s.
    #[inline(always)]
    pub unsafe fn fill<L: Lanes>(
        &mut self,
        left: &[f32],
        rows: usize,
        panels: &[f32],
        keys: usize,
        size: usize,
    ) {
        let panels = panels.chunks_exact(COLUMNS * size);
        for (number, panel) in panels.take(keys.div_ceil(COLUMNS)).enumerate() {
            for top in (0..rows).step_by(L::ROWS) {
                unsafe {
                    let left = Left::<1> {
                        start: left.as_ptr().add(top),
                        across: BLOCK,
                    };
                    let right = Right {
                        start: panel.as_ptr(),
                        down: COLUMNS,
                    };
                    let target = Target {
                        start: self.row(top).add(number * COLUMNS),
                        down: WIDTH,
                        add: false,
                    };
                    L::tile(L::ROWS.min(rows - top), size, left, right, target);
                }
            }
        }
    }

    /// Hides the numbers of a row from `seen` to `used`: their exponentials are zero.
    #[inline(always)]
    pub fn hide(&mut self, number: usize, seen: usize, used: usize) {
        let start = number * WIDTH;
        self.numbers[start + seen..start + used].fill(f32::NEG_INFINITY);
    }

    /// Multiplies the rows that `fill` made with `right` ([keys, size]), into the rows of `out` from `first`,
    /// or adds to them. A row has `seen(number)` numbers, never fewer than the one before it.
    ///
    /// # Safety
    /// As `forward`'s.
    #[inline(always)]
    pub unsafe fn times<L: Lanes>(
        &mut self,
        right: &[f32],
        seen: impl Fn(usize) -> usize,
        out: HeadMut,
        first: usize,
        rows: usize,
        add: bool,
    ) {
        for top in (0..rows).step_by(L::ROWS) {
            let height = L::ROWS.min(rows - top);
            let left = Left::<WIDTH> {
                start: self.row(top),
                across: 1,
            };
            for column in (0..out.size).step_by(COLUMNS) {
                unsafe {
                    let right = Right {
                        start: right.as_ptr().add(column),
                        down: out.size,
                    };
                    let target = Target {
                        start: out.row(first + top).add(column),
                        down: out.width,
                        add,
                    };
                    L::tile(height, seen(top + height - 1), left, right, target);
                }
            }
        }
    }

    /// Adds to `into` ([keys, size]) the first `keys` columns of what `fill` made, as rows, times the `rows`
    /// rows of `right` from `first`.
    ///
    /// # Safety
    /// As `forward`'s.
    #[inline(always)]
    pub unsafe fn across<L: Lanes>(
        &mut self,
        right: Head,
        first: usize,
        rows: usize,
        into: &mut [f32],
        keys: usize,
    ) {
        for top in (0..keys).step_by(L::ROWS) {
            for column in (0..right.size).step_by(COLUMNS) {
                unsafe {
                    let left = Left::<1> {
                        start: self.row(0).add(top),
                        across: WIDTH,
                    };
                    let right_side = Right {
                        start: right.row(first).add(column),
                        down: right.width,
                    };
                    let target = Target {
                        start: into.as_mut_ptr().add(top * right.size + column),
                        down: right.size,
                        add: true,
                    };
                    L::tile(L::ROWS.min(keys - top), rows, left, right_side, target);
                }
            }
        }
    }
}
