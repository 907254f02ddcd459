//! Exact and near duplicates of texts, in bounded memory.
//!
//! Rows come in batches (`Dedup::add`). Equal texts (`normal`) are one group from then on, of which the
//! first row in the order of the keep rule speaks for all. Of each group the text is put aside (`spill`)
//! and one key for each band of its MinHash (`shingles`, `minhash`, `bands`). `Dedup::finish` collects
//! the groups that share a key (`links`), and visits them in the order of the keep rule (`order`,
//! `visit`): a group goes if the exact Jaccard similarity with one that stays is at least the threshold.
//!
//! Memory: about 50 bytes a row with `Keep::First`, 80 with the others, some 10 more for each bucket that a
//! text shares with another, and beyond that what `Settings::memory` says.

pub mod bands;
mod groups;
mod links;
pub mod minhash;
pub mod normal;
mod order;
mod outcome;
pub mod shingles;
mod signatures;
mod sketch;
mod spill;
mod visit;

use rayon::prelude::*;

use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::{Error, Result};

use bands::Bands;
use groups::{Groups, Row};
use sketch::{Scratch, Sketcher};
use spill::{Grouped, Records};

pub use outcome::{Gone, Outcome, Reason};
pub use signatures::signatures;

/// Rows that one task takes.
const ROWS_AT_ONCE: usize = 32;
/// The lowest threshold for which near duplicates can be found.
pub const LOWEST_THRESHOLD: f64 = 0.1;

/// Which row of several stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one that comes first.
    First,
    /// The one with the fewest characters; of several the first one by its text.
    Shortest,
    /// The one with the lowest key that the caller gives; of several the first one by its text.
    Lowest,
}

#[derive(Debug, Clone)]
pub struct Settings {
    /// The least Jaccard similarity of a near duplicate; without it, only equal texts go.
    pub threshold: Option<f64>,
    /// Words of a shingle.
    pub shingle: usize,
    pub keep: Keep,
    pub seed: u64,
    /// Bytes for what grows with the texts, beyond which it goes to a temporary file.
    pub memory: usize,
}

/// Consecutive or later rows with their texts.
pub struct Batch<'a> {
    /// The rows' numbers: ascending, and greater than all before. Rows left out have no text.
    pub rows: &'a [u32],
    /// What is compared. A null is a row without text.
    pub texts: &'a TextColumn,
    /// For `Keep::Lowest` one number a row, not negative.
    pub keys: Option<&'a [f64]>,
    /// What else belongs to a row: it decides between rows of the same text.
    pub rest: &'a [TextColumn],
}

/// What is known of the rows so far.
pub struct Dedup {
    settings: Settings,
    bands: Option<Bands>,
    sketcher: Sketcher,
    groups: Groups,
    texts: Records,
    keys: Grouped,
}

/// What is worked out for a row on its own.
struct Sketch {
    hash: u128,
    row: Row,
    /// Whether the band keys were made: not where the text was known before.
    new: bool,
}

impl Dedup {
    pub fn new(settings: Settings) -> Result<Self> {
        let bands = match settings.threshold {
            Some(t) if (LOWEST_THRESHOLD..=1.0).contains(&t) => Bands::for_threshold(t),
            Some(t) => {
                return Err(Error::Setting(format!(
                    "a threshold of {t}: it must be from {LOWEST_THRESHOLD} to 1"
                )));
            }
            None => None,
        };
        if settings.shingle == 0 {
            return Err(Error::Setting("a shingle has at least one word".to_owned()));
        }
        let sketcher = Sketcher::new(settings.shingle, bands::MINIMA, settings.seed)?;
        Ok(Self {
            bands,
            sketcher,
            groups: Groups::new(settings.keep != Keep::First),
            texts: Records::new(settings.memory / 3),
            // Buffers of parts are up to twice as large as what they hold.
            keys: Grouped::new(settings.memory / 6, u64::MAX),
            settings,
        })
    }

    /// How texts become candidates; none where only equal texts go.
    pub fn bands(&self) -> Option<Bands> {
        self.bands
    }

