//! The result of attention, and of each row the logarithm of the sum of its exponentials.

use crate::exp::exp;
use crate::heads::{Pass, Side};
use crate::lanes::Lanes;
use crate::scores::Scores;
use crate::tile::COLUMNS;
use crate::{BLOCK, CHUNK};

/// Attention of one head over the own rows of `side`.
///
/// # Safety
/// The rows of `side` must lie behind all of these, and the processor must have the instructions of `L`.
#[inline(always)]
pub unsafe fn forward<L: Lanes>(pass: Pass, side: &Side, scale: f32) {
    let Pass {
        query,
        key,
        value,
        out,
        lse,
    } = pass;
    let size = query.size;
    unsafe {
        let keys_by_columns = key.panels(side.rows(), COLUMNS);
        let queries = query.panels(side.own.clone(), BLOCK);
        let values = value.copied(side);
        let mut scores = Scores::new();
        for first in (0..side.own.len()).step_by(BLOCK) {
            let rows = BLOCK.min(side.own.len() - first);
            let start = side.own.start + first;
            let mut softened = [(f32::NEG_INFINITY, 0.0); BLOCK];
            for chunk in (0..side.seen(first + rows - 1)).step_by(CHUNK) {
                let seen = |number| side.seen_of(first + number, chunk);
                let keys = seen(rows - 1);
                scores.fill::<L>(
                    &queries[first * size..],
                    rows,
                    &keys_by_columns[chunk * size..],
                    keys,
                    size,
                );
                let used = keys.next_multiple_of(COLUMNS);
                for (number, softened) in softened[..rows].iter_mut().enumerate() {
                    scores.hide(number, seen(number), used);
                    let factor = soften::<L>(scores.row(number), used, scale, softened);
                    if chunk > 0 && factor != 1.0 {
                        times::<L>(out.row(start + number), size, factor);
                    }
                }
                let values = &values[chunk * size..];
                scores.times::<L>(values, seen, out, start, rows, chunk > 0);
            }
            for (number, (highest, total)) in softened[..rows].iter().enumerate() {
                *lse.add(start + number) = highest + total.ln();
                times::<L>(out.row(start + number), size, 1.0 / total);
            }
        }
    }
}

/// Makes of some of a row's scores the exponentials of what they are below the highest. `softened` are
/// the highest score of the row so far, scaled, and the sum of the exponentials; the result is what those of
/// before are to be multiplied with, since a higher score was found.
#[inline(always)]
unsafe fn soften<L: Lanes>(
    row: *mut f32,
    used: usize,
    scale: f32,
    softened: &mut (f32, f32),
) -> f32 {
    unsafe {
        let mut highest = L::splat(f32::NEG_INFINITY);
        for i in (0..used).step_by(L::WIDTH) {
            highest = highest.max(L::load(row.add(i)));
        }
        let (before, sum) = *softened;
        let highest = before.max(highest.largest() * scale);
        let (below, by) = (L::splat(-highest), L::splat(scale));
        let mut total = L::splat(0.0);
        for i in (0..used).step_by(L::WIDTH) {
            let x = exp(L::load(row.add(i)).mul_add(by, below));
            x.store(row.add(i));
            total = total.add(x);
        }
        let factor = (before - highest).exp();
        *softened = (highest, sum * factor + total.sum());
        factor
    }
}

#[inline(always)]
unsafe fn times<L: Lanes>(row: *mut f32, size: usize, factor: f32) {
    unsafe {
        for i in (0..size).step_by(L::WIDTH) {
            L::load(row.add(i)).mul(L::splat(factor)).store(row.add(i));
        }
    }
}
