//! The one product that all others are made of.

use crate::lanes::Lanes;

/// Columns of a tile.
pub const COLUMNS: usize = 16;

/// The left side of a product: numbers at `start + row * DOWN + column * across`. What is known when this is
/// compiled costs no instructions.
#[derive(Clone, Copy)]
pub struct Left<const DOWN: usize> {
    pub start: *const f32,
    pub across: usize,
}

/// The right side: rows of 16 numbers, `down` apart.
#[derive(Clone, Copy)]
pub struct Right {
    pub start: *const f32,
    pub down: usize,
}

/// Where the result goes: rows of 16 numbers, `down` apart; with `add` to what is there.
#[derive(Clone, Copy)]
pub struct Target {
    pub start: *mut f32,
    pub down: usize,
    pub add: bool,
}

/// `left` [rows, depth] times `right` [depth, 16], for up to `L::ROWS` rows. The sums of all stay in registers;
/// `VECTORS` of them hold a row.
///
/// # Safety
/// All of it must lie where the sides say, and the processor must have the instructions of `L`.
#[inline(always)]
pub unsafe fn tile<L: Lanes, const VECTORS: usize, const DOWN: usize>(
    rows: usize,
    depth: usize,
    left: Left<DOWN>,
    right: Right,
    target: Target,
) {
    const { assert!(VECTORS * L::WIDTH == COLUMNS) };
    macro_rules! of {
        ($($count:literal)*) => {
            match rows {
                $($count if $count <= L::ROWS => {
                    fixed::<L, VECTORS, DOWN, $count>(depth, left, right, target)
                })*
                _ => unreachable!("a tile has 1 to {} rows", L::ROWS),
            }
        };
    }
    unsafe { of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24) }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // iterators over vectors are left as calls
unsafe fn fixed<L: Lanes, const VECTORS: usize, const DOWN: usize, const R: usize>(
    depth: usize,
    left: Left<DOWN>,
    right: Right,
    target: Target,
) {
    unsafe {
        let mut sums = [[L::splat(0.0); VECTORS]; R];
        if target.add {
            for r in 0..R {
                for v in 0..VECTORS {
                    sums[r][v] = L::load(target.start.add(r * target.down + v * L::WIDTH));
                }
            }
        }
        for i in 0..depth {
            let row = right.start.add(i * right.down);
            let mut columns = [L::splat(0.0); VECTORS];
            for v in 0..VECTORS {
                columns[v] = L::load(row.add(v * L::WIDTH));
            }
            let column = left.start.add(i * left.across);
            for r in 0..R {
                let x = L::splat(*column.add(r * DOWN));
                for v in 0..VECTORS {
                    sums[r][v] = x.mul_add(columns[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..VECTORS {
                sums[r][v].store(target.start.add(r * target.down + v * L::WIDTH));
            }
        }
    }
}
