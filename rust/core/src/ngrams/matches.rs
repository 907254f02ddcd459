//! From shared n-grams to matches: what is boilerplate, what share of an item a text holds, and where.

use std::sync::atomic::Ordering;

use hashbrown::HashMap;

use super::{Index, ROWS_AT_ONCE, Scratch};
use crate::Result;
use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::words::split;
use crate::work::{Lent, each};

/// Words of a phrase that are shown at most.
const PHRASE_WORDS: usize = 40;

/// The n-grams that are set aside as boilerplate, and what that leaves of each item.
#[derive(Debug)]
pub struct Aside {
    grams: Vec<bool>,
    /// Different n-grams of each item that are not set aside.
    left: Vec<u32>,
}

impl Aside {
    pub fn count(&self) -> usize {
        self.grams.iter().filter(|&&aside| aside).count()
    }
}

/// A text (row of a column) and an item that it holds enough of.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    pub row: u32,
    pub item: u32,
    /// Different n-grams that both have, and those of the item; 1 and 1 for a short item as a whole.
    pub shared: u32,
    pub total: u32,
    /// The longest stretch of shared n-grams in the text, in characters.
    pub start: u32,
    pub end: u32,
}

/// A run of words whose n-grams were all set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    pub words: String,
    pub items: u32,
    pub rows: u32,
}

impl Index {
    /// Sets aside what stands in more than `items` items or, as `count` saw, in more than `rows` rows.
    pub fn set_aside(&self, items: u32, rows: u32) -> Aside {
        let grams: Vec<bool> = (0..self.grams())
            .map(|gram| {
                self.items_of(gram as u32).len() > items as usize
                    || self.rows[gram].load(Ordering::Relaxed) > rows
            })
            .collect();
        let mut left: Vec<u32> = self.items.iter().map(|item| item.grams).collect();
        for (gram, _) in grams.iter().enumerate().filter(|&(_, &aside)| aside) {
            for &item in self.items_of(gram as u32) {
                left[item as usize] -= 1;
            }
        }
        Aside { grams, left }
    }

    /// What was set aside, in words: at most `most` phrases, those in most rows and items first.
    pub fn phrases(&self, aside: &Aside, most: usize) -> Vec<Phrase> {
        let mut told = vec![false; self.grams()];
        let mut phrases = Vec::new();
        for (gram, &first) in self.grams.iter().enumerate() {
            if !aside.grams[gram] || told[gram] {
                continue;
            }
            // An n-gram stands first where it is new, and those after it often stand next to it.
            let mut last = gram;
            told[gram] = true;
            while last + 1 < self.grams()
                && aside.grams[last + 1]
                && self.grams[last + 1] == self.grams[last] + 1
            {
                last += 1;
                told[last] = true;
            }
            let of = |gram: usize| {
                (
                    self.rows[gram].load(Ordering::Relaxed),
                    self.items_of(gram as u32).len() as u32,
                )
            };
            let (rows, items) = (gram..=last).map(of).max().unwrap_or_default();
            phrases.push((rows, items, first, self.grams[last] + self.n));
        }
        phrases.sort_unstable_by_key(|&(rows, items, first, _)| {
            (std::cmp::Reverse(rows), std::cmp::Reverse(items), first)
        });
        phrases.truncate(most);
        let spell = |(rows, items, first, end): (u32, u32, usize, usize)| {
            let shown = &self.tokens[first..end.min(first + PHRASE_WORDS)];
            let words: Vec<&str> = shown.iter().map(|&w| self.vocabulary.spelled(w)).collect();
            Phrase {
                words: words.join(" "),
                items,
                rows,
            }
        };
        phrases.into_iter().map(spell).collect()
    }

    /// The items of which each text holds at least `share` of the n-grams that are not set aside, and at
    /// least one; short ones that are the text as a whole. In the order of rows, the largest share first.
    pub fn matches(
        &self,
        texts: &TextColumn,
        aside: &Aside,
        share: f64,
        stop: &Stop,
    ) -> Result<Vec<Match>> {
        let numbers: Vec<u32> = (0..texts.len() as u32).collect();
        let scratches = Lent::<Scratch>::default();
        let found = each(&numbers, ROWS_AT_ONCE, |&row| {
            stop.check()?;
            match texts.get(row as usize) {
                Some(text) => {
                    scratches.with(|scratch| self.matches_of(row, text, aside, share, scratch))
                }
                None => Ok(Vec::new()),
            }
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    fn matches_of(
        &self,
        row: u32,
        text: &str,
        aside: &Aside,
        share: f64,
        scratch: &mut Scratch,
    ) -> Result<Vec<Match>> {
        let words = split(text)?;
        let found = self.scan(text, &words, scratch);
        let stretch = |first: usize, last: usize| {
            let ends = words.words.get(first).zip(words.words.get(last));
            ends.map_or((0, 0), |(a, b)| (a.char_start, b.char_end))
        };
        let mut matches = Vec::new();
        if let Some(item) = found.whole {
            let (start, end) = stretch(0, words.words.len().saturating_sub(1));
            matches.push(Match {
                row,
                item,
                shared: 1,
                total: 1,
                start,
                end,
            });
        }
        let mut by_item: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
        for &(at, gram) in found
            .grams
            .iter()
            .filter(|&&(_, gram)| !aside.grams[gram as usize])
        {
            for &item in self.items_of(gram) {
                by_item.entry(item).or_default().push((at, gram));
            }
        }
        for (item, places) in by_item {
            let mut grams: Vec<u32> = places.iter().map(|&(_, gram)| gram).collect();
            grams.sort_unstable();
            grams.dedup();
            let (shared, total) = (grams.len() as u32, aside.left[item as usize]);
            if f64::from(shared) < share * f64::from(total) {
                continue;
            }
            let (first, last) = longest_run(&places);
            let (start, end) = stretch(first, last + self.n - 1);
            matches.push(Match {
                row,
                item,
                shared,
                total,
                start,
                end,
            });
        }
        matches.sort_unstable_by(|a, b| {
            let times = |shared: u32, total: u32| u64::from(shared) * u64::from(total);
            let (left, right) = (times(a.shared, b.total), times(b.shared, a.total));
            (right, a.item).cmp(&(left, b.item))
        });
        Ok(matches)
    }
}

/// First and last position of the longest run of consecutive positions, the first one of several.
fn longest_run(places: &[(u32, u32)]) -> (usize, usize) {
    let (mut best, mut first) = ((0, 0), 0);
    for (i, &(at, _)) in places.iter().enumerate() {
        if i == 0 || at != places[i - 1].0 + 1 {
            first = at;
        }
        if i == 0 || at - first > best.1 - best.0 {
            best = (first, at);
        }
    }
    (best.0 as usize, best.1 as usize)
}
