//! Groups of rows with the same normal text. Of each the row is known that comes first in the order of
//! the keep rule.

use std::cmp::Ordering;

use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3Default;

use super::spill::Records;
use crate::{Error, Result};

/// Stands for no group, no row.
pub const NONE: u32 = u32::MAX;

/// What the order of rows hangs on, besides the text and the number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// The keep rule's number: the lowest comes first.
    pub key: u64,
    /// Hash of what else belongs to the row.
    pub rest: u64,
}

/// One hash of several texts.
pub fn hash_of<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> u64 {
    let mut hash = Xxh3Default::new();
    for text in texts {
        let text = text.map_or(&[] as &[u8], str::as_bytes);
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.digest()
}

pub struct Groups {
    table: HashTable<u32>,
    hashes: Vec<u128>,
    firsts: Firsts,
}

/// The first row of each group, and the group of each row.
#[derive(Debug, Default)]
pub struct Firsts {
    pub group_of_row: Vec<u32>,
    pub row: Vec<u32>,
    /// Only where the order is not that of the rows.
    pub order: Option<Vec<Place>>,
}

/// What decides the place of a group in the order.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub row: Row,
    /// Where the first row's text lies.
    pub text: u32,
}

impl Firsts {
    pub fn len(&self) -> usize {
        self.row.len()
    }

    pub fn shrink(&mut self) {
        self.group_of_row.shrink_to_fit();
        self.row.shrink_to_fit();
    }
}

impl Groups {
    pub fn new(ordered: bool) -> Self {
        Self {
            table: HashTable::new(),
            hashes: Vec::new(),
            firsts: Firsts {
                order: ordered.then(Vec::new),
                ..Firsts::default()
            },
        }
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn find(&self, hash: u128) -> Option<u32> {
        self.table
            .find(hash as u64, |&group| self.hashes[group as usize] == hash)
            .copied()
    }

    /// Enters a row and gives its group. A text that was unknown is the next one that the caller appends to
    /// `texts`; one that takes the place of another is appended here.
    pub fn enter(
        &mut self,
        row: u32,
        text: &str,
        hash: u128,
        place: &Row,
        texts: &mut Records,
    ) -> Result<u32> {
        let rows = &mut self.firsts.group_of_row;
        if row == NONE || (row as usize) < rows.len() {
            return Err(Error::Setting(format!(
                "row {row}: rows must come in the order of their numbers, which end at {}",
                NONE - 1
            )));
        }
        rows.resize(row as usize, NONE);
        if let Some(group) = self.find(hash) {
            self.firsts.group_of_row.push(group);
            self.replace(group, row, text, place, texts)?;
            return Ok(group);
        }
        let group = self.hashes.len() as u32;
        self.firsts.group_of_row.push(group);
        self.hashes.push(hash);
        let hashes = &self.hashes;
        self.table
            .insert_unique(hash as u64, group, |&g| hashes[g as usize] as u64);
        self.firsts.row.push(row);
        if let Some(places) = &mut self.firsts.order {
            places.push(Place {
                row: *place,
                text: texts.len() as u32,
            });
        }
        Ok(group)
    }

    /// Lets a row speak for its group if it comes before the one that does.
    fn replace(
        &mut self,
        group: u32,
        row: u32,
        text: &str,
        place: &Row,
        texts: &mut Records,
    ) -> Result<()> {
        let Some(places) = &mut self.firsts.order else {
            return Ok(());
        };
        let speaker = &mut places[group as usize];
        let mut order = place.key.cmp(&speaker.row.key);
        if order == Ordering::Greater {
            return Ok(());
        }
        let mut theirs = Vec::new();
        texts.read(speaker.text as usize, &mut theirs)?;
        let by_text = text.as_bytes().cmp(&theirs);
        order = order.then(by_text).then(place.rest.cmp(&speaker.row.rest));
        if order == Ordering::Less {
            speaker.row = *place;
            self.firsts.row[group as usize] = row;
            if by_text != Ordering::Equal {
                speaker.text = texts.len() as u32;
                texts.push(text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// What is needed from here on.
    pub fn finish(self) -> Firsts {
        self.firsts
    }
}
