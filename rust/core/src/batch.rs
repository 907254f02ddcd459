//! Distances and scripts of many pairs at once, one pair in each lane of a vector.
//!
//! A group of pairs shares one table shape. A pair that is smaller is given a common prefix, which changes no
//! distance, so all end in the same last row. Symbols are dense numbers of a few bits, and for 64 rows each
//! of these bits is one word: whether a column's symbol equals each row's is then a few logic operations for
//! all lanes, without a table to look into. The recurrence and the band are those of `kernel`.

use crate::Result;
use crate::cpu::Kernel;
use crate::group::{Group, MAX_KINDS, WORD, lanes, shape};
use crate::kernel;
use crate::levenshtein;
use crate::script::{self, Unit};
use crate::stop::Stop;
use crate::work::{Lent, each};

/// Rows or columns of a table that is batched.
const MAX_LENGTH: usize = 1 << 15;
/// Words that the recorded steps of one group may take.
const RECORD_WORDS: usize = 1 << 19;
/// A vector step costs as much as this many steps of a single pair, in halves.
const STEP_COST: usize = 5;

/// Pairs among which the other lanes of a group are chosen.
const CHOICE: usize = 64;

/// The symbols of one side of a pair.
#[derive(Debug, Clone, Copy)]
pub enum Symbols<'s> {
    /// One byte a symbol, and the number of each byte.
    Bytes(&'s [u8], &'s [u8; 256]),
    /// Numbers, of which all from the last one on count as that one: of two sides only one has such.
    Numbers(&'s [u32], u32),
}

impl Symbols<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes, _) => bytes.len(),
            Self::Numbers(numbers, _) => numbers.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All but the first `count` symbols.
    pub fn after(&self, count: usize) -> Self {
        match *self {
            Self::Bytes(bytes, numbers) => Self::Bytes(bytes.get(count..).unwrap_or(&[]), numbers),
            Self::Numbers(numbers, last) => {
                Self::Numbers(numbers.get(count..).unwrap_or(&[]), last)
            }
        }
    }

    pub fn to_vec(self) -> Vec<u32> {
        match self {
            Self::Bytes(bytes, numbers) => bytes
                .iter()
                .map(|&byte| u32::from(numbers[usize::from(byte)]))
                .collect(),
            Self::Numbers(numbers, last) => numbers.iter().map(|&n| n.min(last)).collect(),
        }
    }
}

/// A pair without common ends. All numbers are below `kinds`, and two symbols are equal where their numbers are.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'s> {
    pub a: Symbols<'s>,
    pub b: Symbols<'s>,
    pub kinds: usize,
    /// Any upper bound of the distance; a lower one is faster.
    pub bound: usize,
}

impl<'s> Pair<'s> {
    /// The shorter side, then the longer one.
    fn sides(&self) -> (Symbols<'s>, Symbols<'s>) {
        if self.a.len() <= self.b.len() {
            (self.a, self.b)
        } else {
            (self.b, self.a)
        }
    }
}

/// Buffers that are used again from batch to batch.
#[derive(Debug, Default)]
pub struct Scratch {
    groups: Lent<Group>,
    pub single: Lent<kernel::Scratch>,
}

/// The Levenshtein distance of each pair.
pub fn distances(
    pairs: &[Pair],
    kernel: Kernel,
    scratch: &Scratch,
    stop: &Stop,
) -> Result<Vec<u32>> {
    let reach = |pair: &Pair| {
        let (rows, cols) = pair.sides();
        let apart = cols.len() - rows.len();
        let spare = pair.bound.saturating_sub(apart) / 2;
        (spare, apart + spare)
    };
    let size = |pair: &Pair| {
        let (rows, cols) = pair.sides();
        let (left, right) = reach(pair);
        Size {
            rows: rows.len(),
            cols: cols.len(),
            left: left.min(rows.len()),
            right: right.min(cols.len()),
        }
    };
    let group = |members: &[usize]| {
        let sides: Vec<_> = members.iter().map(|&i| pairs[i].sides()).collect();
        let kinds = members.iter().map(|&i| pairs[i].kinds).max().unwrap_or(0);
        let bounds: Vec<usize> = members.iter().map(|&i| pairs[i].bound).collect();
        scratch.groups.with(|group| {
            group.load(kernel, &sides, kinds);
            group.run(kernel, &bounds, false, stop)?;
            Ok(group.values.iter().map(|&value| value as u32).collect())
        })
    };
    let single = |pair: &Pair| {
        let (a, b) = (pair.a.to_vec(), pair.b.to_vec());
        let bound = Some(pair.bound);
        scratch
            .single
            .with(|single| levenshtein::distance(&a, &b, bound, single, stop))
    };
    run(pairs, &plan(pairs, kernel, size, usize::MAX), group, single)
}

