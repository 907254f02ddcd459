//! Words as small numbers.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::words::{Word, Words};

/// Bytes of a word that are compared as one number.
const SHORT: usize = 16;
/// Places that are kept for the next pair at most.
const KEPT: usize = 1 << 16;

/// Chosen anew in each process, so that no text can be made whose words all fall on one place.
static SEEDS: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let random = RandomState::new();
    [random.hash_one(0), random.hash_one(1)]
});

/// The words of a pair with their numbers: open addressing with linear steps. Used again from pair to pair.
#[derive(Debug)]
pub struct WordTable {
    /// From the lowest bit: a word's number (32), some bits of its hash (16), and a mark (16). One word of the
    /// machine each, so that the places of a pair fit the nearest cache and what was just written can be
    /// read at once.
    places: Vec<u64>,
    /// The words by their numbers, and room for more.
    words: Vec<Known>,
    distinct: usize,
    /// Places that bear this mark are taken; all others are free.
    mark: u16,
    seeds: [u64; 2],
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    key: [u64; 2],
    start: u64,
}

impl Default for WordTable {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            words: Vec::new(),
            distinct: 0,
            mark: 0,
            seeds: *SEEDS,
        }
    }
}

impl WordTable {
    fn clear(&mut self, words: usize) {
        let room = (2 * words).next_power_of_two().max(64);
        let too_large = self.places.len() > KEPT && self.places.len() > 8 * room;
        if self.places.len() < room || too_large || self.mark == u16::MAX {
            self.places = vec![0; room];
            self.words = vec![Known::default(); room];
            self.mark = 0;
        }
        self.mark += 1;
        self.distinct = 0;
    }

    /// The number of each word of `text`. Words that are known already stand in `first`.
    fn numbers(&mut self, words: &[Word], text: &str, first: &str) -> Vec<u32> {
        let firsts = self.distinct;
        let last = self.places.len() - 1;
        let mut numbers = Vec::with_capacity(words.len());
        for word in words {
            let length = (word.end - word.start) as usize;
            let (key, hash) = key_of(text.as_bytes(), word, self.seeds);
            let mark = u64::from(self.mark) << 48;
            let tagged = mark | hash >> 48 << 32;
            let mut at = hash as usize & last;
            loop {
                let place = self.places[at];
                let is_free = place >> 48 != mark >> 48;
                // Whether a word is new cannot be foretold, so both cases go the same way.
                let place = if is_free {
                    tagged | self.distinct as u64
                } else {
                    place
                };
                let number = place as u32;
                let known = self.words[number as usize];
                let known = if is_free {
                    Known {
                        key,
                        start: u64::from(word.start),
                    }
                } else {
                    known
                };
                let mut same = known.key == key && place >> 32 == tagged >> 32;
                if length > SHORT && same {
                    let there = if (number as usize) < firsts {
                        first
                    } else {
                        text
                    };
                    let start = known.start as usize;
                    same = is_free || there.get(start..start + length) == Some(word.of(text));
                }
                if same {
                    self.places[at] = place;
                    self.words[number as usize] = known;
                    self.distinct += usize::from(is_free);
                    numbers.push(number);
                    break;
                }
                at = (at + 1) & last;
            }
        }
        numbers
    }
}

/// What a word is compared by, and its hash. Up to `SHORT` bytes that is the word itself, filled up with
/// bytes that no text holds; beyond it is a hash and the length.
#[inline(always)]
fn key_of(text: &[u8], word: &Word, [seed, other]: [u64; 2]) -> ([u64; 2], u64) {
    let (start, end) = (word.start as usize, word.end as usize);
    let length = end - start;
    if length > SHORT {
        return key_of_long(&text[start..end], seed);
    }
    let filled = u128::MAX.checked_shl(8 * length as u32).unwrap_or(0);
    let key = match text[start..].first_chunk::<SHORT>() {
        Some(bytes) => u128::from_le_bytes(*bytes) | filled,
        None => {
            let mut bytes = [0; SHORT];
            bytes[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes) | filled
        }
    };
    let (low, high) = (key as u64, (key >> 64) as u64);
    let product = u128::from(low ^ seed) * u128::from(high ^ other);
    ([low, high], product as u64 ^ (product >> 64) as u64)
}

#[cold]
#[inline(never)]
fn key_of_long(word: &[u8], seed: u64) -> ([u64; 2], u64) {
    let hash = xxh3_64_with_seed(word, seed);
    // The highest byte is zero, which a short word has none of.
    ([hash, word.len() as u64], hash)
}

/// The words of two texts as numbers: equal words have equal numbers, counted from 0 without gaps.
#[derive(Debug)]
pub struct Interned {
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    /// Different words of both together; those of `a` come first.
    pub distinct: usize,
    /// For each different word of `a` whether `b` has it too, and how many it has.
    in_both: Vec<bool>,
    shared: usize,
}

