//! The visit: each group in turn stays or goes, by its exact similarity to those that have stayed.
//!
//! A group's candidates are those that stayed before it and share a bucket with it. Buckets with few of
//! them come first: a text that many others resemble a little shares full buckets with all of these, and
//! sparse ones only with its true copies. How many candidates are looked at is bounded, so that a million
//! texts of one template take time in proportion; the bound cannot be met below some four thousand
//! different texts, and what it leaves undecided is counted. Where it may be met, those that share rare
//! shingles (`rare`) are looked at too.

use hashbrown::HashMap;

use super::groups::NONE;
use super::links::Links;
use super::outcome::Gone;
use super::rare::Rare;
use super::spill::Records;
use crate::Result;
use crate::stop::Stop;

/// Candidates of a text that are looked at in any case, and what all texts together may have beyond. A text
/// that has still more is compared with the former number: with more of a crowd little is found.
const CANDIDATES: usize = 256;
const CANDIDATES_TOGETHER: usize = 1 << 24;
/// Entries of buckets that are looked at for each candidate that is allowed.
const ENTRIES: usize = 8;

/// How many candidates of a text are looked at where there are `texts` different texts.
pub fn most_candidates(texts: usize) -> usize {
    CANDIDATES + CANDIDATES_TOGETHER / texts.max(1)
}

/// What the visit took, and what it had to leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pairs of texts whose sets were compared.
    pub comparisons: u64,
    /// Texts that stay although not every candidate was looked at.
    pub undecided: u64,
}

/// Those that stayed, of one bucket: a chain through `Visit::chain`.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    last: u32,
    count: u32,
}

/// One that stayed in one bucket.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// Its place in the order of the visit.
    visited: u32,
    before: u32,
}

pub struct Visit<'a> {
    sets: Sets<'a>,
    rare: Rare,
    threshold: f64,
    links: &'a mut Links,
    buckets: Vec<Bucket>,
    chain: Vec<Link>,
    /// For each place in the order the visit that found it as a candidate.
    found_by: Vec<u32>,
    most: usize,
    counts: Counts,
}

impl<'a> Visit<'a> {
    pub fn new(
        threshold: f64,
        shingles: &'a mut Records,
        links: &'a mut Links,
        memory: usize,
        most: usize,
    ) -> Self {
        let empty = Bucket {
            last: NONE,
            count: 0,
        };
        Self {
            sets: Sets::new(shingles, memory),
            rare: Rare::new(memory),
            threshold,
            buckets: vec![empty; links.sizes.len()],
            chain: Vec::new(),
            found_by: vec![NONE; links.groups.len()],
            most,
            links,
            counts: Counts::default(),
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Visits the groups of the links in `order`, and says which go.
    pub fn run(&mut self, order: &[u32], stop: &Stop) -> Result<Vec<Gone>> {
        let mut gone = Vec::new();
        let mut buckets = Vec::new();
        let mut candidates = Vec::new();
        for (visit, &place) in order.iter().enumerate() {
            stop.check()?;
            let group = self.links.groups[place as usize];
            self.links.buckets(place as usize, &mut buckets)?;
            let all = self.candidates(visit as u32, &mut buckets, &mut candidates);
            let group_at = |visited: u32| self.links.groups[order[visited as usize] as usize];
            let mut nearest: Option<(u32, f64)> = None;
            // Only then some of them may be left out.
            let met = buckets
                .iter()
                .map(|&b| self.links.sizes[b as usize] as usize);
            let crowd = met.sum::<usize>() > self.most;
            if crowd || !candidates.is_empty() {
                let set = self.sets.own(group)?;
                if !all {
                    candidates.truncate(CANDIDATES);
                }
                if crowd {
                    let most = self.most.min(CANDIDATES) / 2;
                    let others = candidates.len();
                    self.rare.candidates(&set, most, &mut candidates);
                    if !all {
                        // Those of sparse buckets came first; what is rare is a better sign than full ones.
                        let rare = candidates.len() - others;
                        candidates.drain(others.saturating_sub(rare)..others);
                    }
                }
                // Of those equally near the one visited first.
                candidates.sort_unstable();
                candidates.dedup();
                for &candidate in &candidates {
                    let other = group_at(candidate);
                    let least = nearest.map_or(self.threshold, |(_, best)| best);
                    self.counts.comparisons += 1;
                    if let Some(near) = self.sets.jaccard(&set, other, least)?
                        && nearest.is_none_or(|(_, best)| near > best)
                    {
                        nearest = Some((other, near));
                    }
                    stop.check()?;
                }
                if nearest.is_none() {
                    if crowd {
                        self.rare.enter(visit as u32, &set);
                    }
                    self.sets.keep(group, set);
                }
            }
            match nearest {
                Some((kept, jaccard)) => gone.push(Gone {
                    group,
                    kept,
                    jaccard,
                }),
                None => {
                    self.counts.undecided += u64::from(!all);
                    self.stay(visit as u32, &buckets);
                }
            }
        }
        Ok(gone)
    }

    /// Finds those that stayed and share a bucket; false if there were too many to look at all.
    fn candidates(&mut self, visit: u32, buckets: &mut [u32], found: &mut Vec<u32>) -> bool {
        found.clear();
        buckets.sort_unstable_by_key(|&b| (self.buckets[b as usize].count, b));
        let mut entries = 0;
        let mut all = true;
        for &bucket in &*buckets {
            let Bucket { last, count } = self.buckets[bucket as usize];
            all &= count as usize <= self.most;
            let mut at = last;
            while at != NONE {
                let link = self.chain[at as usize];
                at = link.before;
                entries += 1;
                let finder = &mut self.found_by[link.visited as usize];
                if *finder != visit {
                    *finder = visit;
                    found.push(link.visited);
                }
                if found.len() >= self.most || entries >= self.most * ENTRIES {
                    return false;
                }
            }
        }
        all
    }

    /// Enters one that stays into its buckets. A bucket holds no more than anyone will look at.
    fn stay(&mut self, visit: u32, buckets: &[u32]) {
        for &bucket in buckets {
            let bucket = &mut self.buckets[bucket as usize];
            if bucket.count as usize <= self.most {
                bucket.count += 1;
            }
            if bucket.count as usize <= self.most {
                self.chain.push(Link {
                    visited: visit,
                    before: bucket.last,
                });
                bucket.last = self.chain.len() as u32 - 1;
            }
        }
    }
}

/// The sets of shingles of groups, sorted when needed; those that stay are remembered while there is room.
struct Sets<'a> {
    shingles: &'a mut Records,
    bytes: Vec<u8>,
    /// Two generations: when the young one is full, the old one is forgotten.
    young: HashMap<u32, Box<[u64]>>,
    old: HashMap<u32, Box<[u64]>>,
    held: usize,
    room: usize,
}

/// What an entry of the map takes besides its numbers.
const ENTRY_BYTES: usize = 48;

impl<'a> Sets<'a> {
    fn new(shingles: &'a mut Records, memory: usize) -> Self {
        Self {
            shingles,
            bytes: Vec::new(),
            young: HashMap::new(),
            old: HashMap::new(),
            held: 0,
            room: memory / 2,
        }
    }

