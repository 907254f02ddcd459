//! A text as it is compared: every character lower-cased by itself, each run of white space one space,
//! none at either end.
//!
//! Lower-casing knows no context (a final sigma is a sigma), so it does not matter whether a text is
//! lower-cased first or split into words first.

use crate::unicode::{CLASSES, SPACE};

/// Zero bytes behind the text, so that a word's bytes can be read eight at a time.
pub const PAD: usize = 64;

/// Bytes that are looked at together.
const BLOCK: usize = 32;

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
            if let Some(block) = bytes[at..].first_chunk::<BLOCK>()
                && block.is_ascii()
            {
                ascii_block(block, out);
                at += BLOCK;
                continue;
            }
            let Some(c) = text[at..].chars().next() else {
                break;
            };
            character(c, out);
            at += c.len_utf8();
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

#[inline]
fn push_ascii(b: u8, out: &mut Vec<u8>) {
    if b != b' ' || out.last().is_some_and(|&last| last != b' ') {
        out.push(b);
    }
}

#[inline]
fn ascii_block(block: &[u8; BLOCK], out: &mut Vec<u8>) {
    let lower = block.map(lower_ascii);
    let mut before = [b' '; BLOCK];
    before[1..].copy_from_slice(&lower[..BLOCK - 1]);
    before[0] = out.last().copied().unwrap_or(b' ');
    // White space beside white space is rare: everything else is copied as a whole.
    let mut double = 0_u8;
    for (b, p) in lower.iter().zip(&before) {
        double |= u8::from(*b == b' ') & u8::from(*p == b' ');
    }
    if double == 0 {
        out.extend_from_slice(&lower);
    } else {
        for b in lower {
            push_ascii(b, out);
        }
    }
}

fn character(c: char, out: &mut Vec<u8>) {
    if c.is_ascii() {
        push_ascii(lower_ascii(c as u8), out);
    } else if CLASSES.of(c) == SPACE {
        push_ascii(b' ', out);
    } else {
        let mut buffer = [0; 4];
        for low in lower(c) {
            out.extend_from_slice(low.encode_utf8(&mut buffer).as_bytes());
        }
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
