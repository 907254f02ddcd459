//! A text as it is compared: every character lower-cased by itself, each run of white space one space,
//! none at either end.
//!
//! Lower-casing knows no context (a final sigma is a sigma), so it does not matter whether a text is
//! lower-cased first or split into words first.

use crate::unicode::{CLASSES, SPACE};

/// Zero bytes behind the text, so that a word's bytes can be read eight at a time.
pub const PAD: usize = 64;

/// Bytes that are looked at together, each by one bit of a number.
pub const BLOCK: usize = 64;

/// The normal form of one text at a time, in a buffer that is used again.
#[derive(Debug, Default)]
pub struct Normal {
    bytes: Vec<u8>,
    len: usize,
}

impl Normal {
    pub fn set(&mut self, text: &str) {
        let out = &mut self.bytes;
        out.clear();
        out.reserve(text.len() + PAD);
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            at += match bytes[at..].first_chunk::<BLOCK>() {
                Some(block) => ascii(block, BLOCK, out),
                None => {
                    let mut block = [b' '; BLOCK];
                    let rest = &bytes[at..];
                    block[..rest.len()].copy_from_slice(rest);
                    ascii(&block, rest.len(), out)
                }
            };
            // Characters beyond ASCII come in rows.
            let others = text[at..].chars().take_while(|c| !c.is_ascii());
            for c in others {
                character(c, out);
                at += c.len_utf8();
            }
        }
        if out.last() == Some(&b' ') {
            out.pop();
        }
        self.len = out.len();
        out.resize(self.len + PAD, 0);
    }

    /// The text's bytes: UTF-8.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The same with `PAD` zeros behind it.
    pub fn padded(&self) -> &[u8] {
        &self.bytes
    }

    /// What equal texts have in common.
    pub fn hash(&self) -> u128 {
        xxhash_rust::xxh3::xxh3_128(self.bytes())
    }
}

#[inline]
fn lower_ascii(b: u8) -> u8 {
    if b.wrapping_sub(9) < 5 {
        b' '
    } else {
        b | (u8::from(b.wrapping_sub(b'A') < 26) << 5)
    }
}

/// One bit for each of the flags, which are 0 or 1.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn bits(flags: &[u8; BLOCK]) -> u64 {
    use std::arch::x86_64::{_mm_movemask_epi8, _mm_set_epi64x, _mm_slli_epi16};
    let (eights, _) = flags.as_chunks::<8>();
    let mut bits = 0;
    for i in 0..BLOCK / 16 {
        let half = |at: usize| i64::from_le_bytes(eights[at]);
        // SAFETY: SSE2 is part of every x86-64. Each flag moves to the upper bit of its byte.
        let mask = unsafe {
            _mm_movemask_epi8(_mm_slli_epi16::<7>(_mm_set_epi64x(
                half(2 * i + 1),
                half(2 * i),
            )))
        };
        bits |= u64::from(mask as u32) << (16 * i);
    }
    bits
}

/// One bit for each of the flags, which are 0 or 1.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn bits(flags: &[u8; BLOCK]) -> u64 {
    let (eights, _) = flags.as_chunks::<8>();
    let mut bits = 0;
    for (i, &eight) in eights.iter().enumerate() {
        // The product's upper byte has the flags side by side.
        let byte = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= byte << (8 * i);
    }
    bits
}

/// Takes the ASCII bytes that a block begins with, at most `len`, and says how many these are.
#[inline]
fn ascii(block: &[u8; BLOCK], len: usize, out: &mut Vec<u8>) -> usize {
    let len = if block.is_ascii() {
        len
    } else {
        len.min(bits(&block.map(|b| b >> 7)).trailing_zeros() as usize)
    };
    let lower = block.map(lower_ascii);
    let spaces = bits(&lower.map(|b| u8::from(b == b' ')));
    let before = out.last().is_none_or(|&last| last == b' ');
    let mut double = spaces & (spaces << 1 | u64::from(before));
    // White space beside white space is rare: what lies between is copied as a whole.
    let mut from = 0;
    while double != 0 {
        let next = double.trailing_zeros() as usize;
        if next >= len {
            break;
        }
        out.extend_from_slice(&lower[from..next]);
        from = next + 1;
        double &= double - 1;
    }
    out.extend_from_slice(&lower[from..len.max(from)]);
    len
}

fn character(c: char, out: &mut Vec<u8>) {
    if CLASSES.of(c) == SPACE {
        if out.last().is_some_and(|&last| last != b' ') {
            out.push(b' ');
        }
        return;
    }
    let mut buffer = [0; 4];
    for low in lower(c) {
        out.extend_from_slice(low.encode_utf8(&mut buffer).as_bytes());
    }
}

/// The lower-case form of one character, whatever stands around it. A letter whose lower case the tables
/// of words do not know yet (they may be of an older Unicode) stays.
pub fn lower(c: char) -> impl Iterator<Item = char> {
    let class = CLASSES.of(c);
    let known = c.to_lowercase().all(|low| CLASSES.of(low) == class);
    let one = (!known).then_some(c);
    let lower = known.then(|| c.to_lowercase());
    one.into_iter()
        .chain(lower.into_iter().flatten())
        .map(|c| if c == 'ς' { 'σ' } else { c })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::unicode::RUN;

    fn normal(text: &str) -> String {
        let mut normal = Normal::default();
        normal.set(text);
        assert!(
            normal.padded()[normal.bytes().len()..]
                .iter()
                .all(|&b| b == 0)
        );
        String::from_utf8(normal.bytes().to_vec()).unwrap()
    }

    /// The plain twin.
    fn plain(text: &str) -> String {
        let low: String = text.chars().flat_map(lower).collect();
        let parts: Vec<&str> = low
            .split(|c| CLASSES.of(c) == SPACE)
            .filter(|part| !part.is_empty())
            .collect();
        parts.join(" ")
    }

    #[test]
    fn white_space_and_case() {
        assert_eq!(normal("  A\tb\r\n\u{3000}C  "), "a b c");
        assert_eq!(normal(" \n "), "");
        assert_eq!(normal("ΟΔΟΣ İ ÉCOLE"), normal("οδος i\u{307} école"));
    }

    #[test]
    fn lower_casing_keeps_the_class_of_every_character() {
        for c in '\0'..=char::MAX {
            let class = CLASSES.of(c);
            let low: Vec<char> = lower(c).collect();
            assert!(low.iter().all(|&l| CLASSES.of(l) == class), "{c:?}");
            assert!(low.len() == 1 || class == RUN, "{c:?}");
            assert!(low.iter().all(|&l| lower(l).eq([l])), "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn blocks_agree_with_the_plain_form(text in crate::testing::text()) {
            prop_assert_eq!(normal(&text), plain(&text));
        }

        #[test]
        fn long_texts_too(parts in prop::collection::vec(crate::testing::text(), 0..6)) {
            let text = parts.join("\n\nSome Words, in plain ASCII, that fill a block or two.  ");
            prop_assert_eq!(normal(&text), plain(&text));
        }
    }
}
