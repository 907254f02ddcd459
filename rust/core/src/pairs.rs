//! Everything that is measured on a pair of texts, for many pairs at once.

use crate::Result;
use crate::batch::{self, Pair, Symbols};
use crate::chars::Characters;
use crate::cpu::Kernel;
use crate::diff::Block;
use crate::group::MAX_KINDS;
use crate::interned::{Dense, WordTable};
use crate::levenshtein::{self, MAX_CELLS, common_ends};
use crate::pair::{self, Compared, Measures};
use crate::script;
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
        let words = Words::new(&compared);
        let mut found = batch::distances(&words.pairs(), self.kernel, &self.scratch, stop)?;
        let alone = each(&words.left_out, 1, |&i| {
            let ids = &compared[i].ids;
            let single = |single: &mut _| levenshtein::distance(&ids.a, &ids.b, None, single, stop);
            self.scratch.single.with(single)
        })?;
        for (&i, distance) in words.left_out.iter().zip(alone) {
            found[i] = distance;
        }
        Ok(found)
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
        let words = Words::new(&compared);
        let scripts = batch::scripts(&words.pairs(), self.kernel, &self.scratch, stop)?;
        let alone = each(&words.left_out, 1, |&i| {
            let ids = &compared[i].ids;
            let single = |single: &mut _| script::script(&ids.a, &ids.b, single, stop);
            self.scratch.single.with(single)
        })?;
        let prefixes = words.prefixes.iter();
        for ((pair, mut units), &prefix) in compared.iter_mut().zip(scripts).zip(prefixes) {
            for unit in &mut units {
                unit.a += prefix;
                unit.b += prefix;
            }
            pair.units = units;
        }
        for (&i, units) in words.left_out.iter().zip(alone) {
            compared[i].units = units;
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

/// The words of pairs as numbers for `batch`, without their common ends.
struct Words {
    numbers: Vec<Dense>,
    /// Words at the start that both sides have.
    prefixes: Vec<u32>,
    /// Pairs with more words in common than `batch` takes; their numbers are empty.
    left_out: Vec<usize>,
}

impl Words {
    fn new(compared: &[Compared]) -> Self {
        let mut words = Self {
            numbers: Vec::with_capacity(compared.len()),
            prefixes: Vec::with_capacity(compared.len()),
            left_out: Vec::new(),
        };
        for (i, pair) in compared.iter().enumerate() {
            let (prefix, suffix) = common_ends(&pair.ids.a, &pair.ids.b);
            words.prefixes.push(prefix as u32);
            let mut dense = pair.ids.dense(MAX_KINDS).unwrap_or_else(|| {
                words.left_out.push(i);
                Dense::default()
            });
            for side in [&mut dense.a, &mut dense.b] {
                side.truncate(side.len().saturating_sub(suffix));
                side.drain(..prefix.min(side.len()));
            }
            words.numbers.push(dense);
        }
        words
    }

    fn pairs(&self) -> Vec<Pair<'_>> {
        let numbers = self.numbers.iter();
        numbers
            .map(|dense| Pair {
                a: Symbols::Numbers(&dense.a),
                b: Symbols::Numbers(&dense.b),
                kinds: dense.kinds,
                bound: dense.a.len().max(dense.b.len()),
            })
            .collect()
    }
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
