//! The gradients of queries, keys and values of one head.

use std::arch::x86_64::*;

use crate::exp::exp;
use crate::heads::{Given, Gradients, Side};
use crate::scores::{BLOCK, Scores};
use crate::tile::{COLUMNS, Left, ROWS, Right, Target, tile};

/// The way back of `forward`, for one side.
///
/// # Safety
/// As `forward`'s.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn backward(given: Given, side: &Side, scale: f32, gradients: Gradients) {
    let size = given.query.size;
    unsafe {
        let (key_panels, value_panels) = (given.key.panels(side), given.value.panels(side));
        let keys = given.key.copied(side);
        let mut of_keys = vec![0.0; keys.len()];
        let mut of_values = vec![0.0; keys.len()];
        let (mut weights, mut slopes) = (Scores::new(side.keys()), Scores::new(side.keys()));
        for first in (0..side.own.len()).step_by(BLOCK) {
            let rows = BLOCK.min(side.own.len() - first);
            let start = side.own.start + first;
            weights.fill(given.query, &key_panels, side, first, rows);
            slopes.fill(given.of_out, &value_panels, side, first, rows);
            for number in 0..rows {
                let delta = dot(
                    given.out.row(start + number),
                    given.of_out.row(start + number),
                    size,
                );
                let lse = *given.lse.add(start + number);
                let (seen, used) = (side.seen(first + number), weights.used());
                slope(
                    weights.row(number),
                    slopes.row(number),
                    seen,
                    used,
                    lse,
                    delta,
                    scale,
                );
            }
            slopes.times(&keys, side, first, rows, gradients.query);
            let seen = side.seen(first + rows - 1);
            for (by, rows_of, into) in [
                (&mut slopes, given.query, &mut of_keys),
                (&mut weights, given.of_out, &mut of_values),
            ] {
                for top in (0..seen).step_by(ROWS) {
                    let height = ROWS.min(seen - top);
                    let left = Left {
                        start: by.row(0).add(top),
                        down: 1,
                        across: by.width(),
                    };
                    for column in (0..size).step_by(COLUMNS) {
                        let from = rows_of.row(start).add(column);
                        let right = Right {
                            start: from,
                            down: rows_of.width,
                        };
                        let start = into.as_mut_ptr().add(top * size + column);
                        tile(
                            height,
                            rows,
                            left,
                            right,
                            Target {
                                start,
                                down: size,
                                add: true,
                            },
                        );
                    }
                }
            }
        }
        gradients.key.put(side, &of_keys);
        gradients.value.put(side, &of_values);
    }
}

/// Makes of a row of scores its weights, and of the gradient of these (`slopes`) that of the scores: zero from
/// `seen` to `used` both.
#[target_feature(enable = "avx2,fma")]
unsafe fn slope(
    weights: *mut f32,
    slopes: *mut f32,
    seen: usize,
    used: usize,
    lse: f32,
    delta: f32,
    scale: f32,
) {
    let (by, below, less) = (
        _mm256_set1_ps(scale),
        _mm256_set1_ps(lse),
        _mm256_set1_ps(delta),
    );
    unsafe {
        for i in seen..used {
            *weights.add(i) = f32::NEG_INFINITY;
        }
        for i in (0..used).step_by(8) {
            let weight = exp(_mm256_fmsub_ps(_mm256_loadu_ps(weights.add(i)), by, below));
            _mm256_storeu_ps(weights.add(i), weight);
            let slope = _mm256_sub_ps(_mm256_loadu_ps(slopes.add(i)), less);
            let slope = _mm256_mul_ps(_mm256_mul_ps(weight, by), slope);
            _mm256_storeu_ps(slopes.add(i), slope);
        }
    }
}

unsafe fn dot(a: *const f32, b: *const f32, size: usize) -> f32 {
    let (a, b) = unsafe {
        (
            std::slice::from_raw_parts(a, size),
            std::slice::from_raw_parts(b, size),
        )
    };
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
