//! Splitting text into words, and giving the words of a pair small numbers.

use hashbrown::{HashMap, hash_map::Entry};

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
    if u32::try_from(text.len()).is_err() {
        return Err(Error::TooLong { bytes: text.len() });
    }
    let bytes = text.as_bytes();
    let classes = &*CLASSES;
    let mut words = Vec::with_capacity(bytes.len() / 4);
    // Start of the run that is open, if one is.
    let mut open: Option<(u32, u32)> = None;
    let (mut at, mut chars) = (0_usize, 0_u32);
    while at < bytes.len() {
        let (class, width) = match ASCII.get(bytes[at] as usize) {
            Some(&class) => (class, 1),
            None => match text[at..].chars().next() {
                Some(c) => (classes.of(c), c.len_utf8()),
                None => break,
            },
        };
        let here = at as u32;
        if class == RUN {
            open.get_or_insert((here, chars));
        } else {
            if let Some((start, char_start)) = open.take() {
                words.push(Word {
                    start,
                    end: here,
                    char_start,
                    char_end: chars,
                });
            }
            if class != SPACE {
                let end = here + width as u32;
                words.push(Word {
                    start: here,
                    end,
                    char_start: chars,
                    char_end: chars + 1,
                });
            }
        }
        at += width;
        chars += 1;
    }
    if let Some((start, char_start)) = open {
        words.push(Word {
            start,
            end: at as u32,
            char_start,
            char_end: chars,
        });
    }
    Ok(Words { words, chars })
}

/// The words of two texts as numbers: equal words have equal numbers, counted from 0 without gaps.
#[derive(Debug)]
pub struct Interned {
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    /// Different words of `a`; their numbers come first.
    pub distinct_a: usize,
    /// Different words of both together.
    pub distinct: usize,
}

impl Interned {
    pub fn new(a_text: &str, a: &Words, b_text: &str, b: &Words) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::with_capacity(a.words.len());
        let mut number = |text, words: &Words| -> Vec<u32> {
            let mut ids = Vec::with_capacity(words.words.len());
            for word in &words.words {
                let next = numbers.len() as u32;
                ids.push(match numbers.entry(word.of(text)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(free) => *free.insert(next),
                });
            }
            ids
        };
        let a_ids = number(a_text, a);
        let distinct_a = a_ids.iter().max().map_or(0, |&last| last as usize + 1);
        let b_ids = number(b_text, b);
        let distinct_b = b_ids.iter().max().map_or(0, |&last| last as usize + 1);
        Self {
            a: a_ids,
            b: b_ids,
            distinct_a,
            distinct: distinct_a.max(distinct_b),
        }
    }

    /// |A ∩ B| / |A ∪ B| over the sets of words, 1 when both are empty.
    pub fn jaccard(&self) -> f64 {
        if self.distinct == 0 {
            return 1.0;
        }
        let mut in_both = vec![false; self.distinct_a];
        let mut shared = 0_u32;
        for &id in &self.b {
            if let Some(seen) = in_both.get_mut(id as usize)
                && !*seen
            {
                *seen = true;
                shared += 1;
            }
        }
        f64::from(shared) / self.distinct as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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

    fn jaccard(a: &str, b: &str) -> f64 {
        Interned::new(a, &split(a).unwrap(), b, &split(b).unwrap()).jaccard()
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

    #[test]
    fn jaccard_of_edges() {
        assert_eq!(jaccard("", " "), 1.0);
        assert_eq!(jaccard("a", ""), 0.0);
        assert_eq!(jaccard("a b a", "b c"), 1.0 / 3.0);
    }

    proptest! {
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

        #[test]
        fn jaccard_equals_sets(a in crate::testing::text(), b in crate::testing::text()) {
            let (x, y): (HashSet<_>, HashSet<_>) =
                (list(&a).into_iter().collect(), list(&b).into_iter().collect());
            let union = x.union(&y).count();
            let expected =
                if union == 0 { 1.0 } else { x.intersection(&y).count() as f64 / union as f64 };
            prop_assert_eq!(jaccard(&a, &b), expected);
        }
    }
}
