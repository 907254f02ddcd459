//! Exact and near duplicates of texts, in bounded memory.
//!
//! Rows come in batches (`Dedup::add`). Equal texts (`normal`) are one group from then on, of which the
//! first row in the order of the keep rule speaks for all. Of each group the hashes of its shingles are put
//! aside (`spill`), the text too where it decides the order, and one key for each band of its MinHash
//! (`shingles`, `minhash`, `bands`). `Dedup::finish` collects the groups that share a key (`links`), and
//! visits them in the order of the keep rule (`order`, `visit`): a group goes if the exact Jaccard
//! similarity with one that stays is at least the threshold. A text of nothing but white space is none.
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
mod rare;
pub mod shingles;
mod signatures;
mod sketch;
mod spill;
mod visit;

use arrow_buffer::ToByteSlice;
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
/// Bytes of texts whose shingles are held until they are put aside.
const BYTES_AT_ONCE: usize = 4 << 20;
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
    /// Texts where the order hangs on them.
    texts: Records,
    /// For each group the hashes of its shingles, as often as each occurs.
    shingles: Records,
    keys: Grouped,
}

/// What is worked out for a row on its own.
struct Sketch {
    hash: u128,
    row: Row,
    /// Whether keys and shingles were made: not where the text was known before.
    new: bool,
    /// How many shingles.
    shingles: usize,
}

/// What is worked out for several rows: their keys and shingles one after the other.
#[derive(Default)]
struct Sketches {
    rows: Vec<Option<Sketch>>,
    keys: Vec<u64>,
    shingles: Vec<u64>,
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
        let ordered = settings.keep != Keep::First;
        // What is in memory all the time may take a third of it.
        let share = settings.memory / if ordered { 6 } else { 3 };
        Ok(Self {
            bands,
            sketcher,
            groups: Groups::new(ordered),
            texts: Records::new(share),
            shingles: Records::new(share),
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
        let mut from = 0;
        while from < count {
            let mut to = from;
            let mut bytes = 0;
            while to < count && bytes < BYTES_AT_ONCE {
                bytes += batch.texts.get(to).map_or(0, str::len) + 1;
                to += 1;
            }
            self.add_rows(batch, from, to, stop)?;
            from = to;
        }
        Ok(())
    }

    /// Adds the rows from place `from` of the batch to before place `to`.
    fn add_rows(&mut self, batch: &Batch, from: usize, to: usize, stop: &Stop) -> Result<()> {
        let tasks: Vec<usize> = (from..to).step_by(ROWS_AT_ONCE).collect();
        let sketched: Vec<Sketches> = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, from| {
                let mut found = Sketches::default();
                for i in from..to.min(from + ROWS_AT_ONCE) {
                    stop.check()?;
                    let sketch = self.sketch(batch, i, scratch, &mut found)?;
                    found.rows.push(sketch);
                }
                Ok(found)
            })
            .collect::<Result<_>>()?;
        let per_text = self.bands.map_or(0, |bands| bands.bands);
        let mut i = from;
        for Sketches {
            rows,
            keys,
            shingles,
        } in sketched
        {
            let (mut keys, mut shingles) = (&keys[..], &shingles[..]);
            for sketch in rows {
                let (row, text) = (batch.rows[i], batch.texts.get(i));
                i += 1;
                let (Some(sketch), Some(text)) = (sketch, text) else {
                    continue;
                };
                stop.check()?;
                let (own_keys, other_keys) = keys.split_at(if sketch.new { per_text } else { 0 });
                let (own_shingles, other_shingles) = shingles.split_at(sketch.shingles);
                (keys, shingles) = (other_keys, other_shingles);
                self.enter(row, text, &sketch, own_keys, own_shingles)?;
            }
        }
        Ok(())
    }

    fn sketch(
        &self,
        batch: &Batch,
        i: usize,
        scratch: &mut Scratch,
        found: &mut Sketches,
    ) -> Result<Option<Sketch>> {
        let Some(text) = batch.texts.get(i) else {
            return Ok(None);
        };
        if u32::try_from(text.len()).is_err() {
            return Err(Error::TooLong { bytes: text.len() });
        }
        let Some(hash) = self.sketcher.text(text, scratch) else {
            return Ok(None);
        };
        let new = self.bands.is_some() && self.groups.find(hash).is_none();
        let mut shingles = 0;
        if let (true, Some(bands)) = (new, self.bands) {
            let (minima, hashes) = self.sketcher.minima(scratch);
            bands.keys(minima, &mut found.keys);
            found.shingles.extend_from_slice(hashes);
            shingles = hashes.len();
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
        Ok(Some(Sketch {
            hash,
            row,
            new,
            shingles,
        }))
    }

    fn enter(
        &mut self,
        row: u32,
        text: &str,
        sketch: &Sketch,
        keys: &[u64],
        shingles: &[u64],
    ) -> Result<()> {
        let known = self.groups.find(sketch.hash);
        let group = self
            .groups
            .enter(row, text, sketch.hash, &sketch.row, &mut self.texts)?;
        if known.is_some() {
            return Ok(());
        }
        if self.settings.keep != Keep::First {
            self.texts.push(text.as_bytes())?;
        }
        if self.bands.is_some() {
            self.shingles.push(shingles.to_byte_slice())?;
        }
        for &key in keys {
            self.keys.push(key, group)?;
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
        drop(texts);
        firsts.shrink();
        let mut shingles = self.shingles;
        let mut visit = visit::Visit::new(threshold, &mut shingles, &mut links, memory / 3, most);
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
