//! Everything that is measured on a pair of texts, for many pairs at once.

use crate::Result;
use crate::batch::{self, Pair, Symbols};
use crate::chars::Characters;
use crate::cpu::Kernel;
use crate::diff::Block;
use crate::group::MAX_KINDS;
use crate::interned::{Dense, WordTable};
use crate::levenshtein::{MAX_CELLS, common_ends};
use crate::pair::{self, Compared, Measures};
use crate::script;
use crate::stop::Stop;

/// Two texts, the rejected one first.
pub type Texts<'t> = (&'t str, &'t str);

/// Measures pairs with one kernel; its buffers are used again from call to call.
pub struct Batch {
    kernel: Kernel,
    scratch: batch::Scratch,
    table: WordTable,
}

impl Batch {
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            scratch: batch::Scratch::default(),
            table: WordTable::default(),
        }
    }

    /// Every measure of each pair, as `pair::measure` gives it.
    pub fn measures(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<Measures>> {
        let compared = self.compare(texts, stop)?;
        let bounds: Vec<_> = compared
            .iter()
            .map(|pair| Some(pair.character_bound()))
            .collect();
        let distances = self.characters(texts, &bounds, stop)?;
        let both = compared.iter().zip(distances);
        Ok(both
            .map(|(pair, distance)| pair.measures(distance))
            .collect())
    }

    /// The edit script of each pair in blocks of characters, as `pair::diff` gives it.
    pub fn diffs(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<Vec<Block>>> {
        let compared = self.compare(texts, stop)?;
        Ok(compared.iter().map(Compared::blocks).collect())
    }

    /// Levenshtein distances over characters.
    pub fn levenshtein_chars(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<u32>> {
        self.characters(texts, &vec![None; texts.len()], stop)
    }

    /// Levenshtein distances over characters as shares of the longer text, 0 where both are empty.
    pub fn levenshtein_ratios(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<f64>> {
        let distances = self.levenshtein_chars(texts, stop)?;
        let longest = |&(a, b): &Texts| a.chars().count().max(b.chars().count()) as u32;
        let both = distances.into_iter().zip(texts);
        Ok(both
            .map(|(distance, pair)| pair::ratio(distance, longest(pair)))
            .collect())
    }

    /// Levenshtein distances over words.
    pub fn levenshtein_words(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<u32>> {
        let compared = self.split(texts, stop)?;
        let words = Words::new(&compared);
        let mut found = batch::distances(&words.pairs(), self.kernel, &mut self.scratch, stop)?;
        for &i in &words.left_out {
            let ids = &compared[i].ids;
            let single = &mut self.scratch.single;
            found[i] = crate::levenshtein::distance(&ids.a, &ids.b, None, single, stop)?;
        }
        Ok(found)
    }

    pub fn jaccards(&mut self, texts: &[Texts], stop: &Stop) -> Result<Vec<f64>> {
        let compared = self.split(texts, stop)?;
        Ok(compared.iter().map(|pair| pair.ids.jaccard()).collect())
    }

    fn split<'t>(&mut self, texts: &[Texts<'t>], stop: &Stop) -> Result<Vec<Compared<'t>>> {
        let table = &mut self.table;
        let split = |&(a, b): &Texts<'t>| {
            stop.check()?;
            Compared::without_script(a, b, table)
        };
        texts.iter().map(split).collect()
    }

    /// The pairs with their word scripts.
    fn compare<'t>(&mut self, texts: &[Texts<'t>], stop: &Stop) -> Result<Vec<Compared<'t>>> {
        let mut compared = self.split(texts, stop)?;
        let words = Words::new(&compared);
        let scripts = batch::scripts(&words.pairs(), self.kernel, &mut self.scratch, stop)?;
        for (i, mut units) in scripts.into_iter().enumerate() {
            for unit in &mut units {
                unit.a += words.prefixes[i];
                unit.b += words.prefixes[i];
            }
            compared[i].units = units;
        }
        for i in words.left_out {
            let pair = &mut compared[i];
            let single = &mut self.scratch.single;
            pair.units = script::script(&pair.ids.a, &pair.ids.b, single, stop)?;
        }
        Ok(compared)
    }

    /// Character distances, each at most its bound where there is one.
    fn characters(
        &mut self,
        texts: &[Texts],
        bounds: &[Option<usize>],
        stop: &Stop,
    ) -> Result<Vec<u32>> {
        let mut found = vec![0; texts.len()];
        let mut batched = Vec::new();
        for (i, (&(a, b), &bound)) in texts.iter().zip(bounds).enumerate() {
            stop.check()?;
            let is_large = a.len() as u64 * b.len() as u64 > MAX_CELLS;
            match (!is_large).then(|| Characters::new(a, b)).flatten() {
                Some(characters) => batched.push((i, characters, bound)),
                None if bound.is_some() => {
                    let single = &mut self.scratch.single;
                    found[i] = pair::character_distance(a, b, bound, single, stop)?;
                }
                None => {
                    let single = &mut self.scratch.single;
                    found[i] = pair::levenshtein_chars(a, b, single, stop)?;
                }
            }
        }
        let pairs: Vec<Pair> = batched
            .iter()
            .map(|(_, characters, bound)| characters.pair(*bound))
            .collect();
        let distances = batch::distances(&pairs, self.kernel, &mut self.scratch, stop)?;
        for ((i, ..), distance) in batched.iter().zip(distances) {
            found[*i] = distance;
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
                let mut batch = Batch::new(kernel);
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
