//! Splitting text into words, and giving the words of a pair small numbers.

use crate::cpu::Kernel;
use crate::unicode::{CLASSES, RUN, SPACE};
use crate::{Error, Result};

/// Where one word lies, in bytes and in characters (code points).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub start: u32,
    pub end: u32,
    pub char_start: u32,
    pub char_end: u32,
}

impl Word {
    pub fn of<'t>(&self, text: &'t str) -> &'t str {
        &text[self.start as usize..self.end as usize]
    }
}

/// The words of a text in order, and its length in characters.
#[derive(Debug, Default)]
pub struct Words {
    pub words: Vec<Word>,
    pub chars: u32,
}

/// Class of each ASCII byte by the same rule as `CLASSES`, which a test compares.
const ASCII: [u8; 128] = {
    let mut table = [crate::unicode::SINGLE; 128];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' {
            table[byte] = RUN;
        } else if b == b' ' || (b >= 9 && b <= 13) {
            table[byte] = SPACE;
        }
        byte += 1;
    }
    table
};

/// Splits `text` into words: a maximal run of Unicode word characters, or one other character that is
/// not white space; characters of scripts written without spaces are words by themselves.
pub fn split(text: &str) -> Result<Words> {
    split_with(text, Kernel::chosen()?)
}

pub fn split_with(text: &str, kernel: Kernel) -> Result<Words> {
    if u32::try_from(text.len()).is_err() {
        return Err(Error::TooLong { bytes: text.len() });
    }
    let mut splitter = Splitter {
        text,
        at: 0,
        chars: 0,
        open: None,
        words: Vec::with_capacity(text.len() / 4),
    };
    match kernel {
        // SAFETY: both are chosen only where the machine has their instructions.
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vbmi2 | Kernel::Avx512 => unsafe { blocks::avx512(&mut splitter) },
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 => unsafe { blocks::avx2(&mut splitter) },
        _ => splitter.one_by_one(text.len()),
    }
    Ok(splitter.finish())
}

/// A text that is being split.
struct Splitter<'t> {
    text: &'t str,
    at: usize,
    chars: u32,
    /// Start of the run that is open, in bytes and in characters.
    open: Option<(u32, u32)>,
    words: Vec<Word>,
}

impl Splitter<'_> {
    /// Character by character, at least up to the byte `to`: the plain way.
    fn one_by_one(&mut self, to: usize) {
        let bytes = self.text.as_bytes();
        let classes = &*CLASSES;
        while self.at < to {
            let (class, width) = match ASCII.get(bytes[self.at] as usize) {
                Some(&class) => (class, 1),
                None => match self.text[self.at..].chars().next() {
                    Some(c) => (classes.of(c), c.len_utf8()),
                    None => break,
                },
            };
            if class == RUN {
                self.open.get_or_insert((self.at as u32, self.chars));
            } else {
                self.close();
                if class != SPACE {
                    self.words.push(Word {
                        start: self.at as u32,
                        end: (self.at + width) as u32,
                        char_start: self.chars,
                        char_end: self.chars + 1,
                    });
                }
            }
            self.at += width;
            self.chars += 1;
        }
    }

    fn close(&mut self) {
        if let Some((start, char_start)) = self.open.take() {
            self.words.push(Word {
                start,
                end: self.at as u32,
                char_start,
                char_end: self.chars,
            });
        }
    }

    /// 64 bytes of ASCII of which `run` belong to runs and `single` are words by themselves.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    fn block(&mut self, run: u64, single: u64) {
        let (at, before) = (self.at as u32, self.at as u32 - self.chars);
        let mut starts = run & !(run << 1 | u64::from(self.open.is_some())) | single;
        if let Some((start, char_start)) = self.open
            && run != u64::MAX
        {
            let end = at + (!run).trailing_zeros();
            self.words.push(Word {
                start,
                end,
                char_start,
                char_end: end - before,
            });
            self.open = None;
        }
        while starts != 0 {
            let bit = starts.trailing_zeros();
            starts &= starts - 1;
            let start = at + bit;
            let length = if single >> bit & 1 == 1 {
                1
            } else {
                // Ones from here on up to the end of the run; a run may go on beyond the block.
                let length = (!(run >> bit)).trailing_zeros();
                if length + bit >= 64 {
                    self.open = Some((start, start - before));
                    break;
                }
                length
            };
            self.words.push(Word {
                start,
                end: start + length,
                char_start: start - before,
                char_end: start + length - before,
            });
        }
        self.at += 64;
        self.chars += 64;
    }

    fn finish(mut self) -> Words {
        self.close();
        Words {
            words: self.words,
            chars: self.chars,
        }
    }
}

/// Classes of 64 bytes at once.
#[cfg(target_arch = "x86_64")]
mod blocks {
    use std::arch::x86_64::*;

    use super::Splitter;