impl Interned {
    pub fn new(a_text: &str, a: &Words, b_text: &str, b: &Words, table: &mut WordTable) -> Self {
        table.clear(a.words.len() + b.words.len());
        let a_ids = table.numbers(&a.words, a_text, a_text);
        let distinct_a = table.distinct;
        let b_ids = table.numbers(&b.words, b_text, a_text);
        let distinct = table.distinct;
        let mut in_both = vec![false; distinct_a];
        for &id in &b_ids {
            if let Some(seen) = in_both.get_mut(id as usize) {
                *seen = true;
            }
        }
        Self {
            a: a_ids,
            b: b_ids,
            shared: in_both.iter().filter(|&&both| both).count(),
            in_both,
            distinct,
        }
    }

    /// |A ∩ B| / |A ∪ B| over the sets of words, 1 when both are empty.
    pub fn jaccard(&self) -> f64 {
        if self.distinct == 0 {
            1.0
        } else {
            self.shared as f64 / self.distinct as f64
        }
    }

    /// Both sides in as few numbers as comparing them needs: 0 for words of `a` alone, 1 for those of `b`
    /// alone, and from 2 on for shared ones. None where there are `most` numbers or more.
    pub fn dense(&self, most: usize) -> Option<Dense> {
        if self.shared + 2 > most.min(1 << 16) {
            return None;
        }
        let mut next = 1;
        let numbers: Vec<u16> = self
            .in_both
            .iter()
            .map(|&both| {
                next += u16::from(both);
                if both { next } else { 0 }
            })
            .collect();
        let number = |&id: &u32| match numbers.get(id as usize) {
            Some(&number) => number,
            None => 1,
        };
        Some(Dense {
            a: self.a.iter().map(number).collect(),
            b: self.b.iter().map(number).collect(),
            kinds: self.shared + 2,
        })
    }
}

/// See `Interned::dense`.
#[derive(Debug, Default)]
pub struct Dense {
    pub a: Vec<u16>,
    pub b: Vec<u16>,
    pub kinds: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::words::split;

    fn list(text: &str) -> Vec<String> {
        let words = split(text).unwrap().words;
        words.iter().map(|w| w.of(text).to_owned()).collect()
    }

    fn interned(a: &str, b: &str) -> Interned {
        let (x, y) = (split(a).unwrap(), split(b).unwrap());
        Interned::new(a, &x, b, &y, &mut WordTable::default())
    }

    #[test]
    fn jaccard_of_edges() {
        assert_eq!(interned("", " ").jaccard(), 1.0);
        assert_eq!(interned("a", "").jaccard(), 0.0);
        assert_eq!(interned("a b a", "b c").jaccard(), 1.0 / 3.0);
    }

    #[test]
    fn words_of_every_length() {
        let word = |n: usize| "x".repeat(n);
        let text: String = (1..40).map(|n| word(n) + " ").collect();
        let found = interned(&text, &(text.clone() + &word(41)));
        assert_eq!(found.a, (0..39).collect::<Vec<_>>());
        assert_eq!(found.b, (0..40).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn numbers_are_equal_where_words_are(a in crate::testing::text(), b in crate::testing::text()) {
            let found = interned(&a, &b);
            let mut numbers = HashMap::new();
            let mut number = |text: &str| -> Vec<u32> {
                list(text)
                    .into_iter()
                    .map(|word| {
                        let next = numbers.len() as u32;
                        *numbers.entry(word).or_insert(next)
                    })
                    .collect()
            };
            prop_assert_eq!(&found.a, &number(&a));
            prop_assert_eq!(&found.b, &number(&b));
            prop_assert_eq!(found.distinct, numbers.len());
            let dense = found.dense(usize::MAX).unwrap();
            for (i, x) in found.a.iter().enumerate() {
                for (j, y) in found.b.iter().enumerate() {
                    prop_assert_eq!(x == y, dense.a[i] == dense.b[j]);
                }
            }
            prop_assert!(dense.a.iter().chain(&dense.b).all(|&n| usize::from(n) < dense.kinds));
        }

        #[test]
        fn jaccard_equals_sets(a in crate::testing::text(), b in crate::testing::text()) {
            let (x, y): (HashSet<_>, HashSet<_>) =
                (list(&a).into_iter().collect(), list(&b).into_iter().collect());
            let union = x.union(&y).count();
            let expected =
                if union == 0 { 1.0 } else { x.intersection(&y).count() as f64 / union as f64 };
            prop_assert_eq!(interned(&a, &b).jaccard(), expected);
        }
    }
}
