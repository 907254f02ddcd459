//! From a text to its minima and to the hashes of its shingles.

use super::minhash::MinHash;
use super::normal::Normal;
use super::shingles::{self, Shingler};
use super::splitmix;
use crate::Result;

/// Shingles and orders under one seed.
#[derive(Debug, Clone)]
pub struct Sketcher {
    shingler: Shingler,
    minhash: MinHash,
}

/// Buffers for one text at a time.
#[derive(Debug, Default)]
pub struct Scratch {
    normal: Normal,
    words: shingles::Scratch,
    hashes: Vec<u64>,
    halves: Vec<u32>,
    minima: Vec<u32>,
}

impl Sketcher {
    pub fn new(shingle: usize, minima: usize, seed: u64) -> Result<Self> {
        let mut state = seed;
        Ok(Self {
            shingler: Shingler::new(shingle, splitmix(&mut state)),
            minhash: MinHash::new(minima, splitmix(&mut state))?,
        })
    }

    /// Takes a text, and gives the hash that equal texts share: none where it has no words.
    pub fn text(&self, text: &str, scratch: &mut Scratch) -> Option<u128> {
        scratch.normal.set(text);
        (!scratch.normal.bytes().is_empty()).then(|| scratch.normal.hash())
    }

    /// The minima of the text taken last, and the hashes of its shingles, as often as each occurs.
    pub fn minima<'s>(&self, scratch: &'s mut Scratch) -> (&'s [u32], &'s [u64]) {
        scratch.hashes.clear();
        self.shingler
            .hashes(&scratch.normal, &mut scratch.words, &mut scratch.hashes);
        self.minhash
            .minima(&scratch.hashes, &mut scratch.halves, &mut scratch.minima);
        (&scratch.minima, &scratch.hashes)
    }
}