    /// The rest of the text in blocks; those that are not all ASCII go character by character.
    macro_rules! in_blocks {
        ($splitter:ident, $classify:ident) => {
            while let Some(block) = $splitter.text.as_bytes()[$splitter.at..].first_chunk::<64>() {
                match $classify(block) {
                    Some((run, single)) => $splitter.block(run, single),
                    None => $splitter.one_by_one($splitter.at + 64),
                }
            }
            $splitter.one_by_one($splitter.text.len());
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2")]
    pub fn avx512(splitter: &mut Splitter) {
        in_blocks!(splitter, classify_avx512);
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    pub fn avx2(splitter: &mut Splitter) {
        in_blocks!(splitter, classify_avx2);
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn classify_avx512(block: &[u8; 64]) -> Option<(u64, u64)> {
        // SAFETY: 64 bytes are read from a block of 64.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        if _mm512_movepi8_mask(bytes) != 0 {
            return None;
        }
        let within = |bytes, first: u8, last: u8| {
            let from_first = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
            _mm512_cmple_epu8_mask(from_first, _mm512_set1_epi8((last - first) as i8))
        };
        let lower = _mm512_or_si512(bytes, _mm512_set1_epi8(0x20));
        let underscore = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'_' as i8));
        let run = within(lower, b'a', b'z') | within(bytes, b'0', b'9') | underscore;
        let blank = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b' ' as i8));
        let space = within(bytes, 9, 13) | blank;
        Some((run, !(run | space)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn classify_avx2(block: &[u8; 64]) -> Option<(u64, u64)> {
        let mut masks = [(0_u64, 0_u64); 2];
        for (half, (run, space)) in masks.iter_mut().enumerate() {
            // SAFETY: 32 bytes are read from each half of a block of 64.
            let bytes = unsafe { _mm256_loadu_si256(block.as_ptr().add(32 * half).cast()) };
            if _mm256_movemask_epi8(bytes) != 0 {
                return None;
            }
            let within = |bytes, first: u8, last: u8| {
                let from_first = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first as i8));
                let most = _mm256_set1_epi8((last - first) as i8);
                _mm256_cmpeq_epi8(_mm256_min_epu8(from_first, most), from_first)
            };
            let bits = |found| u64::from(_mm256_movemask_epi8(found) as u32) << (32 * half);
            let lower = _mm256_or_si256(bytes, _mm256_set1_epi8(0x20));
            let underscore = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'_' as i8));
            let alphanumeric =
                _mm256_or_si256(within(lower, b'a', b'z'), within(bytes, b'0', b'9'));
            let blank = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b' ' as i8));
            *run = bits(_mm256_or_si256(alphanumeric, underscore));
            *space = bits(_mm256_or_si256(within(bytes, 9, 13), blank));
        }
        let run = masks[0].0 | masks[1].0;
        let space = masks[0].1 | masks[1].1;
        Some((run, !(run | space)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Vec<&str> {
        split(text)
            .unwrap()
            .words
            .iter()
            .map(|w| w.of(text))
            .collect()
    }

    #[test]
    fn words_of_every_kind() {
        assert_eq!(
            list("It's a_b 3.5!"),
            ["It", "'", "s", "a_b", "3", ".", "5", "!"]
        );
        assert_eq!(list("cafe\u{301} naïve"), ["cafe\u{301}", "naïve"]);
        assert_eq!(
            list("漢字かなカナabc"),
            ["漢", "字", "か", "な", "カ", "ナ", "abc"]
        );
        assert_eq!(list("한국어 👍🏽"), ["한국어", "👍", "🏽"]);
        assert_eq!(list(" \t\u{3000}\n"), Vec::<&str>::new());
        assert_eq!(list(""), Vec::<&str>::new());
    }

    #[test]
    fn ascii_table_agrees_with_the_unicode_one() {
        for byte in 0..128_u8 {
            assert_eq!(ASCII[byte as usize], CLASSES.of(byte as char), "{byte}");
        }
    }

    proptest! {
        #[test]
        fn every_kernel_splits_as_the_plain_way_does(
            parts in prop::collection::vec(
                prop_oneof![crate::testing::text(), "[a-zA-Z0-9_ ,.\\n-]{0,300}"], 0..6,
            )
        ) {
            let text = parts.concat();
            let plain = split_with(&text, Kernel::Portable).unwrap();
            for kernel in Kernel::available() {
                let found = split_with(&text, kernel).unwrap();
                prop_assert_eq!(&found.words, &plain.words, "{:?}", kernel);
                prop_assert_eq!(found.chars, plain.chars);
            }
        }

        #[test]
        fn words_are_in_order_and_leave_only_white_space(text in crate::testing::text()) {
            let words = split(&text).unwrap();
            prop_assert_eq!(words.chars as usize, text.chars().count());
            let mut at = 0;
            for w in &words.words {
                prop_assert!(text[at..w.start as usize].chars().all(char::is_whitespace));
                prop_assert_eq!(w.char_start as usize, text[..w.start as usize].chars().count());
                prop_assert_eq!(w.char_end as usize, text[..w.end as usize].chars().count());
                prop_assert!(w.start < w.end && !w.of(&text).contains(char::is_whitespace));
                at = w.end as usize;
            }
            prop_assert!(text[at..].chars().all(char::is_whitespace));
        }
    }
}
