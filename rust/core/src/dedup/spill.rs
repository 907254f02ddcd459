//! What is too large for memory: records in a temporary file that has no name, so that nothing of it is
//! left however the process ends. Its folder is that of `TMPDIR`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use arrow_buffer::ToByteSlice;

use crate::Result;

/// Bytes that are written at once to a file that is in use anyway.
const WRITE: usize = 1 << 20;

/// A temporary file that is made when the first byte goes there.
#[derive(Debug, Default)]
struct Spilled {
    file: Option<File>,
    len: u64,
}

impl Spilled {
    /// Appends, and says where.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let at = self.len;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(at)
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.seek(SeekFrom::Start(at))?;
        Ok(file.read_exact(bytes)?)
    }
}

/// Records of any length, appended one after the other and read in any order. Memory: eight bytes a
/// record, and what has not been written yet.
#[derive(Debug)]
pub struct Records {
    /// Where each record begins, and after the last the end.
    starts: Vec<u64>,
    /// The last bytes; those before are in the file.
    tail: Vec<u8>,
    file: Spilled,
    budget: usize,
}

impl Records {
    /// Keeps up to `budget` bytes in memory.
    pub fn new(budget: usize) -> Self {
        Self {
            starts: vec![0],
            tail: Vec::new(),
            file: Spilled::default(),
            budget,
        }
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of a record.
    pub fn size(&self, record: usize) -> usize {
        (self.starts[record + 1] - self.starts[record]) as usize
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let full = if self.file.len == 0 {
            self.budget
        } else {
            WRITE.min(self.budget)
        };
        if !self.tail.is_empty() && self.tail.len() + bytes.len() > full {
            self.file.append(&self.tail)?;
            self.tail.clear();
            self.tail.shrink_to(WRITE);
        }
        self.tail.extend_from_slice(bytes);
        self.starts.push(self.file.len + self.tail.len() as u64);
        Ok(())
    }

    /// Appends a record to `out`.
    pub fn read(&mut self, record: usize, out: &mut Vec<u8>) -> Result<()> {
        let (start, size) = (self.starts[record], self.size(record));
        if let Some(at) = start.checked_sub(self.file.len) {
            out.extend_from_slice(&self.tail[at as usize..at as usize + size]);
            return Ok(());
        }
        let from = out.len();
        out.resize(from + size, 0);
        self.file.read(start, &mut out[from..])
    }
}

/// An entry of `Grouped`: what it is collected by, in two halves, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    high: u32,
    low: u32,
    pub value: u32,
}

impl Entry {
    pub fn key(&self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

const PARTS: usize = 256;
/// Numbers of four bytes that an entry takes.
const WIDTH: usize = 3;

/// Entries that are collected by key: a part of the keys at a time, parts in the order of their keys.
/// Twelve bytes an entry, in memory up to a budget and in a file beyond.
#[derive(Debug)]
pub struct Grouped {
    parts: Vec<Vec<u32>>,
    /// For each part where its blocks lie in the file, and how many numbers each has.
    blocks: Vec<Vec<(u64, usize)>>,
    shift: u32,
    held: usize,
    file: Spilled,
    budget: usize,
}

impl Grouped {
    /// Holds up to `budget` bytes in memory; no key is greater than `largest`.
    pub fn new(budget: usize, largest: u64) -> Self {
        let bits = u64::BITS - largest.leading_zeros();
        Self {
            parts: vec![Vec::new(); PARTS],
            blocks: vec![Vec::new(); PARTS],
            shift: bits.saturating_sub(PARTS.trailing_zeros()),
            held: 0,
            file: Spilled::default(),
            budget,
        }
    }

    #[inline]
    pub fn push(&mut self, key: u64, value: u32) -> Result<()> {
        let entry = [(key >> 32) as u32, key as u32, value];
        self.parts[(key >> self.shift) as usize % PARTS].extend_from_slice(&entry);
        self.held += size_of::<Entry>();
        if self.held >= self.budget {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        for (part, blocks) in self.parts.iter_mut().zip(&mut self.blocks) {
            if !part.is_empty() {
                let at = self.file.append(part.as_slice().to_byte_slice())?;
                blocks.push((at, part.len()));
                part.clear();
            }
        }
        self.held = 0;
        Ok(())
    }

    /// Takes the entries of each part in turn, in no order.
    pub fn each_part(mut self, mut work: impl FnMut(&mut Vec<Entry>) -> Result<()>) -> Result<()> {
        let mut entries = Vec::new();
        let mut bytes = Vec::new();
        for part in 0..PARTS {
            entries.clear();
            for &(at, numbers) in &self.blocks[part] {
                bytes.resize(numbers * size_of::<u32>(), 0);
                self.file.read(at, &mut bytes)?;
                let (fours, _) = bytes.as_chunks::<{ size_of::<u32>() }>();
                let (threes, _) = fours.as_chunks::<WIDTH>();
                entries.extend(threes.iter().map(|e| entry(e.map(u32::from_ne_bytes))));
            }
            let held = std::mem::take(&mut self.parts[part]);
            entries.extend(held.as_chunks::<WIDTH>().0.iter().map(|&e| entry(e)));
            drop(held);
            work(&mut entries)?;
        }
        Ok(())
    }
}

fn entry([high, low, value]: [u32; WIDTH]) -> Entry {
    Entry { high, low, value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_are_read_as_they_were_pushed(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60),
            budget in 0_usize..400,
        ) {
            let mut kept = Records::new(budget);
            for record in &records {
                kept.push(record).unwrap();
            }
            prop_assert_eq!(kept.len(), records.len());
            for (i, record) in records.iter().enumerate().rev() {
                let mut read = vec![1];
                kept.read(i, &mut read).unwrap();
                prop_assert_eq!(&read[1..], &record[..]);
                prop_assert_eq!(kept.size(i), record.len());
            }
        }

        #[test]
        fn entries_come_back_by_key(
            pushed in prop::collection::vec((0_u64..5000, any::<u32>()), 0..300),
            spread in prop::sample::select(vec![1_u64, 1 << 20, 1 << 51]),
            budget in 0_usize..3000,
        ) {
            let mut grouped = Grouped::new(budget, 5000 * spread);
            for &(key, value) in &pushed {
                grouped.push(key * spread, value).unwrap();
            }
            let mut found = Vec::new();
            grouped.each_part(|part| {
                part.sort_unstable();
                found.extend(part.iter().map(|e| (e.key() / spread, e.value)));
                Ok(())
            }).unwrap();
            let mut expected = pushed;
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
