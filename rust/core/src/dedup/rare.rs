//! Within a crowd: which texts that stayed share shingles with a text that few others have.
//!
//! Thousands of texts of one template share full buckets, of which not all can be looked at. A true copy
//! among them shares what the template does not have: shingles of which only a few texts are known.

use hashbrown::HashMap;

use super::groups::NONE;

/// A shingle of more texts than this is not rare, and from then on nothing is known of it.
const FEW: u32 = 16;
/// What one text of one shingle takes: its share of the map, and the link.
const ENTRY_BYTES: usize = 32;

/// The texts of one shingle: a chain through `Rare::chain`.
#[derive(Debug, Clone, Copy)]
struct Texts {
    last: u32,
    count: u32,
}

pub struct Rare {
    /// By half a hash: whoever meets by chance is only compared in vain.
    shingles: HashMap<u32, Texts>,
    /// The text's place in the order of the visit, and the link before.
    chain: Vec<(u32, u32)>,
    room: usize,
    met: Vec<u32>,
    ranked: Vec<(u32, u32)>,
}

impl Rare {
    /// Holds up to `memory` bytes, and enters no text beyond.
    pub fn new(memory: usize) -> Self {
        Self {
            shingles: HashMap::new(),
            chain: Vec::new(),
            room: memory / ENTRY_BYTES,
            met: Vec::new(),
            ranked: Vec::new(),
        }
    }

    /// Appends those that share rare shingles with `set`, at most `most`: those that share more come first.
    pub fn candidates(&mut self, set: &[u64], most: usize, found: &mut Vec<u32>) {
        self.met.clear();
        for shingle in set {
            let mut at = self
                .shingles
                .get(&(*shingle as u32))
                .map_or(NONE, |t| t.last);
            while at != NONE {
                let (visited, before) = self.chain[at as usize];
                self.met.push(visited);
                at = before;
            }
        }
        self.met.sort_unstable();
        self.ranked.clear();
        let runs = self.met.chunk_by(|a, b| a == b);
        self.ranked
            .extend(runs.map(|run| (NONE - run.len() as u32, run[0])));
        self.ranked.sort_unstable();
        found.extend(self.ranked.iter().take(most).map(|&(_, visited)| visited));
    }

    /// Enters a text that stays.
    pub fn enter(&mut self, visited: u32, set: &[u64]) {
        if self.chain.len().max(self.shingles.len()) + set.len() > self.room {
            return;
        }
        for shingle in set {
            let none = Texts {
                last: NONE,
                count: 0,
            };
            let texts = self.shingles.entry(*shingle as u32).or_insert(none);
            texts.count = texts.count.saturating_add(1);
            if texts.count > FEW {
                texts.last = NONE;
                continue;
            }
            self.chain.push((visited, texts.last));
            texts.last = self.chain.len() as u32 - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rare: &mut Rare, set: &[u64], most: usize) -> Vec<u32> {
        let mut found = Vec::new();
        rare.candidates(set, most, &mut found);
        found
    }

    #[test]
    fn who_shares_more_comes_first_and_what_all_have_counts_for_nothing() {
        let mut rare = Rare::new(1 << 16);
        for text in 0..20 {
            rare.enter(
                text,
                &[1, 2, 100 + u64::from(text), 200 + u64::from(text / 2)],
            );
        }
        assert!(found(&mut rare, &[1, 2], 9).is_empty());
        assert_eq!(found(&mut rare, &[1, 107, 203], 9), [7, 6]);
        assert_eq!(found(&mut rare, &[1, 107, 203], 1), [7]);
    }

    #[test]
    fn beyond_its_room_no_text_is_entered() {
        let mut rare = Rare::new(4 * ENTRY_BYTES);
        rare.enter(0, &[1, 2, 3]);
        rare.enter(1, &[1, 2, 3]);
        assert_eq!(found(&mut rare, &[1, 2, 3], 9), [0]);
    }
}
