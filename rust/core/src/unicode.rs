//! The three classes of characters that the word rule knows, as a two-stage table.

use std::sync::LazyLock;

use hashbrown::HashMap;
use regex_syntax::hir::{Class, HirKind};

/// Neither part of a word nor a word.
pub const SPACE: u8 = 0;
/// Runs of these are one word.
pub const RUN: u8 = 1;
/// A word by itself.
pub const SINGLE: u8 = 2;

const WORD_CHARACTERS: &str = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]";
const UNSPACED_SCRIPTS: &str =
    r"[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}]";
const WHITE_SPACE: &str = r"\p{White_Space}";

const PAGE: usize = 256;
const CODE_POINTS: usize = 0x11_0000;

/// Class of every code point. Equal pages are stored once, so the whole is small enough for a cache.
pub struct Classes {
    pages: Vec<u16>,
    data: Vec<[u8; PAGE]>,
}

pub static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    fn build() -> Self {
        // Later classes win: a Han character is alphabetic, but a word by itself.
        Self::of_patterns(
            SINGLE,
            &[
                (WORD_CHARACTERS, RUN),
                (UNSPACED_SCRIPTS, SINGLE),
                (WHITE_SPACE, SPACE),
            ],
        )
    }

    /// The class of the last pattern that a character is in, or `rest`.
    pub(crate) fn of_patterns(rest: u8, patterns: &[(&str, u8)]) -> Self {
        let mut all = vec![rest; CODE_POINTS];
        for &(pattern, class) in patterns {
            paint(&mut all, pattern, class);
        }
        let mut seen = HashMap::new();
        let mut data = Vec::new();
        let (whole_pages, _) = all.as_chunks::<PAGE>();
        let pages = whole_pages
            .iter()
            .map(|page| {
                *seen.entry(*page).or_insert_with(|| {
                    data.push(*page);
                    (data.len() - 1) as u16
                })
            })
            .collect();
        Self { pages, data }
    }

    #[inline]
    pub fn of(&self, c: char) -> u8 {
        let code = c as usize;
        self.data[self.pages[code / PAGE] as usize][code % PAGE]
    }
}

fn paint(all: &mut [u8], pattern: &str, class: u8) {
    // The patterns are constants of this crate, and tests read all of them.
    let hir = regex_syntax::parse(pattern).expect("a constant pattern");
    let HirKind::Class(Class::Unicode(set)) = hir.kind() else {
        unreachable!("a set of characters")
    };
    for range in set.iter() {
        all[range.start() as usize..=range.end() as usize].fill(class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_properties() {
        let class = |c| CLASSES.of(c);
        for c in [
            'a', 'Z', '0', '_', 'é', 'ß', 'ж', 'ع', '한', '\u{301}', '\u{200d}', '٣', '‿',
        ] {
            assert_eq!(class(c), RUN, "{c:?}");
        }
        for c in [
            '漢', 'ひ', 'カ', 'ก', 'ກ', 'ក', 'က', '々', '.', '-', '²', '€', '👍', '\0', '\u{200b}',
        ] {
            assert_eq!(class(c), SINGLE, "{c:?}");
        }
        for c in [
            ' ', '\t', '\n', '\u{b}', '\u{85}', '\u{a0}', '\u{2003}', '\u{3000}',
        ] {
            assert_eq!(class(c), SPACE, "{c:?}");
        }
    }

    #[test]
    fn white_space_agrees_with_the_standard_library() {
        for c in '\0'..=char::MAX {
            assert_eq!(CLASSES.of(c) == SPACE, c.is_whitespace(), "{c:?}");
        }
    }
}
