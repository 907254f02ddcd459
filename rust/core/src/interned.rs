//! Words as small numbers.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::words::{Word, Words};

/// Bytes of a word that are compared as one number.
const SHORT: usize = 16;
/// Places that are kept for the next pair at most.
const KEPT: usize = 1 << 14;

/// Chosen anew in each process, so that no text can be made whose words all fall on one place.
static SEEDS: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let random = RandomState::new();
    [random.hash_one(0), random.hash_one(1)]
});

/// The words of a pair with their numbers: open addressing with linear steps. Used again from pair to pair.
#[derive(Debug)]
pub struct WordTable {
    places: Vec<Place>,
    distinct: u32,
    /// Words of the second text that the first one has too.
    shared: u32,
    /// Places that bear this mark are taken; all others are free.
    mark: u32,
    seeds: [u64; 2],
}

/// A word that is known. Half of a cache line, so that one look at memory tells all.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Place {
    key: [u64; 2],
    number: u32,
    start: u32,
    mark: u32,
    /// The text that had it last.
    side: u32,
}

impl Default for WordTable {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            distinct: 0,
            shared: 0,
            mark: 0,
            seeds: *SEEDS,
        }
    }
}

impl WordTable {
    fn clear(&mut self, words: usize) {
        let room = (2 * words).next_power_of_two().max(64);
        let too_large = self.places.len() > KEPT && self.places.len() > 8 * room;
        if self.places.len() < room || too_large || self.mark == u32::MAX {
            self.places = vec![Place::default(); room];
            self.mark = 0;
        }
        self.mark += 1;
        self.distinct = 0;
        self.shared = 0;
    }

    /// The number of each word of `texts[side]`; the texts before it have been numbered.
    fn numbers(&mut self, words: &[Word], texts: [&str; 2], side: u32) -> Vec<u32> {
        let (mark, seeds) = (self.mark, self.seeds);
        let text = texts[side as usize];
        let (firsts, mut distinct, mut shared) = (self.distinct, self.distinct, self.shared);
        let places = self.places.as_mut_slice();
        let last = places.len() - 1;
        let mut numbers = vec![0; words.len()];
        for (word, found) in words.iter().zip(&mut numbers) {
            let (key, hash) = key_of(text.as_bytes(), word, seeds);
            let mut at = hash as usize & last;
            loop {
                let place = &mut places[at];
                if place.mark != mark {
                    *place = Place {
                        key,
                        number: distinct,
                        start: word.start,
                        mark,
                        side,
                    };
                    *found = distinct;
                    distinct += 1;
                    break;
                }
                let of = texts[usize::from(place.number >= firsts) & side as usize];
                if place.key == key
                    && (word.end - word.start <= SHORT as u32 || place.is_there(of, word.of(text)))
                {
                    *found = place.number;
                    shared += u32::from(place.side != side);
                    place.side = side;
                    break;
                }
                at = (at + 1) & last;
            }
        }
        (self.distinct, self.shared) = (distinct, shared);
        numbers
    }
}

impl Place {
    /// Whether this word of `text` is `word`, both being long and of one length.
    #[cold]
    #[inline(never)]
    fn is_there(&self, text: &str, word: &str) -> bool {
        text[self.start as usize..].starts_with(word)
    }
}

/// What fills a word of so many bytes up to `SHORT`: bytes that no text holds.
const FILLED: [u128; SHORT + 1] = {
    let mut filled = [0; SHORT + 1];
    let mut length = 0;
    while length < SHORT {
        filled[length] = u128::MAX << (8 * length);
        length += 1;
    }
    filled
};

/// What a word is compared by, and its hash. Up to `SHORT` bytes that is the word itself, filled up; beyond
/// it is a hash and the length.
#[inline(always)]
fn key_of(text: &[u8], word: &Word, [seed, other]: [u64; 2]) -> ([u64; 2], u64) {
    let (start, end) = (word.start as usize, word.end as usize);
    let length = end - start;
    if length > SHORT {
        return key_of_long(&text[start..end], seed);
    }
    let bytes = match text[start..].first_chunk::<SHORT>() {
        Some(bytes) => u128::from_le_bytes(*bytes),
        None => near_the_end(&text[start..end]),
    };
    let key = bytes | FILLED[length];
    let (low, high) = (key as u64, (key >> 64) as u64);
    let product = u128::from(low ^ seed) * u128::from(high ^ other);
    ([low, high], product as u64 ^ (product >> 64) as u64)
}

#[cold]
#[inline(never)]
fn near_the_end(word: &[u8]) -> u128 {
    let mut bytes = [0; SHORT];
    bytes[..word.len()].copy_from_slice(word);
    u128::from_le_bytes(bytes)
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
    pub distinct_a: usize,
    shared: usize,
}

impl Interned {
    pub fn new(a_text: &str, a: &Words, b_text: &str, b: &Words, table: &mut WordTable) -> Self {
        table.clear(a.words.len() + b.words.len());
        let a_ids = table.numbers(&a.words, [a_text, b_text], 0);
        let distinct_a = table.distinct as usize;
        let b_ids = table.numbers(&b.words, [a_text, b_text], 1);
        Self {
            a: a_ids,
            b: b_ids,
            distinct: table.distinct as usize,
            distinct_a,
            shared: table.shared as usize,
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
            prop_assert!(found.a.iter().all(|&id| (id as usize) < found.distinct_a));
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
