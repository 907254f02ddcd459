//! Shingles: every run of `size` words of a text, as one hash of 64 bits each.

use super::normal::Normal;
use super::splitmix;
use crate::unicode::{CLASSES, RUN, SINGLE, SPACE};

/// Class of each byte of a normal text; one that begins or continues a longer character is `OTHER`.
const BYTES: [u8; 256] = {
    let mut table = [SINGLE; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = if b.is_ascii_alphanumeric() || b == b'_' {
            RUN
        } else if b == b' ' {
            SPACE
        } else if b >= 0x80 {
            OTHER
        } else {
            SINGLE
        };
        byte += 1;
    }
    table
};
const OTHER: u8 = 3;

/// Odd, and so that neither it nor one less is divided by four: swapped words give another hash.
const STEP: u64 = 0x9e37_79b9_7f4a_7c17;

/// How texts become shingles; equal settings and seed give equal hashes on every machine.
#[derive(Debug, Clone)]
pub struct Shingler {
    size: usize,
    seeds: [u64; 3],
    /// `STEP` to the power of `size`, which the word that leaves is multiplied with.
    leaving: u64,
}

/// Buffers for the words of one text.
#[derive(Debug, Default)]
pub struct Scratch {
    words: Vec<u64>,
}

impl Shingler {
    pub fn new(size: usize, seed: u64) -> Self {
        let mut state = seed;
        Self {
            size: size.max(1),
            seeds: std::array::from_fn(|_| splitmix(&mut state)),
            leaving: STEP.wrapping_pow(size.max(1) as u32),
        }
    }

    /// Appends the hash of each shingle, in the order of the text, as often as it occurs. A text of fewer
    /// words than a shingle has, none at all included, is one shingle.
    pub fn hashes(&self, text: &Normal, scratch: &mut Scratch, out: &mut Vec<u64>) {
        scratch.words.clear();
        self.words(text, &mut scratch.words);
        let words = &scratch.words;
        let mut rolling = 0_u64;
        if words.len() < self.size {
            for &word in words {
                rolling = rolling.wrapping_mul(STEP).wrapping_add(word);
            }
            // A short text is no beginning of a longer one.
            out.push(finish(rolling ^ (words.len() as u64 + 1)));
            return;
        }
        let (first, rest) = words.split_at(self.size);
        for &word in first {
            rolling = rolling.wrapping_mul(STEP).wrapping_add(word);
        }
        out.reserve(rest.len() + 1);
        out.push(finish(rolling));
        for (&enters, &leaves) in rest.iter().zip(words) {
            rolling = rolling
                .wrapping_mul(STEP)
                .wrapping_add(enters)
                .wrapping_sub(leaves.wrapping_mul(self.leaving));
            out.push(finish(rolling));
        }
    }

    /// The set of a text's shingles, sorted.
    pub fn set(&self, text: &Normal, scratch: &mut Scratch) -> Vec<u64> {
        let mut set = Vec::new();
        self.hashes(text, scratch, &mut set);
        set.sort_unstable();
        set.dedup();
        set
    }

    /// Appends the hash of each word.
    fn words(&self, text: &Normal, out: &mut Vec<u64>) {
        let (bytes, padded) = (text.bytes(), text.padded());
        let mut open = None;
        let mut at = 0;
        while let Some(&b) = bytes.get(at) {
            let (mut class, mut width) = (BYTES[b as usize], 1);
            if class == OTHER {
                (class, width) = other(&bytes[at..]);
            }
            if class == RUN {
                open.get_or_insert(at);
            } else {
                if let Some(start) = open.take() {
                    out.push(self.word(padded, start, at));
                }
                if class != SPACE {
                    out.push(self.word(padded, at, at + width));
                }
            }
            at += width;
        }
        if let Some(start) = open {
            out.push(self.word(padded, start, at));
        }
    }

    #[inline]
    fn word(&self, padded: &[u8], start: usize, end: usize) -> u64 {
        let len = end - start;
        if len <= 16 {
            let low = part(padded, start, len.min(8));
            let high = part(padded, start + 8, len.saturating_sub(8));
            return fold(
                low ^ self.seeds[0],
                high ^ self.seeds[1].wrapping_add(len as u64),
            );
        }
        xxhash_rust::xxh3::xxh3_64_with_seed(&padded[start..end], self.seeds[2])
    }
}

/// Class and width of the character that `bytes`, UTF-8, begins with.
#[cold]
fn other(bytes: &[u8]) -> (u8, usize) {
    let width = match bytes[0] {
        0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let c = bytes
        .get(..width)
        .and_then(|b| std::str::from_utf8(b).ok())
        .and_then(|s| s.chars().next());
    (c.map_or(SINGLE, |c| CLASSES.of(c)), width)
}

/// Up to eight bytes as a number.
#[inline]
fn part(padded: &[u8], start: usize, len: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&padded[start..start + 8]);
    let mask = if len == 8 {
        u64::MAX
    } else {
        (1 << (8 * len)) - 1
    };
    u64::from_le_bytes(eight) & mask
}

/// Both halves of a product: every bit of it hangs on every bit of both factors.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Hashes of shingles that share words are related by sums; the minima must not see that.
#[inline]
fn finish(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::super::normal::lower;
    use super::*;

    fn set(text: &str, size: usize) -> Vec<u64> {
        let mut normal = Normal::default();
        normal.set(text);
        Shingler::new(size, 7).set(&normal, &mut Scratch::default())
    }

    /// The plain twin: the shingles themselves.
    fn plain(text: &str, size: usize) -> HashSet<Vec<String>> {
        let words: Vec<String> = crate::words::split(text)
            .unwrap()
            .words
            .iter()
            .map(|w| w.of(text).chars().flat_map(lower).collect())
            .collect();
        if words.len() < size {
            return [words].into();
        }
        words.windows(size).map(<[String]>::to_vec).collect()
    }

    fn jaccard<T: Eq + std::hash::Hash>(a: &HashSet<T>, b: &HashSet<T>) -> (usize, usize) {
        (a.intersection(b).count(), a.union(b).count())
    }

    #[test]
    fn order_and_number_of_words_count() {
        assert_ne!(set("a b", 2), set("b a", 2));
        assert_ne!(set("", 5), set("a", 5));
        assert_ne!(set("a b", 5), set("a b", 2));
        assert_eq!(set("A  b c", 5), set("a B\nc", 5));
        assert_eq!(set("a a a a a a a a", 5).len(), 1);
        assert_eq!(set("a b c d e f", 5).len(), 2);
        let long = "w".repeat(40);
        assert_ne!(set(&long, 1), set(&long[1..], 1));
    }

    #[test]
    fn hashes_of_many_different_words_differ() {
        let mut seen = HashMap::new();
        for n in 0..200_000_u32 {
            let word = format!("{n:x}");
            let hash = set(&word, 1)[0];
            assert_eq!(seen.insert(hash, word), None);
        }
        let high: HashSet<u32> = seen.keys().map(|h| (h >> 32) as u32).collect();
        assert!(high.len() > 199_980, "{}", high.len());
    }

    proptest! {
        #[test]
        fn hashes_stand_for_the_shingles(
            a in crate::testing::text(), b in crate::testing::text(), size in 1_usize..7
        ) {
            let (x, y): (HashSet<u64>, HashSet<u64>) =
                (set(&a, size).into_iter().collect(), set(&b, size).into_iter().collect());
            prop_assert_eq!(x.len(), plain(&a, size).len());
            prop_assert_eq!(jaccard(&x, &y), jaccard(&plain(&a, size), &plain(&b, size)));
        }
    }
}
