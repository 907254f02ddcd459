//! What `stats` says of pairs, summed up from their measures.

use std::collections::HashMap;

use crate::measure::{Distribution, EXACT, Past};
use crate::pair::{Measures, TENTHS};

/// An edit ratio up to this is nearly no edit.
const NEAR_IDENTICAL: f64 = 0.02;

/// What is worked out from the kept numbers of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Jaccard,
    Levenshtein,
    LevenshteinRatio,
    WordEdits,
    WordEditRatio,
    ChosenChars,
    RejectedChars,
    LengthRatio,
}

impl Measure {
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Jaccard, "jaccard"),
        (Self::Levenshtein, "levenshtein"),
        (Self::LevenshteinRatio, "levenshtein_ratio"),
        (Self::WordEdits, "word_edits"),
        (Self::WordEditRatio, "word_edit_ratio"),
        (Self::ChosenChars, "chosen_chars"),
        (Self::RejectedChars, "rejected_chars"),
        (Self::LengthRatio, "length_ratio"),
    ];

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, n)| *n == name);
        found.map(|&(measure, _)| measure)
    }

    /// Whether it counts something.
    pub fn whole(self) -> bool {
        matches!(
            self,
            Self::Levenshtein | Self::WordEdits | Self::ChosenChars | Self::RejectedChars
        )
    }
}

/// The numbers of a pair that all its measures follow from. Packed: a million of them are kept.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
struct Kept {
    jaccard: f64,
    levenshtein: u32,
    word_edits: u32,
    most_words: u32,
    chosen_chars: u32,
    rejected_chars: u32,
}

impl Kept {
    fn get(&self, measure: Measure) -> Option<f64> {
        let share = |part: u32, whole: u32| match whole {
            0 => 0.0,
            _ => f64::from(part) / f64::from(whole),
        };
        Some(match measure {
            Measure::Jaccard => self.jaccard,
            Measure::Levenshtein => self.levenshtein.into(),
            Measure::LevenshteinRatio => {
                share(self.levenshtein, self.chosen_chars.max(self.rejected_chars))
            }
            Measure::WordEdits => self.word_edits.into(),
            Measure::WordEditRatio => share(self.word_edits, self.most_words),
            Measure::ChosenChars => self.chosen_chars.into(),
            Measure::RejectedChars => self.rejected_chars.into(),
            Measure::LengthRatio if self.rejected_chars == 0 => return None,
            Measure::LengthRatio => share(self.chosen_chars, self.rejected_chars),
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub pairs: u64,
    pub chosen_longer: u64,
    pub identical: u64,
    pub near_identical: u64,
    pub edit_position: [u64; TENTHS],
}

/// Pairs summed up, in memory that stops growing at `EXACT` of them.
#[derive(Debug)]
pub struct Tally {
    exact: usize,
    kept: Vec<Kept>,
    past: [Past; Measure::ALL.len()],
    pub counts: Counts,
    pub flags: Names,
    pub methods: Names,
    pub usage: Usage,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new(EXACT)
    }
}

impl Tally {
    /// With `exact` pairs kept as they are; `EXACT` but in tests.
    pub fn new(exact: usize) -> Self {
        Self {
            exact: exact.max(1),
            kept: Vec::new(),
            past: Default::default(),
            counts: Counts::default(),
            flags: Names::default(),
            methods: Names::default(),
            usage: Usage::default(),
        }
    }

    /// Adds what `table::measures` gave; rows without measures are left out.
    pub fn add(&mut self, measures: &[Option<Measures>]) {
        for m in measures.iter().flatten() {
            let kept = Kept {
                jaccard: m.jaccard,
                levenshtein: m.levenshtein,
                word_edits: m.word_edits,
                most_words: m.chosen_words.max(m.rejected_words),
                chosen_chars: m.chosen_chars,
                rejected_chars: m.rejected_chars,
            };
            self.add_one(kept, &m.edit_position);
        }
    }

    fn add_one(&mut self, kept: Kept, tenths: &[u32; TENTHS]) {
        if self.kept.len() == self.exact {
            self.collapse();
        }
        let counts = &mut self.counts;
        counts.pairs += 1;
        counts.chosen_longer += u64::from(kept.chosen_chars > kept.rejected_chars);
        if kept.levenshtein == 0 {
            counts.identical += 1;
        } else if kept
            .get(Measure::LevenshteinRatio)
            .is_some_and(|ratio| ratio <= NEAR_IDENTICAL)
        {
            counts.near_identical += 1;
        }
        for (total, &edits) in counts.edit_position.iter_mut().zip(tenths) {
            *total += u64::from(edits);
        }
        self.kept.push(kept);
    }

    fn values(&self, measure: Measure) -> Vec<f64> {
        self.kept.iter().filter_map(|k| k.get(measure)).collect()
    }

    fn collapse(&mut self) {
        for (measure, _) in Measure::ALL {
            let values = self.values(measure);
            self.past[measure as usize].collapse(values, measure.whole());
        }
        self.kept.clear();
    }

    pub fn distribution(&self, measure: Measure) -> Distribution {
        self.past[measure as usize].with(self.values(measure), measure.whole())
    }
}

/// How often each name was seen, in the order of the first sight.
#[derive(Debug, Default)]
pub struct Names {
    index: HashMap<String, usize>,
    pub counted: Vec<(String, u64)>,
}

impl Names {
    pub fn add(&mut self, name: &str) {
        if let Some(&at) = self.index.get(name) {
            self.counted[at].1 += 1;
        } else {
            self.index.insert(name.to_owned(), self.counted.len());
            self.counted.push((name.to_owned(), 1));
        }
    }
}

/// Sums over the pairs that say what they cost; none where no pair does.
#[derive(Debug, Default)]
pub struct Usage {
    pub tokens_in: Option<f64>,
    pub tokens_out: Option<f64>,
    pub cost_usd: Option<f64>,
}

/// No count of tokens and no price is larger; a few of these still add up to a number.
const MOST: f64 = (1_u64 << 60) as f64;

impl Usage {
    pub fn add(&mut self, part: &str, value: f64) {
        let sum = match part {
            "tokens_in" => &mut self.tokens_in,
            "tokens_out" => &mut self.tokens_out,
            "cost_usd" => &mut self.cost_usd,
            _ => return,
        };
        if value.abs() < MOST {
            *sum = Some(sum.unwrap_or(0.0) + value);
        }
    }
}
