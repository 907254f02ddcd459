//! The result of attention, and of each row the logarithm of the sum of its exponentials.

use std::arch::x86_64::*;

use crate::exp::{exp, largest, sum};
use crate::heads::{Head, HeadMut, Side};
use crate::scores::{BLOCK, Scores};

/// Attention of one head: `out` [rows, size], and `lse`, a number for each row.
///
/// # Safety
/// The rows of `side` must lie behind all of these, and the processor must be `supported`.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn forward(
    query: Head,
    key: Head,
    value: Head,
    side: &Side,
    scale: f32,
    out: HeadMut,
    lse: *mut f32,
) {
    unsafe {
        let keys = key.panels(side);
        let values = value.copied(side);
        let mut scores = Scores::new(side.keys());
        for first in (0..side.own.len()).step_by(BLOCK) {
            let rows = BLOCK.min(side.own.len() - first);
            scores.fill(query, &keys, side, first, rows);
            let mut sums = [0.0; BLOCK];
            for (number, total) in sums[..rows].iter_mut().enumerate() {
                let seen = side.seen(first + number);
                let (highest, found) = soften(scores.row(number), seen, scores.used(), scale);
                *total = found;
                *lse.add(side.own.start + first + number) = highest + found.ln();
            }
            scores.times(&values, side, first, rows, out);
            for (number, total) in sums[..rows].iter().enumerate() {
                let row = out.row(side.own.start + first + number);
                for x in std::slice::from_raw_parts_mut(row, out.size) {
                    *x /= total;
                }
            }
        }
    }
}

/// Makes of a row of scores the exponentials of what they are below the highest, zero from `seen` to `used`.
/// Returns the highest score, scaled, and the sum.
#[target_feature(enable = "avx2,fma")]
unsafe fn soften(row: *mut f32, seen: usize, used: usize, scale: f32) -> (f32, f32) {
    unsafe {
        for i in seen..used {
            *row.add(i) = f32::NEG_INFINITY;
        }
        let mut highest = _mm256_set1_ps(f32::NEG_INFINITY);
        for i in (0..used).step_by(8) {
            highest = _mm256_max_ps(highest, _mm256_loadu_ps(row.add(i)));
        }
        let highest = largest(highest) * scale;
        let (below, by) = (_mm256_set1_ps(highest), _mm256_set1_ps(scale));
        let mut total = _mm256_setzero_ps();
        for i in (0..used).step_by(8) {
            let x = exp(_mm256_fmsub_ps(_mm256_loadu_ps(row.add(i)), by, below));
            _mm256_storeu_ps(row.add(i), x);
            total = _mm256_add_ps(total, x);
        }
        (highest, sum(total))
    }
}
