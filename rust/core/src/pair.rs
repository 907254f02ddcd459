//! Everything that is measured on one pair of texts: the plain way, which `pairs` is compared with.

use crate::Result;
use crate::diff::{Block, Side, blocks, character_bound};
use crate::interned::{Interned, WordTable};
use crate::kernel::Scratch;
use crate::levenshtein;
use crate::script::{Unit, script};
use crate::stop::Stop;
use crate::words::{Words, split};

/// Parts of the rejected text for which edits are counted.
pub const TENTHS: usize = 10;

/// All measures of a pair; `a` is the rejected text, `b` the chosen one.
#[derive(Debug, Clone, PartialEq)]
pub struct Measures {
    pub jaccard: f64,
    pub levenshtein: u32,
    pub levenshtein_ratio: f64,
    pub word_edits: u32,
    pub word_edit_ratio: f64,
    pub chosen_chars: u32,
    pub rejected_chars: u32,
    pub chosen_words: u32,
    pub rejected_words: u32,
    /// Chosen over rejected characters; none where the rejected text is empty.
    pub length_ratio: Option<f64>,
    pub edit_position: [u32; TENTHS],
    pub identical: bool,
}

/// Two texts with their words and the script between them.
pub(crate) struct Compared<'t> {
    pub a_text: &'t str,
    pub b_text: &'t str,
    pub a: Words,
    pub b: Words,
    pub ids: Interned,
    pub units: Vec<Unit>,
}

impl<'t> Compared<'t> {
    fn new(a: &'t str, b: &'t str, scratch: &mut Scratch, stop: &Stop) -> Result<Self> {
        let mut pair = Self::without_script(a, b, &mut WordTable::default())?;
        pair.units = script(&pair.ids.a, &pair.ids.b, scratch, stop)?;
        Ok(pair)
    }

    pub fn without_script(a_text: &'t str, b_text: &'t str, table: &mut WordTable) -> Result<Self> {
        let (a, b) = (split(a_text)?, split(b_text)?);
        let ids = Interned::new(a_text, &a, b_text, &b, table);
        Ok(Self {
            a_text,
            b_text,
            a,
            b,
            ids,
            units: Vec::new(),
        })
    }

    pub fn blocks(&self) -> Vec<Block> {
        let a = Side {
            text: self.a_text,
            words: &self.a,
        };
        let b = Side {
            text: self.b_text,
            words: &self.b,
        };
        blocks(a, b, &self.units)
    }

    /// An upper bound of the character distance.
    pub fn character_bound(&self) -> usize {
        character_bound(&self.blocks()) as usize
    }

    /// A word's first character decides; an insertion is where the word after it starts.
    fn edit_position(&self) -> [u32; TENTHS] {
        let mut counts = [0; TENTHS];
        let chars = u64::from(self.a.chars);
        let words = &self.a.words;
        // Edits are in order, so the tenths are too.
        let mut tenth = 0;
        for unit in &self.units {
            let start = words
                .get(unit.a as usize)
                .map_or(chars, |w| u64::from(w.char_start));
            while tenth < TENTHS - 1 && start * TENTHS as u64 >= (tenth as u64 + 1) * chars {
                // Into an empty text all edits are at the start.
                if chars == 0 {
                    break;
                }
                tenth += 1;
            }
            counts[tenth] += 1;
        }
        counts
    }

    /// All measures, given the character distance.
    pub fn measures(&self, levenshtein: u32) -> Measures {
        let (rejected_chars, chosen_chars) = (self.a.chars, self.b.chars);
        let (rejected_words, chosen_words) = (self.ids.a.len() as u32, self.ids.b.len() as u32);
        let word_edits = self.units.len() as u32;
        Measures {
            jaccard: self.ids.jaccard(),
            levenshtein,
            levenshtein_ratio: ratio(levenshtein, rejected_chars.max(chosen_chars)),
            word_edits,
            word_edit_ratio: ratio(word_edits, rejected_words.max(chosen_words)),
            chosen_chars,
            rejected_chars,
            chosen_words,
            rejected_words,
            length_ratio: (rejected_chars > 0)
                .then(|| f64::from(chosen_chars) / f64::from(rejected_chars)),
            edit_position: self.edit_position(),
            identical: self.a_text == self.b_text,
        }
    }
}

