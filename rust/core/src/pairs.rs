//! Everything that is measured on a pair of texts, for many pairs at once.

use crate::Result;
use crate::batch::{self, Pair, Symbols};
use crate::chars::Characters;
use crate::cpu::Kernel;
use crate::diff::Block;
use crate::interned::{Interned, WordTable};
use crate::levenshtein::{MAX_CELLS, common_ends};
use crate::pair::{self, Compared, Measures};
use crate::stop::Stop;
use crate::work::{Lent, each};

/// Two texts, the rejected one first.
pub type Texts<'t> = (&'t str, &'t str);

/// Pairs whose words one task splits at least.
const LEAST: usize = 8;

/// Measures pairs with one kernel; its buffers are used again from call to call.
pub struct Batch {
    kernel: Kernel,
    scratch: batch::Scratch,
    tables: Lent<WordTable>,
}

impl Batch {
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            scratch: batch::Scratch::default(),
            tables: Lent::default(),
        }
    }

    /// Every measure of each pair, as `pair::measure` gives it.
    pub fn measures(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<Measures>> {
        let compared = self.compare(texts, stop)?;
        let bounds = each(&compared, LEAST, |pair| Ok(Some(pair.character_bound())))?;
        let distances = self.characters(texts, &bounds, stop)?;
        let both = compared.iter().zip(distances);
        Ok(both
            .map(|(pair, distance)| pair.measures(distance))
            .collect())
    }

    /// The edit script of each pair in blocks of characters, as `pair::diff` gives it.
    pub fn diffs(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<Vec<Block>>> {
        let compared = self.compare(texts, stop)?;
        each(&compared, LEAST, |pair| Ok(pair.blocks()))
    }

    /// Levenshtein distances over characters.
    pub fn levenshtein_chars(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<u32>> {
        self.characters(texts, &vec![None; texts.len()], stop)
    }

    /// Levenshtein distances over characters as shares of the longer text, 0 where both are empty.
    pub fn levenshtein_ratios(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<f64>> {
        let distances = self.levenshtein_chars(texts, stop)?;
        let longest = |&(a, b): &Texts| a.chars().count().max(b.chars().count()) as u32;
        let both = distances.into_iter().zip(texts);
        Ok(both
            .map(|(distance, pair)| pair::ratio(distance, longest(pair)))
            .collect())
    }

    /// Levenshtein distances over words.
    pub fn levenshtein_words(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<u32>> {
        let compared = self.split(texts, stop)?;
        let words: Vec<Pair> = compared.iter().map(|pair| words(&pair.ids).1).collect();
        batch::distances(&words, self.kernel, &self.scratch, stop)
    }

    pub fn jaccards(&self, texts: &[Texts], stop: &Stop) -> Result<Vec<f64>> {
        each(texts, LEAST, |&(a, b)| {
            stop.check()?;
            let pair = self
                .tables
                .with(|table| Compared::without_script(a, b, table))?;
            Ok(pair.ids.jaccard())
        })
    }

    fn split<'t>(&self, texts: &[Texts<'t>], stop: &Stop) -> Result<Vec<Compared<'t>>> {
        each(texts, LEAST, |&(a, b)| {
            stop.check()?;
            self.tables
                .with(|table| Compared::without_script(a, b, table))
        })
    }

    /// The pairs with their word scripts.
    fn compare<'t>(&self, texts: &[Texts<'t>], stop: &Stop) -> Result<Vec<Compared<'t>>> {
        let mut compared = self.split(texts, stop)?;
        let (prefixes, words): (Vec<usize>, Vec<Pair>) =
            compared.iter().map(|pair| words(&pair.ids)).unzip();
        let scripts = batch::scripts(&words, self.kernel, &self.scratch, stop)?;
        for ((pair, mut units), prefix) in compared.iter_mut().zip(scripts).zip(prefixes) {
            for unit in &mut units {
                unit.a += prefix as u32;
                unit.b += prefix as u32;
            }
            pair.units = units;
        }
        Ok(compared)
    }

    /// Character distances, each at most its bound where there is one.
    fn characters(
        &self,
        texts: &[Texts],
        bounds: &[Option<usize>],
        stop: &Stop,
    ) -> Result<Vec<u32>> {
        let numbered = each(texts, LEAST, |&(a, b)| {
            stop.check()?;
            let is_large = a.len() as u64 * b.len() as u64 > MAX_CELLS;
            Ok((!is_large).then(|| Characters::new(a, b)).flatten())
        })?;
        let (batched, alone): (Vec<usize>, Vec<usize>) =
            (0..texts.len()).partition(|&i| numbered[i].is_some());
        let pair = |&i: &usize| Some(numbered[i].as_ref()?.pair(bounds[i]));
        let pairs: Vec<Pair> = batched.iter().filter_map(pair).collect();
        let distances = batch::distances(&pairs, self.kernel, &self.scratch, stop)?;
        let others = each(&alone, 1, |&i| {
            let (a, b) = texts[i];
            self.scratch.single.with(|single| match bounds[i] {
                Some(_) => pair::character_distance(a, b, bounds[i], single, stop),
                None => pair::levenshtein_chars(a, b, single, stop),
            })
        })?;
        let mut found = vec![0; texts.len()];
        let done = batched.iter().zip(distances);
        for (&i, distance) in done.chain(alone.iter().zip(others)) {
            found[i] = distance;
        }
        Ok(found)
    }
}