/// The minimal edit script of each pair, the same that `script::script` gives.
pub fn scripts(
    pairs: &[Pair],
    kernel: Kernel,
    scratch: &Scratch,
    stop: &Stop,
) -> Result<Vec<Vec<Unit>>> {
    let size = |pair: &Pair| Size {
        rows: pair.a.len(),
        cols: pair.b.len(),
        left: pair.a.len(),
        right: pair.b.len(),
    };
    let group = |members: &[usize]| {
        let sides: Vec<_> = members.iter().map(|&i| (pairs[i].a, pairs[i].b)).collect();
        let kinds = members.iter().map(|&i| pairs[i].kinds).max().unwrap_or(0);
        scratch.groups.with(|group| {
            group.load(kernel, &sides, kinds);
            group.run(kernel, &vec![2 * MAX_LENGTH; members.len()], true, stop)?;
            let lanes = sides.iter().enumerate();
            Ok(lanes
                .map(|(lane, &(a, b))| {
                    let mut steps = group.steps(lane);
                    let vertical = |row, col| steps.vertical(row, col);
                    match (a, b) {
                        (Symbols::Numbers(a, _), Symbols::Numbers(b, _)) => {
                            script::follow(a, b, vertical)
                        }
                        _ => script::follow(&a.to_vec(), &b.to_vec(), vertical),
                    }
                })
                .collect())
        })
    };
    let single = |pair: &Pair| {
        let (a, b) = (pair.a.to_vec(), pair.b.to_vec());
        scratch
            .single
            .with(|single| script::script(&a, &b, single, stop))
    };
    run(
        pairs,
        &plan(pairs, kernel, size, RECORD_WORDS),
        group,
        single,
    )
}

