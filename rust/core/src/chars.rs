//! The characters of a pair as dense numbers, for `batch`.

use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};

use crate::batch::{Pair, Symbols};
use crate::group::MAX_KINDS;

/// Both sides of a pair without their common ends, each character one symbol.
#[derive(Debug)]
pub struct Characters<'t> {
    a: Side<'t>,
    b: Side<'t>,
    /// The number of each byte: 0 for those of a alone, 1 for those of b alone, from 2 on those of both.
    numbers: [u8; 256],
    kinds: usize,
}

#[derive(Debug)]
enum Side<'t> {
    /// One byte a character; those from 128 on stand for characters that are no ASCII.
    Bytes(Cow<'t, [u8]>),
    Numbers(Vec<u32>),
}

impl<'t> Characters<'t> {
    /// None where the pair has more characters in common than `batch` takes.
    pub fn new(a: &'t str, b: &'t str) -> Option<Self> {
        let (a, b) = trim(a, b);
        Self::in_bytes(a, b).or_else(|| Self::in_numbers(a, b))
    }

    fn in_bytes(a: &'t str, b: &'t str) -> Option<Self> {
        let mut others = HashMap::new();
        let (a, b) = (bytes(a, &mut others)?, bytes(b, &mut others)?);
        let (in_a, in_b) = (seen(&a), seen(&b));
        let mut numbers = [0; 256];
        let mut kinds = 2_u8;
        for (byte, number) in numbers.iter_mut().enumerate() {
            if in_a[byte] && in_b[byte] {
                *number = kinds;
                kinds = kinds.checked_add(1)?;
            } else {
                *number = u8::from(in_b[byte]);
            }
        }
        Some(Self {
            a: Side::Bytes(a),
            b: Side::Bytes(b),
            numbers,
            kinds: usize::from(kinds),
        })
    }

    fn in_numbers(a: &'t str, b: &'t str) -> Option<Self> {
        let in_b: HashSet<char> = b.chars().collect();
        let mut numbers: HashMap<char, u32> = HashMap::new();
        for c in a.chars().filter(|c| in_b.contains(c)) {
            let next = numbers.len() as u32 + 2;
            numbers.entry(c).or_insert(next);
            if numbers.len() + 2 > MAX_KINDS {
                return None;
            }
        }
        let side = |text: &str, alone| {
            let number = |c| numbers.get(&c).copied().unwrap_or(alone);
            Side::Numbers(text.chars().map(number).collect())
        };
        Some(Self {
            a: side(a, 0),
            b: side(b, 1),
            numbers: [0; 256],
            kinds: numbers.len() + 2,
        })
    }

    /// The pair for `batch`, whose distance is `bound` at most where one is known.
    pub fn pair(&self, bound: Option<usize>) -> Pair<'_> {
        let (a, b) = (self.symbols(&self.a), self.symbols(&self.b));
        let longest = a.len().max(b.len());
        Pair {
            a,
            b,
            kinds: self.kinds,
            bound: bound.map_or(longest, |bound| bound.min(longest)),
        }
    }

    fn symbols<'s>(&'s self, side: &'s Side) -> Symbols<'s> {
        match side {
            Side::Bytes(bytes) => Symbols::Bytes(bytes, &self.numbers),
            Side::Numbers(numbers) => Symbols::Numbers(numbers, self.kinds as u32 - 1),
        }
    }
}

/// `text` with one byte a character. `others` are the characters seen before that are no ASCII; None where
/// there are more of them than bytes.
fn bytes<'t>(text: &'t str, others: &mut HashMap<char, u8>) -> Option<Cow<'t, [u8]>> {
    const BLOCK: usize = 32;
    if text.is_ascii() {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    let mut found = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if let Some(block) = rest.first_chunk::<BLOCK>()
            && block.is_ascii()
        {
            found.extend_from_slice(block);
            at += BLOCK;
            continue;
        }
        // Up to where a whole block may follow.
        let end = at + BLOCK.min(rest.len());
        for c in text[at..].chars() {
            found.push(if c.is_ascii() {
                c as u8
            } else {
                let next = u8::try_from(others.len() + 128);
                match others.get(&c) {
                    Some(&byte) => byte,
                    None => *others.entry(c).or_insert(next.ok()?),
                }
            });
            at += c.len_utf8();
            if at >= end {
                break;
            }
        }
    }
    Some(Cow::Owned(found))
}