pub fn measure(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<Measures> {
    let pair = Compared::new(a, b, scratch, stop)?;
    // The script is there already, and a bound makes the distance cheaper.
    let bound = Some(pair.character_bound());
    let levenshtein = character_distance(a, b, bound, scratch, stop)?;
    Ok(pair.measures(levenshtein))
}

/// Share of `longest`, 0 when that is nothing.
pub(crate) fn ratio(distance: u32, longest: u32) -> f64 {
    if longest == 0 {
        0.0
    } else {
        f64::from(distance) / f64::from(longest)
    }
}

/// Levenshtein distance over characters.
pub fn levenshtein_chars(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<u32> {
    // Where the result may be a bound only, it is the same bound that `measure` gives.
    let bound = if a.len() as u64 * b.len() as u64 > levenshtein::MAX_CELLS && a != b {
        Some(Compared::new(a, b, scratch, stop)?.character_bound())
    } else {
        None
    };
    character_distance(a, b, bound, scratch, stop)
}

/// The edit script from `a` to `b` in blocks of characters.
pub fn diff(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<Vec<Block>> {
    Ok(Compared::new(a, b, scratch, stop)?.blocks())
}

/// The unit edits over words that `diff` is made of.
pub fn word_script(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<Vec<Unit>> {
    Ok(Compared::new(a, b, scratch, stop)?.units)
}

pub(crate) fn character_distance(
    a: &str,
    b: &str,
    bound: Option<usize>,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<u32> {
    for text in [a, b] {
        if u32::try_from(text.len()).is_err() {
            return Err(crate::Error::TooLong { bytes: text.len() });
        }
    }
    if a == b {
        return Ok(0);
    }
    let symbols = |text: &str| -> Vec<u32> {
        if text.is_ascii() {
            text.bytes().map(u32::from).collect()
        } else {
            text.chars().map(u32::from).collect()
        }
    };
    levenshtein::distance(&symbols(a), &symbols(b), bound, scratch, stop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diff::Op;
    use crate::testing::text;

    fn run<T>(f: impl FnOnce(&mut Scratch, &Stop) -> Result<T>) -> T {
        f(&mut Scratch::default(), &Stop::new()).unwrap()
    }

    fn part(text: &str, from: u32, to: u32) -> String {
        text.chars()
            .skip(from as usize)
            .take((to - from) as usize)
            .collect()
    }

    fn jaccard(a: &str, b: &str) -> Result<f64> {
        if a == b {
            return Ok(1.0);
        }
        let (x, y) = (split(a)?, split(b)?);
        Ok(Interned::new(a, &x, b, &y, &mut WordTable::default()).jaccard())
    }

    /// Levenshtein distance over words.
    fn levenshtein_words(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<u32> {
        if a == b {
            return Ok(0);
        }
        let (x, y) = (split(a)?, split(b)?);
        let ids = Interned::new(a, &x, b, &y, &mut WordTable::default());
        levenshtein::distance(&ids.a, &ids.b, None, scratch, stop)
    }

    /// Levenshtein distance over characters as a share of the longer text, 0 when both are empty.
    fn levenshtein_ratio(a: &str, b: &str, scratch: &mut Scratch, stop: &Stop) -> Result<f64> {
        let distance = levenshtein_chars(a, b, scratch, stop)?;
        let longest = a.chars().count().max(b.chars().count());
        Ok(ratio(distance, longest as u32))
    }

    /// Short form: `=` equal, `-` deleted, `+` inserted, `~` replaced.
    fn shown(a: &str, b: &str) -> Vec<String> {
        run(|s, stop| diff(a, b, s, stop))
            .iter()
            .map(|x| {
                let (old, new) = (part(a, x.a_start, x.a_end), part(b, x.b_start, x.b_end));
                match x.op {
                    Op::Equal => format!("={old}"),
                    Op::Delete => format!("-{old}"),
                    Op::Insert => format!("+{new}"),
                    Op::Replace => format!("~{old}|{new}"),
                }
            })
            .collect()
    }

    #[test]
    fn blocks_read_well() {
        assert_eq!(shown("", ""), Vec::<String>::new());
        assert_eq!(shown("a b", "a b"), ["=a b"]);
        assert_eq!(shown("", "new words"), ["+new words"]);
        assert_eq!(shown("old words", ""), ["-old words"]);
        assert_eq!(shown("a x b", "a y b"), ["=a ", "~x|y", "= b"]);
        assert_eq!(shown("a b", "a x b"), ["=a ", "+x ", "=b"]);
        assert_eq!(
            shown("one two three four", "one 2 3 four"),
            ["=one ", "~two three|2 3", "= four"]
        );
        assert_eq!(shown("a  b c", "a b d"), ["=a ", "- ", "=b ", "~c|d"]);
        assert_eq!(shown("a\nb", "a b"), ["=a", "~\n| ", "=b"]);
        assert_eq!(shown("漢字 é", "漢子 é"), ["=漢", "~字|子", "= é"]);
    }

    #[test]
    fn edits_fall_into_tenths() {
        let positions = |a: &str, b: &str| run(|s, stop| measure(a, b, s, stop)).edit_position;
        assert_eq!(positions("", "a b"), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(positions("a", "a b"), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(
            positions("aaaa bbbb c", "x bbbb y"),
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
    }

    #[test]
    fn empty_texts() {
        let both = run(|s, stop| measure("", "", s, stop));
        assert_eq!(
            (both.jaccard, both.levenshtein_ratio, both.length_ratio),
            (1.0, 0.0, None)
        );
        assert!(both.identical);
    }

    proptest! {
        #[test]
        fn replaying_the_blocks_gives_b(a in text(), b in text()) {
            let blocks = run(|s, stop| diff(&a, &b, s, stop));
            let (mut x, mut y) = (0, 0);
            let mut replayed = String::new();
            let mut changed_before = false;
            for block in &blocks {
                prop_assert_eq!((block.a_start, block.b_start), (x, y));
                (x, y) = (block.a_end, block.b_end);
                let old = part(&a, block.a_start, block.a_end);
                let new = part(&b, block.b_start, block.b_end);
                match block.op {
                    Op::Equal => prop_assert!(old == new && !old.is_empty()),
                    Op::Delete => prop_assert!(new.is_empty() && !old.is_empty()),
                    Op::Insert => prop_assert!(old.is_empty() && !new.is_empty()),
                    Op::Replace => prop_assert!(!old.is_empty() && !new.is_empty()),
                }
                let changed = block.op != Op::Equal;
                prop_assert!(!(changed && changed_before));
                changed_before = changed;
                replayed.push_str(&if changed { new } else { old });
            }
            prop_assert_eq!((x as usize, y as usize), (a.chars().count(), b.chars().count()));
            prop_assert_eq!(replayed, b);
        }

        #[test]
        fn all_ways_to_a_measure_agree(a in text(), b in text()) {
            let m = run(|s, stop| measure(&a, &b, s, stop));
            let symbols = |t: &str| t.chars().map(u32::from).collect::<Vec<_>>();
            prop_assert_eq!(m.levenshtein, levenshtein::plain(&symbols(&a), &symbols(&b)));
            prop_assert_eq!(m.levenshtein, run(|s, stop| levenshtein_chars(&a, &b, s, stop)));
            prop_assert_eq!(m.word_edits, run(|s, stop| levenshtein_words(&a, &b, s, stop)));
            prop_assert_eq!(m.word_edits as usize, run(|s, stop| word_script(&a, &b, s, stop)).len());
            prop_assert_eq!(m.word_edits, m.edit_position.iter().sum::<u32>());
            prop_assert_eq!(m.levenshtein_ratio, run(|s, stop| levenshtein_ratio(&a, &b, s, stop)));
            prop_assert_eq!(m.jaccard, jaccard(&a, &b).unwrap());
            prop_assert_eq!(m.identical, m.levenshtein == 0);
        }

        #[test]
        fn words_cost_the_same_both_ways(a in text(), b in text(), c in text()) {
            let d = |x: &str, y: &str| run(|s, stop| levenshtein_words(x, y, s, stop));
            prop_assert_eq!(d(&a, &b), d(&b, &a));
            prop_assert!(d(&a, &c) <= d(&a, &b) + d(&b, &c));
        }
    }
}
