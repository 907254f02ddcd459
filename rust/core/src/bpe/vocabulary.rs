//! The tokens of a vocabulary: which two make which, and which pieces are one token as they are.
//!
//! A token below 256 is that byte. The others follow in the order of the merges that make them, so a token
//! is also the rank of its merge. There is one merge for each: byte-pair encoding of a token's own bytes
//! ends with two parts, and wherever in a text the token comes out of a merge, it comes out of these two.

use std::ops::Range;

use hashbrown::HashSet;

use super::cache::hash;

pub const BYTES: u32 = 256;
/// No token.
pub const NONE: u32 = u32::MAX;
/// More tokens than any vocabulary has; three of them fit into 64 bits.
pub const MOST_TOKENS: usize = (1 << TOKEN_BITS) - 1;
const TOKEN_BITS: u32 = 21;
const EMPTY_PAIR: u64 = u64::MAX;
const EMPTY_SLOT: u32 = u32::MAX;

/// Bytes without a token.
#[derive(Clone)]
pub struct Missing {
    pub bytes: HashSet<u8>,
    /// Whether each counts as one token, the unknown one, which merges with nothing; if not, it is left
    /// out as if it were not there.
    pub counted: bool,
}

pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`, in order.
    ends: Vec<u32>,
    /// Open addressing: both parts of a merge and the token that they make.
    pairs: Vec<u64>,
    /// The same for parts that are single bytes, by both bytes.
    byte_pairs: Vec<u32>,
    /// Open addressing: a token that a whole piece may be, below some bits of its hash.
    pieces: Vec<u32>,
    pub missing: Option<Missing>,
}

/// Slots for so many entries: at least half stay empty.
fn slots(entries: usize) -> usize {
    (entries * 2).next_power_of_two().max(2)
}

impl Vocabulary {
    /// The bytes alone, with room for so many merges.
    pub fn with_room(merges: usize) -> Self {
        Self {
            bytes: (0..=u8::MAX).collect(),
            ends: (1..=BYTES).collect(),
            pairs: vec![EMPTY_PAIR; slots(merges)],
            byte_pairs: vec![NONE; 1 << 16],
            pieces: Vec::new(),
            missing: None,
        }
    }

    /// Adds the token that two parts make, which has not been there.
    pub fn add(&mut self, left: u32, right: u32) -> u32 {
        let token = self.ends.len() as u32;
        self.bytes.extend_from_within(self.range(left));
        self.bytes.extend_from_within(self.range(right));
        self.ends.push(self.bytes.len() as u32);
        if left < BYTES && right < BYTES {
            self.byte_pairs[(left << 8 | right) as usize] = token;
        }
        let mut slot = self.pair_slot(left, right);
        while self.pairs[slot] != EMPTY_PAIR {
            slot = (slot + 1) & (self.pairs.len() - 1);
        }
        self.pairs[slot] = pair_key(left, right) << TOKEN_BITS | u64::from(token);
        token
    }

    /// Ends the making, with tokens that no merge makes, which are for whole pieces alone.
    pub fn finish<'a>(
        &mut self,
        unmerged: impl Iterator<Item = &'a [u8]>,
        missing: Option<Missing>,
    ) {
        self.missing = missing;
        for bytes in unmerged {
            self.bytes.extend_from_slice(bytes);
            self.ends.push(self.bytes.len() as u32);
        }
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.pieces = vec![EMPTY_SLOT; slots(self.ends.len())];
        let is_missing = |token| {
            let missing = self.missing.as_ref();
            u8::try_from(token).is_ok_and(|byte| missing.is_some_and(|m| m.bytes.contains(&byte)))
        };
        for token in (0..self.ends.len() as u32).filter(|&token| !is_missing(token)) {
            let (mut slot, tag) = self.piece_slot(hash(self.token(token)));
            while self.pieces[slot] != EMPTY_SLOT {
                slot = (slot + 1) & (self.pieces.len() - 1);
            }
            self.pieces[slot] = tag | token;
        }
    }

    fn range(&self, token: u32) -> Range<usize> {
        let start = match token {
            0 => 0,
            _ => self.ends[token as usize - 1],
        };
        start as usize..self.ends[token as usize] as usize
    }

    /// The bytes of a token.
    pub fn token(&self, token: u32) -> &[u8] {
        &self.bytes[self.range(token)]
    }

    #[inline]
    fn pair_slot(&self, left: u32, right: u32) -> usize {
        let mixed = pair_key(left, right).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as usize & (self.pairs.len() - 1)
    }

    /// The token that two parts make, or `NONE`.
    #[inline]
    pub fn merged(&self, left: u32, right: u32) -> u32 {
        let key = pair_key(left, right);
        let mut slot = self.pair_slot(left, right);
        loop {
            let entry = self.pairs[slot];
            if entry >> TOKEN_BITS == key {
                return entry as u32 & MOST_TOKENS as u32;
            }
            if entry == EMPTY_PAIR {
                return NONE;
            }
            slot = (slot + 1) & (self.pairs.len() - 1);
        }
    }

    /// `merged` for two bytes.
    #[inline]
    pub fn merged_bytes(&self, left: u8, right: u8) -> u32 {
        self.byte_pairs[usize::from(left) << 8 | usize::from(right)]
    }

    /// Where to look for a piece, and what its slot begins with.
    #[inline]
    fn piece_slot(&self, hash: u64) -> (usize, u32) {
        let tag = (hash as u32) << TOKEN_BITS;
        ((hash >> 32) as usize & (self.pieces.len() - 1), tag)
    }

    /// Whether a piece with this hash is one token.
    #[inline]
    pub fn is_token(&self, piece: &[u8], hash: u64) -> bool {
        let (mut slot, tag) = self.piece_slot(hash);
        loop {
            let entry = self.pieces[slot];
            if entry == EMPTY_SLOT {
                return false;
            }
            let token = entry & MOST_TOKENS as u32;
            if entry & !(MOST_TOKENS as u32) == tag && self.token(token) == piece {
                return true;
            }
            slot = (slot + 1) & (self.pieces.len() - 1);
        }
    }
}

#[inline]
fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << TOKEN_BITS | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::cache::key_of;

    #[test]
    fn merges_and_pieces_are_found() {
        let [a, b, c] = [b'a', b'b', b'c'].map(u32::from);
        let mut vocabulary = Vocabulary::with_room(3);
        let ab = vocabulary.add(a, b);
        let [abc, cab] = [vocabulary.add(ab, c), vocabulary.add(c, ab)];
        vocabulary.finish([&b"an unmerged token"[..]].into_iter(), None);
        assert_eq!(vocabulary.merged(a, b), ab);
        assert_eq!(vocabulary.merged_bytes(b'a', b'b'), ab);
        assert_eq!(vocabulary.merged(ab, c), abc);
        assert_eq!(vocabulary.merged(c, ab), cab);
        assert_eq!(vocabulary.merged(abc, cab), NONE);
        assert_eq!(vocabulary.merged_bytes(b'b', b'a'), NONE);
        assert_eq!(vocabulary.token(cab), b"cab");
        let is_token = |piece: &str| vocabulary.is_token(piece.as_bytes(), hash(piece.as_bytes()));
        for piece in ["a", "ab", "abc", "cab", "an unmerged token"] {
            assert!(is_token(piece), "{piece}");
        }
        for piece in ["ba", "abca", "another unmerged token"] {
            assert!(!is_token(piece), "{piece}");
        }
    }

    #[test]
    fn keys_tell_pieces_apart() {
        assert_ne!(key_of(b"a"), key_of(b"a\0"));
        assert_ne!(hash(b"a"), hash(b"a\0"));
    }
}
