//! The gradients of queries, keys and values of one head.

use crate::exp::exp;
use crate::heads::{Given, Gradients, Side};
use crate::lanes::Lanes;
use crate::scores::Scores;
use crate::tile::COLUMNS;
use crate::{BLOCK, CHUNK};

/// The way back of `forward`, for one side.
///
/// # Safety
/// As `forward`'s.
#[inline(always)]
pub unsafe fn backward<L: Lanes>(given: Given, side: &Side, scale: f32, gradients: Gradients) {
    let size = given.query.size;
    unsafe {
        let keys_by_columns = given.key.panels(side.rows(), COLUMNS);
        let values_by_columns = given.value.panels(side.rows(), COLUMNS);
        let queries = given.query.panels(side.own.clone(), BLOCK);
        let of_outs = given.of_out.panels(side.own.clone(), BLOCK);
        let keys = given.key.copied(side);
        let mut of_keys = vec![0.0; keys.len()];
        let mut of_values = vec![0.0; keys.len()];
        let (mut weights, mut slopes) = (Scores::new(), Scores::new());
        let mut deltas = Vec::with_capacity(side.own.len());
        for row in side.own.clone() {
            deltas.push(dot::<L>(given.out.row(row), given.of_out.row(row), size));
        }
        for chunk in (0..side.keys()).step_by(CHUNK) {
            let from = chunk * size;
            // The queries before see none of it.
            let unseeing = chunk.saturating_sub(side.prefix.len()) / BLOCK * BLOCK;
            for first in (unseeing..side.own.len()).step_by(BLOCK) {
                let rows = BLOCK.min(side.own.len() - first);
                let start = side.own.start + first;
                let seen = |number| side.seen_of(first + number, chunk);
                let count = seen(rows - 1);
                let (query, of_out) = (&queries[first * size..], &of_outs[first * size..]);
                weights.fill::<L>(query, rows, &keys_by_columns[from..], count, size);
                slopes.fill::<L>(of_out, rows, &values_by_columns[from..], count, size);
                let used = count.next_multiple_of(COLUMNS);
                for number in 0..rows {
                    weights.hide(number, seen(number), used);
                    slope::<L>(
                        weights.row(number),
                        slopes.row(number),
                        used,
                        *given.lse.add(start + number),
                        deltas[first + number],
                        scale,
                    );
                }
                let add = chunk > 0;
                slopes.times::<L>(&keys[from..], seen, gradients.query, start, rows, add);
                slopes.across::<L>(given.query, start, rows, &mut of_keys[from..], count);
                weights.across::<L>(given.of_out, start, rows, &mut of_values[from..], count);
            }
        }
        gradients.key.put(side, &of_keys);
        gradients.value.put(side, &of_values);
    }
}

/// Makes of a row of scores its weights, and of the gradient of these (`slopes`) that of the scores: zero
/// both where the score is hidden.
#[inline(always)]
unsafe fn slope<L: Lanes>(
    weights: *mut f32,
    slopes: *mut f32,
    used: usize,
    lse: f32,
    delta: f32,
    scale: f32,
) {
    unsafe {
        let (by, below, less) = (L::splat(scale), L::splat(-lse), L::splat(delta));
        for i in (0..used).step_by(L::WIDTH) {
            let weight = exp(L::load(weights.add(i)).mul_add(by, below));
            weight.store(weights.add(i));
            let slope = L::load(slopes.add(i)).sub(less);
            weight.mul(by).mul(slope).store(slopes.add(i));
        }
    }
}

/// The sum of the products of `size` numbers each, a multiple of 16.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: *const f32, b: *const f32, size: usize) -> f32 {
    unsafe {
        let mut total = L::splat(0.0);
        for i in (0..size).step_by(L::WIDTH) {
            total = L::load(a.add(i)).mul_add(L::load(b.add(i)), total);
        }
        total.sum()
    }
}
