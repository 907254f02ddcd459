//! The one product that all others are made of.

use std::arch::x86_64::*;

/// Rows and columns of a tile: 12 registers of sums, 2 of the right side and 1 of the left.
pub const ROWS: usize = 6;
pub const COLUMNS: usize = 16;

/// The left side of a product: numbers at `start + row * down + column * across`.
#[derive(Clone, Copy)]
pub struct Left {
    pub start: *const f32,
    pub down: usize,
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

/// `left` [rows, depth] times `right` [depth, 16], for up to `ROWS` rows.
///
/// # Safety
/// All of it must lie where the sides say, and the processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn tile(rows: usize, depth: usize, left: Left, right: Right, target: Target) {
    unsafe {
        match rows {
            6 => fixed::<6>(depth, left, right, target),
            5 => fixed::<5>(depth, left, right, target),
            4 => fixed::<4>(depth, left, right, target),
            3 => fixed::<3>(depth, left, right, target),
            2 => fixed::<2>(depth, left, right, target),
            1 => fixed::<1>(depth, left, right, target),
            _ => unreachable!("a tile has 1 to 6 rows"),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn fixed<const R: usize>(depth: usize, left: Left, right: Right, target: Target) {
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        if target.add {
            for (r, sum) in sums.iter_mut().enumerate() {
                let row = target.start.add(r * target.down);
                *sum = [_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8))];
            }
        }
        for i in 0..depth {
            let row = right.start.add(i * right.down);
            let columns = [_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8))];
            let column = left.start.add(i * left.across);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*column.add(r * left.down));
                sum[0] = _mm256_fmadd_ps(x, columns[0], sum[0]);
                sum[1] = _mm256_fmadd_ps(x, columns[1], sum[1]);
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            let row = target.start.add(r * target.down);
            _mm256_storeu_ps(row, sum[0]);
            _mm256_storeu_ps(row.add(8), sum[1]);
        }
    }
}