/// The results of `group` and `single` for what the plan says, in the order of the pairs.
fn run<T: Default + Clone + Send>(
    pairs: &[Pair],
    plan: &[Vec<usize>],
    group: impl Fn(&[usize]) -> Result<Vec<T>> + Sync + Send,
    single: impl Fn(&Pair) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    let done = each(plan, 1, |members: &Vec<usize>| match members[..] {
        [one] => Ok(vec![single(&pairs[one])?]),
        _ => group(members),
    })?;
    let mut found = vec![T::default(); pairs.len()];
    for (members, results) in plan.iter().zip(done) {
        for (&i, result) in members.iter().zip(results) {
            found[i] = result;
        }
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    cols: usize,
    /// Columns of the band left and right of the main diagonal.
    left: usize,
    right: usize,
}

impl Size {
    fn width(&self) -> usize {
        (self.left + self.right + 1).min(self.cols)
    }

    /// Cells that are run for nothing, roughly, where `other` is in one group with `self`, which has no fewer
    /// rows.
    fn waste(&self, other: &Self) -> usize {
        let columns = self.left.abs_diff(other.left) + self.right.abs_diff(other.right);
        (self.rows - other.rows) * self.width() + self.rows * columns
    }
}

/// Groups of pairs of similar size; a pair that is better done by itself is a group of its own.
fn plan(
    pairs: &[Pair],
    kernel: Kernel,
    size: impl Fn(&Pair) -> Size,
    record_words: usize,
) -> Vec<Vec<usize>> {
    let lanes = lanes(kernel);
    let sizes: Vec<Size> = pairs.iter().map(size).collect();
    let fits = |&i: &usize| {
        let Size { rows, cols, .. } = sizes[i];
        lanes > 1 && rows.max(cols) <= MAX_LENGTH && pairs[i].kinds <= MAX_KINDS
    };
    let (mut batched, single): (Vec<usize>, Vec<usize>) = (0..pairs.len()).partition(fits);
    // The longest first, so that no core is left with them at the end; the last one here.
    batched.sort_unstable_by_key(|&i| sizes[i].rows);
    let mut plan: Vec<Vec<usize>> = single.into_iter().map(|i| vec![i]).collect();
    while let Some(first) = batched.pop() {
        // With those of the next ones that fit it best.
        let next = batched.len().saturating_sub(CHOICE);
        let mut choice: Vec<usize> = (next..batched.len()).collect();
        let others = choice.len().min(lanes - 1);
        if others < choice.len() {
            let waste = |&at: &usize| sizes[first].waste(&sizes[batched[at]]);
            choice.select_nth_unstable_by_key(others, waste);
        }
        choice.truncate(others);
        choice.sort_unstable();
        let others = choice.iter().rev().map(|&at| batched.remove(at));
        let members: Vec<usize> = std::iter::once(first).chain(others).collect();
        let (rows, cols) = shape(members.iter().map(|&i| (sizes[i].rows, sizes[i].cols)));
        let widest = members.iter().map(|&i| sizes[i].width()).max().unwrap_or(0);
        let steps = rows / WORD * cols.min(widest + 4 * WORD);
        let alone: usize = members
            .iter()
            .map(|&i| sizes[i].rows.div_ceil(WORD) * sizes[i].width())
            .sum();
        let recorded = Group::record_words(rows, cols, lanes);
        if members.len() > 1 && steps * STEP_COST <= alone * 2 && recorded <= record_words {
            plan.push(members);
        } else {
            plan.extend(members.iter().map(|&i| vec![i]));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::levenshtein::{plain, trim};
    use crate::testing::symbols;

    /// Pairs of numbers of up to `kinds` kinds.
    fn pairs(most: usize, longest: usize) -> impl Strategy<Value = Vec<(Vec<u32>, Vec<u32>)>> {
        let kinds = prop_oneof![1_u32..40, 1_u32..400, 1_u32..4095];
        kinds.prop_flat_map(move |kinds| {
            let side = move || prop::collection::vec(0..kinds, 0..longest);
            prop::collection::vec((side(), side()), 0..most)
        })
    }

    fn given<'s>(
        texts: &'s [(Vec<u32>, Vec<u32>)],
        bound: impl Fn(&[u32], &[u32]) -> usize,
    ) -> Vec<Pair<'s>> {
        texts
            .iter()
            .map(|(a, b)| {
                let (x, y) = trim(a, b);
                // What only `y` has above all of `x` may be one number.
                let last = x.iter().max().map_or(0, |&n| n + 1);
                Pair {
                    a: Symbols::Numbers(x, last),
                    b: Symbols::Numbers(y, last),
                    kinds: last as usize + 1,
                    bound: bound(x, y),
                }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn distances_equal_the_plain_table(texts in pairs(40, 700), more in 0_usize..200) {
            let expected: Vec<u32> =
                texts.iter().map(|(a, b)| plain(a, b)).collect();
            for kernel in Kernel::available() {
                let scratch = Scratch::default();
                for pairs in [
                    given(&texts, |a, b| a.len().max(b.len())),
                    given(&texts, |a, b| plain(a, b) as usize + more),
                ] {
                    let found = distances(&pairs, kernel, &scratch, &Stop::new()).unwrap();
                    prop_assert_eq!(&found, &expected, "{:?}", kernel);
                }
            }
        }

        #[test]
        fn scripts_equal_those_of_single_pairs(texts in pairs(40, 600)) {
            let pairs = given(&texts, |a, b| a.len().max(b.len()));
            let scratch = Scratch::default();
            let expected: Vec<Vec<Unit>> = pairs
                .iter()
                .map(|p| {
                    let (a, b) = (p.a.to_vec(), p.b.to_vec());
                    scratch.single.with(|single| script::script(&a, &b, single, &Stop::new())).unwrap()
                })
                .collect();
            for kernel in Kernel::available() {
                let found = scripts(&pairs, kernel, &scratch, &Stop::new()).unwrap();
                prop_assert_eq!(&found, &expected, "{:?}", kernel);
            }
        }

        #[test]
        fn similar_texts_of_one_length(a in symbols(1500), edits in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..40), 1..200)) {
            let texts: Vec<(Vec<u32>, Vec<u32>)> = (1..=16)
                .map(|n| {
                    let mut b = a.clone();
                    for (at, number) in edits.iter().take(edits.len() * n / 16) {
                        if b.is_empty() {
                            b.push(*number);
                        }
                        let at = at.index(b.len());
                        match number % 3 {
                            0 => b.insert(at, *number),
                            1 => b[at] = *number,
                            _ => drop(b.remove(at)),
                        }
                    }
                    (a.clone(), b)
                })
                .collect();
            let expected: Vec<u32> = texts.iter().map(|(a, b)| plain(a, b)).collect();
            let pairs = given(&texts, |a, b| plain(a, b) as usize);
            for kernel in Kernel::available() {
                let found =
                    distances(&pairs, kernel, &Scratch::default(), &Stop::new()).unwrap();
                prop_assert_eq!(&found, &expected, "{:?}", kernel);
            }
        }
    }

    #[test]
    fn lengths_about_a_word_and_a_strip() {
        for length in [0, 1, 63, 64, 65, 255, 256, 257, 300, 512, 513] {
            let a: Vec<u32> = (0..length).map(|n| n % 60).collect();
            let b: Vec<u32> = (0..length).map(|n| (n * 7 + 3) % 60).collect();
            let texts = vec![(a, b); 8];
            let expected = plain(&texts[0].0, &texts[0].1);
            let pairs = given(&texts, |a, b| a.len().max(b.len()));
            for kernel in Kernel::available() {
                let found = distances(&pairs, kernel, &Scratch::default(), &Stop::new()).unwrap();
                assert_eq!(found, [expected; 8], "{kernel:?} {length}");
            }
        }
    }
}
