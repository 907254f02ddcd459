//! Shingles: every run of `size` words of a text, as one hash of 64 bits each.

use super::normal::{BLOCK, Normal, bits};
use super::splitmix;
use crate::unicode::{CLASSES, RUN, SINGLE};

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
    starts: Places,
    ends: Places,
    words: Vec<u64>,
}

/// Ascending places in a text, taken from the bits of a block at a time.
#[derive(Debug, Default)]
struct Places {
    /// Beyond `count` is room.
    places: Vec<u32>,
    count: usize,
}

impl Places {
    fn all(&self) -> &[u32] {
        &self.places[..self.count]
    }

    /// Appends the places of the bits that are set. Eight are written whether there are so many or not, for
    /// their number cannot be foretold.
    #[inline]
    fn push(&mut self, at: u32, mut bits: u64) {
        if self.places.len() < self.count + BLOCK {
            self.places.resize(2 * self.count + BLOCK, 0);
        }
        let mut left = bits.count_ones() as usize;
        let mut to = self.count;
        self.count += left;
        loop {
            for place in &mut self.places[to..to + 8] {
                *place = at.wrapping_add(bits.trailing_zeros());
                bits &= bits.wrapping_sub(1);
            }
            if left <= 8 {
                break;
            }
            left -= 8;
            to += 8;
        }
    }
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
        self.words(text, scratch);
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
        let from = out.len();
        out.push(rolling);
        // What does not hang on the word before is left out of this loop, which is one long chain.
        out.extend(rest.iter().zip(words).map(|(&enters, &leaves)| {
            let change = enters.wrapping_sub(leaves.wrapping_mul(self.leaving));
            rolling = rolling.wrapping_mul(STEP).wrapping_add(change);
            rolling
        }));
        for hash in &mut out[from..] {
            *hash = finish(*hash);
        }
    }

    /// Hashes each word.
    fn words(&self, text: &Normal, scratch: &mut Scratch) {
        bounds(text, scratch);
        let padded = text.padded();
        let bounds = scratch.starts.all().iter().zip(scratch.ends.all());
        scratch.words.clear();
        scratch
            .words
            .extend(bounds.map(|(&start, &end)| self.word(padded, start as usize, end as usize)));
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

/// A character that reaches into the next block.
#[derive(Debug, Default, Clone, Copy)]
struct Open {
    class: u8,
    bytes: usize,
}

/// Bytes of a block by what they are, one bit each.
#[derive(Debug, Default, Clone, Copy)]
struct Kinds {
    /// Within a run of word characters.
    run: u64,
    /// First and last byte of a character that is a word by itself.
    first: u64,
    last: u64,
}

/// Finds where words begin and end. A text's words are those of its normal form.
fn bounds(text: &Normal, scratch: &mut Scratch) {
    let (starts, ends) = (&mut scratch.starts, &mut scratch.ends);
    starts.count = 0;
    ends.count = 0;
    let len = text.bytes().len();
    let mut open = Open::default();
    let mut before = Kinds::default();
    // One step beyond the end: a word may end there.
    for at in (0..=len).step_by(BLOCK) {
        let Some(block) = text.padded()[at..].first_chunk::<BLOCK>() else {
            break;
        };
        let kinds = if block.is_ascii() && open.bytes == 0 {
            ascii_kinds(block, len - at)
        } else {
            any_kinds(&text.bytes()[at..], &mut open)
        };
        let run_before = kinds.run << 1 | before.run >> 63;
        let start = kinds.run & !run_before | kinds.first;
        let end = run_before & !kinds.run | kinds.last << 1 | before.last >> 63;
        starts.push(at as u32, start);
        ends.push(at as u32, end);
        before = kinds;
    }
}

/// The kinds of the first `len` bytes, all of them ASCII in lower case.
#[inline]
fn ascii_kinds(block: &[u8; BLOCK], len: usize) -> Kinds {
    let within = if len < BLOCK {
        (1 << len) - 1
    } else {
        u64::MAX
    };
    let run = block.map(|b| {
        u8::from(b.wrapping_sub(b'a') < 26)
            | u8::from(b.wrapping_sub(b'0') < 10)
            | u8::from(b == b'_')
    });
    let run = bits(&run) & within;
    let single = !run & !bits(&block.map(|b| u8::from(b == b' '))) & within;
    Kinds {
        run,
        first: single,
        last: single,
    }
}

/// The kinds of the bytes of a block, from the middle of a character that is open.
fn any_kinds(bytes: &[u8], open: &mut Open) -> Kinds {
    let mut kinds = Kinds::default();
    let len = bytes.len().min(BLOCK);
    let mut at = 0;
    while at < len {
        if open.bytes == 0 {
            let (class, bytes) = character(&bytes[at..]);
            *open = Open { class, bytes };
            if class == SINGLE {
                kinds.first |= 1 << at;
            }
        }
        let here = open.bytes.min(len - at);
        open.bytes -= here;
        if open.class == RUN {
            kinds.run |= ((1 << here) - 1) << at;
        } else if open.class == SINGLE && open.bytes == 0 {
            kinds.last |= 1 << (at + here - 1);
        }
        at += here;
    }
    kinds
}

/// Class and width of the character that `bytes`, UTF-8, begins with.
fn character(bytes: &[u8]) -> (u8, usize) {
    let width = match bytes[0] {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    let c = bytes
        .get(..width)
        .and_then(|b| std::str::from_utf8(b).ok())
        .and_then(|s| s.chars().next());
    (c.map_or(SINGLE, |c| CLASSES.of(c)), width)
}

/// What is left of eight bytes of which so many belong to the word.
const KEEP: [u64; 9] = {
    let mut table = [u64::MAX; 9];
    let mut bytes = 0;
    while bytes < 8 {
        table[bytes] = (1 << (8 * bytes)) - 1;
        bytes += 1;
    }
    table
};

/// Up to eight bytes as a number.
#[inline]
fn part(padded: &[u8], start: usize, len: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&padded[start..start + 8]);
    u64::from_le_bytes(eight) & KEEP[len]
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
        let mut set = Vec::new();
        Shingler::new(size, 7).hashes(&normal, &mut Scratch::default(), &mut set);
        set.sort_unstable();
        set.dedup();
        set
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