/// The words of a pair for `batch` without their common ends, and how many were cut off the start.
fn words(ids: &Interned) -> (usize, Pair<'_>) {
    let (prefix, suffix) = common_ends(&ids.a, &ids.b);
    let (a, b) = (
        &ids.a[prefix..ids.a.len() - suffix],
        &ids.b[prefix..ids.b.len() - suffix],
    );
    // All words of `b` alone are one.
    let last = ids.distinct_a as u32;
    let pair = Pair {
        a: Symbols::Numbers(a, last),
        b: Symbols::Numbers(b, last),
        kinds: ids.distinct_a + 1,
        bound: a.len().max(b.len()),
    };
    (prefix, pair)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Scratch;
    use crate::testing::text;

    fn texts() -> impl Strategy<Value = Vec<(String, String)>> {
        let long = prop::collection::vec(text(), 0..12).prop_map(|parts| parts.concat());
        let side = prop_oneof![text(), long];
        prop::collection::vec((side.clone(), side), 0..24)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_kernel_gives_what_single_pairs_give(texts in texts()) {
            let texts: Vec<Texts> = texts.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let stop = Stop::new();
            let single = &mut Scratch::default();
            let mut measures = Vec::new();
            let mut diffs = Vec::new();
            for (a, b) in &texts {
                measures.push(pair::measure(a, b, single, &stop).unwrap());
                diffs.push(pair::diff(a, b, single, &stop).unwrap());
            }
            for kernel in Kernel::available() {
                let batch = Batch::new(kernel);
                prop_assert_eq!(&batch.measures(&texts, &stop).unwrap(), &measures, "{:?}", kernel);
                prop_assert_eq!(&batch.diffs(&texts, &stop).unwrap(), &diffs);
                let chars = batch.levenshtein_chars(&texts, &stop).unwrap();
                let words = batch.levenshtein_words(&texts, &stop).unwrap();
                let jaccards = batch.jaccards(&texts, &stop).unwrap();
                for (i, m) in measures.iter().enumerate() {
                    prop_assert_eq!(
                        (chars[i], words[i], jaccards[i]),
                        (m.levenshtein, m.word_edits, m.jaccard)
                    );
                }
            }
        }
    }

    #[test]
    fn pairs_that_no_group_takes() {
        let many: String = (0x4E00..0x6100).filter_map(char::from_u32).collect();
        let turned: String = many.chars().rev().collect();
        let long = "word and another ".repeat(4000);
        let texts = [
            (many.as_str(), turned.as_str()),
            (long.as_str(), many.as_str()),
            ("", long.as_str()),
            ("", ""),
        ];
        let stop = Stop::new();
        for kernel in Kernel::available() {
            let found = Batch::new(kernel).measures(&texts, &stop).unwrap();
            for ((a, b), m) in texts.iter().zip(found) {
                assert_eq!(
                    m,
                    pair::measure(a, b, &mut Scratch::default(), &stop).unwrap()
                );
            }
        }
    }
}