    fn own(&mut self, group: u32) -> Result<Box<[u64]>> {
        self.bytes.clear();
        self.shingles.read(group as usize, &mut self.bytes)?;
        let (eights, _) = self.bytes.as_chunks::<8>();
        let mut set: Vec<u64> = eights.iter().map(|&e| u64::from_ne_bytes(e)).collect();
        set.sort_unstable();
        set.dedup();
        Ok(set.into_boxed_slice())
    }

    /// The similarity of a set and that of another group, if it is at least `least`.
    fn jaccard(&mut self, set: &[u64], other: u32, least: f64) -> Result<Option<f64>> {
        if let Some(theirs) = self.young.get(&other) {
            return Ok(jaccard(set, theirs, least));
        }
        let theirs = match self.old.remove(&other) {
            Some(theirs) => theirs,
            None => self.own(other)?,
        };
        let near = jaccard(set, &theirs, least);
        self.keep(other, theirs);
        Ok(near)
    }

    /// Remembers a set.
    fn keep(&mut self, group: u32, set: Box<[u64]>) {
        let bytes = size_of_val(&*set) + ENTRY_BYTES;
        if self.held + bytes > self.room {
            self.old = std::mem::take(&mut self.young);
            self.held = 0;
        }
        self.held += bytes;
        self.young.insert(group, set);
    }
}

/// |a ∩ b| / |a ∪ b| of two sorted sets, neither empty, if it is at least `least`.
fn jaccard(a: &[u64], b: &[u64], least: f64) -> Option<f64> {
    let both = a.len() + b.len();
    // One less than must be shared, so that rounding here cannot matter.
    let needed = ((both as f64 * least / (1.0 + least)) as usize).saturating_sub(1);
    // How many of each may be missing in the other.
    let spare_a = a.len().checked_sub(needed)?;
    let spare_b = b.len().checked_sub(needed)?;
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
        if i - shared > spare_a || j - shared > spare_b {
            return None;
        }
    }
    let near = shared as f64 / (both - shared) as f64;
    (near >= least).then_some(near)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn jaccard_equals_sets(
            a in prop::collection::btree_set(0_u64..40, 1..40),
            b in prop::collection::btree_set(0_u64..40, 1..40),
            least in 0.1_f64..1.0,
        ) {
            let list = |s: &BTreeSet<u64>| s.iter().copied().collect::<Vec<_>>();
            let exact = a.intersection(&b).count() as f64 / a.union(&b).count() as f64;
            let expected = (exact >= least).then_some(exact);
            prop_assert_eq!(jaccard(&list(&a), &list(&b), least), expected);
            prop_assert_eq!(jaccard(&list(&a), &list(&b), exact.max(0.1)), (exact >= 0.1).then_some(exact));
        }
    }
}