fn seen(bytes: &[u8]) -> [bool; 256] {
    let mut seen = [false; 256];
    for &byte in bytes {
        seen[usize::from(byte)] = true;
    }
    seen
}

/// `a` and `b` without their common ends.
pub fn trim<'t>(a: &'t str, b: &'t str) -> (&'t str, &'t str) {
    let mut prefix = common_prefix(a.as_bytes(), b.as_bytes());
    while !a.is_char_boundary(prefix) || !b.is_char_boundary(prefix) {
        prefix -= 1;
    }
    let (a, b) = (&a[prefix..], &b[prefix..]);
    let mut suffix = common_suffix(a.as_bytes(), b.as_bytes());
    while !a.is_char_boundary(a.len() - suffix) || !b.is_char_boundary(b.len() - suffix) {
        suffix -= 1;
    }
    (&a[..a.len() - suffix], &b[..b.len() - suffix])
}

const CHUNK: usize = 32;

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let same = |(x, y): &(&[u8], &[u8])| x == y;
    let chunks = a.chunks_exact(CHUNK).zip(b.chunks_exact(CHUNK));
    let whole = CHUNK * chunks.take_while(same).count();
    let rest = a[whole..].iter().zip(&b[whole..]);
    whole + rest.take_while(|(x, y)| x == y).count()
}

fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let same = |(x, y): &(&[u8], &[u8])| x == y;
    let chunks = a.rchunks_exact(CHUNK).zip(b.rchunks_exact(CHUNK));
    let whole = CHUNK * chunks.take_while(same).count();
    let rest = a[..a.len() - whole]
        .iter()
        .rev()
        .zip(b[..b.len() - whole].iter().rev());
    whole + rest.take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::levenshtein;

    fn same_table(a: &str, b: &str, found: &Characters) {
        let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
        let (x, y) = levenshtein::trim(&x, &y);
        let pair = found.pair(None);
        let (n, m) = (pair.a.to_vec(), pair.b.to_vec());
        assert_eq!((n.len(), m.len()), (x.len(), y.len()));
        for (i, c) in x.iter().enumerate() {
            for (j, d) in y.iter().enumerate() {
                assert_eq!(c == d, n[i] == m[j]);
            }
        }
        assert!(n.iter().chain(&m).all(|&n| (n as usize) < pair.kinds));
    }

    proptest! {
        #[test]
        fn numbers_are_equal_where_characters_are(
            start in crate::testing::text(), a in crate::testing::text(), b in crate::testing::text(),
        ) {
            let (a, b) = (start.clone() + &a + &start, start.clone() + &b + &start);
            same_table(&a, &b, &Characters::new(&a, &b).unwrap());
            let (x, y) = trim(&a, &b);
            same_table(&a, &b, &Characters::in_numbers(x, y).unwrap());
        }
    }

    #[test]
    fn many_different_characters() {
        let text = |from: u32, to: u32| (from..to).filter_map(char::from_u32).collect::<String>();
        for (a, b) in [
            (text(0x4E00, 0x4E80), text(0x4E10, 0x4E80) + "x"),
            (text(0x4E00, 0x4E90), text(0x4E10, 0x4E90) + "x"),
            (text(0, 300), text(20, 301)),
        ] {
            same_table(&a, &b, &Characters::new(&a, &b).unwrap());
        }
        let a = text(0x4E00, 0x6000);
        let turned: String = a.chars().rev().collect();
        assert!(Characters::new(&a, &turned).is_none());
    }
}
