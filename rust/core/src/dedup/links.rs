//! Which groups share a band with another: the buckets of each.

use super::groups::NONE;
use super::spill::{Entry, Grouped, Records};
use crate::stop::Stop;
use crate::{Error, Result};

/// Buckets of at least two groups, and who is in them.
#[derive(Debug)]
pub struct Links {
    /// Groups that share a bucket with another, in order.
    pub groups: Vec<u32>,
    /// For each of these the numbers of its buckets.
    buckets: Records,
    /// For each bucket how many groups are in it.
    pub sizes: Vec<u32>,
    bytes: Vec<u8>,
}

impl Links {
    /// The buckets of the group at `place` in `groups`.
    pub fn buckets(&mut self, place: usize, out: &mut Vec<u32>) -> Result<()> {
        self.bytes.clear();
        self.buckets.read(place, &mut self.bytes)?;
        let (fours, _) = self.bytes.as_chunks::<4>();
        out.clear();
        out.extend(fours.iter().map(|&four| u32::from_le_bytes(four)));
        Ok(())
    }
}

/// Buckets are numbered in the order of their keys, so the numbers hang on the texts alone.
pub fn collect(keys: Grouped, groups: usize, memory: usize, stop: &Stop) -> Result<Links> {
    let mut by_group = Grouped::new(memory / 6, groups as u64);
    let mut sizes = Vec::new();
    let mut seen = Seen::default();
    keys.each_part(|entries| {
        stop.check()?;
        seen.keep_repeated(entries);
        entries.sort_unstable();
        for bucket in entries.chunk_by(|a, b| a.key() == b.key()) {
            if bucket.len() < 2 {
                continue;
            }
            let number = sizes.len() as u32;
            if number == NONE {
                return Err(Error::Setting("too many rows for one run".to_owned()));
            }
            for entry in bucket {
                by_group.push(u64::from(entry.value), number)?;
            }
            sizes.push(bucket.len() as u32);
        }
        Ok(())
    })?;
    let mut links = Links {
        groups: Vec::new(),
        buckets: Records::new(memory / 3),
        sizes,
        bytes: Vec::new(),
    };
    let mut record = Vec::new();
    by_group.each_part(|entries| {
        stop.check()?;
        entries.sort_unstable();
        for group in entries.chunk_by(|a, b| a.key() == b.key()) {
            record.clear();
            for entry in group {
                record.extend_from_slice(&entry.value.to_le_bytes());
            }
            links.groups.push(group[0].key() as u32);
            links.buckets.push(&record)?;
        }
        Ok(())
    })?;
    Ok(links)
}

/// Most keys occur once. Two bits for each of many slots tell them apart without sorting.
#[derive(Debug, Default)]
struct Seen {
    once: Vec<u64>,
    again: Vec<u64>,
}

impl Seen {
    /// Drops entries whose key occurs only once; a few of these may stay.
    fn keep_repeated(&mut self, entries: &mut Vec<Entry>) {
        let slots = (entries.len() * 8).next_power_of_two().max(64);
        for bits in [&mut self.once, &mut self.again] {
            bits.clear();
            bits.resize(slots / 64, 0);
        }
        // The upper bits of a key are the same all over the part.
        let slot = |entry: &Entry| {
            let slot = entry.key() as usize & (slots - 1);
            (slot / 64, 1_u64 << (slot % 64))
        };
        for entry in &*entries {
            let (word, bit) = slot(entry);
            self.again[word] |= self.once[word] & bit;
            self.once[word] |= bit;
        }
        entries.retain(|entry| {
            let (word, bit) = slot(entry);
            self.again[word] & bit != 0
        });
    }
}
