//! A few rows of what queries and keys give, before they are weighed.

use crate::heads::{Head, HeadMut, Side};
use crate::tile::{COLUMNS, Left, ROWS, Right, Target, tile};

/// Queries that are taken at a time: their scores stay in the second cache.
pub const BLOCK: usize = 24;

pub struct Scores {
    numbers: Vec<f32>,
    width: usize,
    used: usize,
}

impl Scores {
    pub fn new(keys: usize) -> Scores {
        let width = keys.next_multiple_of(COLUMNS);
        Scores {
            numbers: vec![0.0; BLOCK * width],
            width,
            used: 0,
        }
    }

    /// Numbers from one row to the next.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers of a row that hold anything: a multiple of 16.
    pub fn used(&self) -> usize {
        self.used
    }

    pub fn row(&mut self, number: usize) -> *mut f32 {
        self.numbers[number * self.width..].as_mut_ptr()
    }

    /// Multiplies the `rows` rows of `left` from `first` of the side's own with the columns in `panels`, as
    /// far as the last of these rows sees.
    ///
    /// # Safety
    /// As `forward`'s.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn fill(
        &mut self,
        left: Head,
        panels: &[f32],
        side: &Side,
        first: usize,
        rows: usize,
    ) {
        let seen = side.seen(first + rows - 1);
        self.used = seen.next_multiple_of(COLUMNS);
        for (number, panel) in panels.chunks_exact(COLUMNS * left.size).enumerate() {
            if number * COLUMNS >= seen {
                break;
            }
            for top in (0..rows).step_by(ROWS) {
                let right = Right {
                    start: panel.as_ptr(),
                    down: COLUMNS,
                };
                unsafe {
                    let start = left.row(side.own.start + first + top);
                    let left_side = Left {
                        start,
                        down: left.width,
                        across: 1,
                    };
                    let start = self.row(top).add(number * COLUMNS);
                    let target = Target {
                        start,
                        down: self.width,
                        add: false,
                    };
                    tile(ROWS.min(rows - top), left.size, left_side, right, target);
                }
            }
        }
    }

    /// Multiplies the rows that `fill` made with `right` ([keys, size]), into those of `out` that they are of.
    ///
    /// # Safety
    /// As `forward`'s.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn times(
        &mut self,
        right: &[f32],
        side: &Side,
        first: usize,
        rows: usize,
        out: HeadMut,
    ) {
        for top in (0..rows).step_by(ROWS) {
            let height = ROWS.min(rows - top);
            let seen = side.seen(first + top + height - 1);
            let left = Left {
                start: self.row(top),
                down: self.width,
                across: 1,
            };
            for column in (0..out.size).step_by(COLUMNS) {
                unsafe {
                    let right = Right {
                        start: right.as_ptr().add(column),
                        down: out.size,
                    };
                    let start = out.row(side.own.start + first + top).add(column);
                    tile(
                        height,
                        seen,
                        left,
                        right,
                        Target {
                            start,
                            down: out.width,
                            add: false,
                        },
                    );
                }
            }
        }
    }
}
