//! Exact Levenshtein distance of two sequences of symbols, up to a cap on the work.

use crate::Result;
use crate::kernel::{Band, Row, Scratch, Table};
use crate::stop::Stop;

/// Cells of the table that are looked at for one pair at most: two texts of 262,144 symbols each, or much
/// longer ones that are nearly equal. Beyond it the band is as wide as this allows, and the result is an
/// upper bound: the cost of the best script inside that band.
pub const MAX_CELLS: u64 = 1 << 36;

/// From here on it pays to guess a narrow band first.
const GUESS_FROM: u64 = 1 << 24;

/// Lengths of the common prefix and, in what remains, the common suffix.
pub fn common_ends<T: PartialEq>(a: &[T], b: &[T]) -> (usize, usize) {
    let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let suffix = a[prefix..]
        .iter()
        .rev()
        .zip(b[prefix..].iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    (prefix, suffix)
}

/// `a` and `b` without their common ends.
pub fn trim<'s, T: PartialEq>(a: &'s [T], b: &'s [T]) -> (&'s [T], &'s [T]) {
    let (prefix, suffix) = common_ends(a, b);
    (&a[prefix..a.len() - suffix], &b[prefix..b.len() - suffix])
}

/// Levenshtein distance. `bound` is any upper bound of it that the caller knows: a lower one is faster.
pub fn distance(
    a: &[u32],
    b: &[u32],
    bound: Option<usize>,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<u32> {
    let (a, b) = trim(a, b);
    Ok(solve(a, b, bound, MAX_CELLS, scratch, stop)?.0)
}

/// The distance of texts that have no common ends, and the band that gives it.
pub fn solve(
    a: &[u32],
    b: &[u32],
    bound: Option<usize>,
    max_cells: u64,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<(u32, Band)> {
    let longest = a.len().max(b.len());
    let mut bound = bound.unwrap_or(longest).min(longest);
    if a.is_empty() || b.is_empty() {
        return Ok((longest as u32, Band::within(a.len(), b.len(), longest)));
    }
    let mut guess = bound;
    if Band::within(a.len(), b.len(), bound).cells() > GUESS_FROM {
        guess = (2 * a.len().abs_diff(b.len())).max(256).min(bound);
    }
    loop {
        let band = Band::within(a.len(), b.len(), guess);
        if band.cells() > max_cells {
            let band = Band::of_size(a.len(), b.len(), max_cells);
            return Ok((cost(a, b, band, scratch, stop)?.min(bound) as u32, band));
        }
        // Fewer rows mean fewer strips, and the distance is the same both ways.
        let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        let narrow = Band::within(short.len(), long.len(), guess);
        let value = cost(short, long, narrow, scratch, stop)?;
        if value <= guess || guess == bound {
            return Ok((value as u32, Band::within(a.len(), b.len(), value)));
        }
        bound = bound.min(value);
        guess = bound.min(guess * 2);
    }
}

fn cost(a: &[u32], b: &[u32], band: Band, scratch: &mut Scratch, stop: &Stop) -> Result<usize> {
    let mut row = Row::top(b.len());
    let table = Table::new(a, b, band, scratch);
    table.run(&mut row, (0, a.len()), false, scratch, stop)?;
    Ok(row.end() as usize)
}

/// The textbook table, row by row: what the fast way is compared with.
#[cfg(any(test, feature = "plain"))]
pub fn plain(a: &[u32], b: &[u32]) -> u32 {
    let mut row: Vec<u32> = (0..=b.len() as u32).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i as u32 + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + u32::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::symbols;

    fn fast(a: &[u32], b: &[u32]) -> u32 {
        distance(a, b, None, &mut Scratch::default(), &Stop::new()).unwrap()
    }

    proptest! {
        #[test]
        fn equals_the_plain_table(a in symbols(900), b in symbols(900)) {
            prop_assert_eq!(fast(&a, &b), plain(&a, &b));
        }

        #[test]
        fn any_true_bound_gives_the_same(a in symbols(600), b in symbols(600), more in 0_usize..200) {
            let expected = plain(&a, &b);
            let bound = Some(expected as usize + more);
            let mut scratch = Scratch::default();
            prop_assert_eq!(distance(&a, &b, bound, &mut scratch, &Stop::new()).unwrap(), expected);
            // A scratch that was used is as good as a new one.
            prop_assert_eq!(distance(&b, &a, None, &mut scratch, &Stop::new()).unwrap(), expected);
        }

        #[test]
        fn few_edits_in_long_sequences(a in symbols(3000), at in any::<prop::sample::Index>()) {
            let mut b = a.clone();
            b.insert(at.index(a.len() + 1), 77);
            let turn = b.len().min(5);
            b.rotate_left(turn);
            prop_assert_eq!(fast(&a, &b), plain(&a, &b));
        }

        #[test]
        fn symmetry_and_triangle(a in symbols(300), b in symbols(300), c in symbols(300)) {
            prop_assert_eq!(fast(&a, &b), fast(&b, &a));
            prop_assert!(fast(&a, &c) <= fast(&a, &b) + fast(&b, &c));
        }

        #[test]
        fn beyond_the_cap_it_is_an_upper_bound(
            a in symbols(900), b in symbols(900), cells in 1_u64..200_000,
        ) {
            let (a, b) = trim(&a, &b);
            let mut scratch = Scratch::default();
            let (value, _) = solve(a, b, None, cells, &mut scratch, &Stop::new()).unwrap();
            prop_assert!(value >= plain(a, b) && value as usize <= a.len().max(b.len()));
        }
    }

    #[test]
    fn edges() {
        assert_eq!(fast(&[], &[]), 0);
        assert_eq!(fast(&[1], &[]), 1);
        assert_eq!(fast(&[1, 2, 3], &[1, 2, 3]), 0);
        for length in [63, 64, 65, 255, 256, 257, 512, 513] {
            let a: Vec<u32> = (0..length).collect();
            let b: Vec<u32> = (length..2 * length).collect();
            assert_eq!(fast(&a, &b), length);
        }
    }

    #[test]
    fn a_guessed_band_grows_until_it_is_exact() {
        let a: Vec<u32> = (0..9000_u32)
            .map(|i| i.wrapping_mul(2_654_435_761) >> 27)
            .collect();
        let mut b = a.clone();
        b.drain(100..1900);
        b.extend(0..1700);
        assert_eq!(fast(&a, &b), plain(&a, &b));
    }

    #[test]
    fn a_stop_ends_it() {
        let stop = Stop::new();
        stop.set();
        let result = distance(&[1], &[2], None, &mut Scratch::default(), &stop);
        assert!(matches!(result, Err(crate::Error::Stopped)));
    }
}