    pub fn add(&mut self, batch: &Batch, stop: &Stop) -> Result<()> {
        let count = batch.rows.len();
        let lengths = [Some(batch.texts.len()), batch.keys.map(<[f64]>::len)];
        let rest = batch.rest.iter().map(|column| Some(column.len()));
        if lengths
            .into_iter()
            .chain(rest)
            .flatten()
            .any(|n| n != count)
        {
            return Err(Error::Setting(
                "columns of a batch must have the same length".to_owned(),
            ));
        }
        if (self.settings.keep == Keep::Lowest) != batch.keys.is_some() {
            return Err(Error::Setting(
                "keys are for the rule of the lowest key, and needed there".to_owned(),
            ));
        }
        let tasks: Vec<usize> = (0..count).step_by(ROWS_AT_ONCE).collect();
        let sketched: Vec<(Vec<Option<Sketch>>, Vec<u64>)> = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, from| {
                let mut keys = Vec::new();
                let sketches = (from..count.min(from + ROWS_AT_ONCE))
                    .map(|i| {
                        stop.check()?;
                        self.sketch(batch, i, scratch, &mut keys)
                    })
                    .collect::<Result<_>>()?;
                Ok((sketches, keys))
            })
            .collect::<Result<_>>()?;
        let per_text = self.bands.map_or(1, |bands| bands.bands);
        let mut i = 0;
        for (sketches, keys) in sketched {
            let mut keys = keys.chunks_exact(per_text);
            for sketch in sketches {
                let (row, text) = (batch.rows[i], batch.texts.get(i));
                i += 1;
                let (Some(sketch), Some(text)) = (sketch, text) else {
                    continue;
                };
                stop.check()?;
                let keys = if sketch.new { keys.next() } else { None };
                self.enter(row, text, &sketch, keys)?;
            }
        }
        Ok(())
    }

    fn sketch(
        &self,
        batch: &Batch,
        i: usize,
        scratch: &mut Scratch,
        keys: &mut Vec<u64>,
    ) -> Result<Option<Sketch>> {
        let Some(text) = batch.texts.get(i) else {
            return Ok(None);
        };
        if u32::try_from(text.len()).is_err() {
            return Err(Error::TooLong { bytes: text.len() });
        }
        let hash = self.sketcher.text(text, scratch);
        let new = self.bands.is_some() && self.groups.find(hash).is_none();
        if let (true, Some(bands)) = (new, self.bands) {
            bands.keys(self.sketcher.minima(scratch), keys);
        }
        let row = match self.settings.keep {
            Keep::First => Row::default(),
            keep => {
                let key = match (keep, batch.keys) {
                    // Numbers that are not negative are in the order of their bits.
                    (Keep::Lowest, Some(keys)) => keys[i].to_bits(),
                    _ => text.chars().count() as u64,
                };
                let rest = batch.rest.iter().map(|column| column.get(i));
                Row {
                    key,
                    rest: groups::hash_of(rest),
                }
            }
        };
        Ok(Some(Sketch { hash, row, new }))
    }

    fn enter(&mut self, row: u32, text: &str, sketch: &Sketch, keys: Option<&[u64]>) -> Result<()> {
        let known = self.groups.find(sketch.hash);
        let group = self
            .groups
            .enter(row, text, sketch.hash, &sketch.row, &mut self.texts)?;
        if known.is_none() && (self.bands.is_some() || self.settings.keep != Keep::First) {
            self.texts.push(text.as_bytes())?;
        }
        if let (None, Some(keys)) = (known, keys) {
            for &key in keys {
                self.keys.push(key, group)?;
            }
        }
        Ok(())
    }

    /// Says of each row whether it stays. `rows` is the number of all rows, those without text included.
    pub fn finish(self, rows: u32, stop: &Stop) -> Result<Outcome> {
        let most = visit::most_candidates(self.groups.len());
        self.finish_within(rows, most, stop)
    }

    /// As `finish`; a text is compared with at most `most` others.
    fn finish_within(self, rows: u32, most: usize, stop: &Stop) -> Result<Outcome> {
        let mut firsts = self.groups.finish();
        let Some(threshold) = self.settings.threshold else {
            return Ok(Outcome::new(
                firsts,
                rows,
                Vec::new(),
                visit::Counts::default(),
            ));
        };
        let mut texts = self.texts;
        let memory = self.settings.memory;
        let mut links = links::collect(self.keys, firsts.len(), memory, stop)?;
        let order = order::visiting_order(&links.groups, &firsts, &mut texts, memory / 3, stop)?;
        firsts.shrink();
        let mut visit = visit::Visit::new(
            &self.sketcher,
            threshold,
            &firsts,
            &mut texts,
            &mut links,
            memory / 3,
            most,
        );
        let gone = visit.run(&order, stop)?;
        let counts = visit.counts();
        Ok(Outcome::new(firsts, rows, gone, counts))
    }
}

/// The next of a row of well-mixed numbers (SplitMix64).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
