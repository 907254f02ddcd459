//! Which texts share n-grams of words with the items of a benchmark.
//!
//! The index numbers the benchmark's words (in lower case) and its different n-grams, and knows the items of
//! each. An n-gram of a text is looked up by a hash of its words' numbers and then compared with them, so a
//! hit is never a mere collision. Items of fewer than n words have no n-gram: one of at least half as many
//! words matches a text that is the same as a whole, a shorter one none.

mod matches;
mod vocabulary;

use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashTable;

pub use matches::{Aside, Match, Phrase};
use vocabulary::Vocabulary;

use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::words::{Words, split};
use crate::work::{Lent, each};
use crate::{Error, Result};

/// Rows that one task takes at least.
const ROWS_AT_ONCE: usize = 16;
/// Items after which a stop is looked for.
const ITEMS_AT_ONCE: usize = 64;

/// Words of one item, as a part of all items' words.
#[derive(Debug, Clone, Copy)]
struct Item {
    start: usize,
    words: usize,
    /// Different n-grams.
    grams: u32,
}

/// The n-grams of a benchmark's items.
#[derive(Debug)]
pub struct Index {
    n: usize,
    vocabulary: Vocabulary,
    /// The words of all items, one after the other.
    tokens: Vec<u32>,
    items: Vec<Item>,
    /// Items by all of their words.
    whole: HashTable<u32>,
    /// N-grams by their words; `grams` says where each stands first.
    table: HashTable<u32>,
    grams: Vec<usize>,
    /// The items of each n-gram: `postings[starts[g]..starts[g + 1]]`.
    starts: Vec<usize>,
    postings: Vec<u32>,
    /// Rows that have each n-gram, as `count` saw them.
    rows: Vec<AtomicU32>,
}

/// What one text shares with the benchmark.
#[derive(Debug, Default)]
struct Found {
    /// N-grams in the order of the text: the position of the first word, and the number of the n-gram.
    grams: Vec<(u32, u32)>,
    /// The short item that the text is.
    whole: Option<u32>,
}

#[derive(Debug, Default)]
struct Scratch {
    lowered: String,
    numbers: Vec<u32>,
    known: Vec<bool>,
}

impl Index {
    /// An index of the texts of a column, and for each of them its item; equal texts are one item, and
    /// what has no words is none.
    pub fn new(texts: &TextColumn, n: usize, stop: &Stop) -> Result<(Self, Vec<Option<u32>>)> {
        let mut index = Self {
            n: n.max(1),
            vocabulary: Vocabulary::default(),
            tokens: Vec::new(),
            items: Vec::new(),
            whole: HashTable::new(),
            table: HashTable::new(),
            grams: Vec::new(),
            starts: Vec::new(),
            postings: Vec::new(),
            rows: Vec::new(),
        };
        let mut of_text = Vec::with_capacity(texts.len());
        let mut lowered = String::new();
        for row in 0..texts.len() {
            if row % ITEMS_AT_ONCE == 0 {
                stop.check()?;
            }
            of_text.push(match texts.get(row) {
                Some(text) => index.add_item(text, &mut lowered)?,
                None => None,
            });
        }
        index.add_grams(stop)?;
        Ok((index, of_text))
    }

    fn add_item(&mut self, text: &str, lowered: &mut String) -> Result<Option<u32>> {
        let start = self.tokens.len();
        for word in &split(text)?.words {
            let number = self.vocabulary.add(word.of(text), lowered);
            self.tokens.push(number);
        }
        let words = self.tokens.len() - start;
        if words == 0 {
            return Ok(None);
        }
        let (tokens, items) = (&self.tokens, &self.items);
        let all = &tokens[start..];
        let same = |&item: &u32| words_of(tokens, items[item as usize]) == all;
        if let Some(&known) = self.whole.find(hash(all), same) {
            self.tokens.truncate(start);
            return Ok(Some(known));
        }
        let item = u32::try_from(items.len()).map_err(|_| Error::TooMany { what: "items" })?;
        self.items.push(Item {
            start,
            words,
            grams: 0,
        });
        let (tokens, items) = (&self.tokens, &self.items);
        self.whole
            .insert_unique(hash(&tokens[start..]), item, |&i| {
                hash(words_of(tokens, items[i as usize]))
            });
        Ok(Some(item))
    }

    fn add_grams(&mut self, stop: &Stop) -> Result<()> {
        let n = self.n;
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        let mut last: Vec<u32> = Vec::new();
        for (number, item) in self.items.iter_mut().enumerate() {
            if number % ITEMS_AT_ONCE == 0 {
                stop.check()?;
            }
            let number = number as u32;
            for at in item.start
                ..(item.start + item.words + 1)
                    .saturating_sub(n)
                    .max(item.start)
            {
                let (tokens, grams) = (&self.tokens, &mut self.grams);
                let words = &tokens[at..at + n];
                let key = hash(words);
                let same = |&gram: &u32| {
                    let first = grams[gram as usize];
                    &tokens[first..first + n] == words
                };
                let gram = match self.table.find(key, same).copied() {
                    Some(known) => known,
                    None => {
                        let gram = u32::try_from(grams.len())
                            .map_err(|_| Error::TooMany { what: "n-grams" })?;
                        grams.push(at);
                        last.push(u32::MAX);
                        self.table.insert_unique(key, gram, |&g| {
                            let first = grams[g as usize];
                            hash(&tokens[first..first + n])
                        });
                        gram
                    }
                };
                if last[gram as usize] != number {
                    last[gram as usize] = number;
                    item.grams += 1;
                    pairs.push((gram, number));
                }
            }
        }
        pairs.sort_unstable();
        self.starts = vec![0; self.grams.len() + 1];
        for &(gram, _) in &pairs {
            self.starts[gram as usize + 1] += 1;
        }
        for gram in 0..self.grams.len() {
            self.starts[gram + 1] += self.starts[gram];
        }
        self.postings = pairs.into_iter().map(|(_, item)| item).collect();
        self.rows = self.grams.iter().map(|_| AtomicU32::new(0)).collect();
        Ok(())
    }

    /// Different n-grams of all items.
    pub fn grams(&self) -> usize {
        self.grams.len()
    }

    /// Words of each item.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.items.iter().map(|item| item.words)
    }

    fn items_of(&self, gram: u32) -> &[u32] {
        let gram = gram as usize;
        &self.postings[self.starts[gram]..self.starts[gram + 1]]
    }

    /// Looks a text up; `words` are its own.
    fn scan(&self, text: &str, words: &Words, scratch: &mut Scratch) -> Found {
        let Scratch {
            lowered,
            numbers,
            known,
        } = scratch;
        numbers.clear();
        known.clear();
        for word in &words.words {
            let number = self.vocabulary.find(word.of(text), lowered);
            known.push(number.is_some());
            numbers.push(number.unwrap_or(0));
        }
        let mut found = Found::default();
        let mut run = 0;
        for (end, &known) in known.iter().enumerate() {
            run = if known { run + 1 } else { 0 };
            if run < self.n {
                continue;
            }
            let start = end + 1 - self.n;
            let window = &numbers[start..=end];
            let same = |&gram: &u32| {
                let first = self.grams[gram as usize];
                &self.tokens[first..first + self.n] == window
            };
            if let Some(&gram) = self.table.find(hash(window), same) {
                found.grams.push((start as u32, gram));
            }
        }
        let length = numbers.len();
        if length < self.n && length >= self.n.div_ceil(2) && run == length {
            let same = |&item: &u32| words_of(&self.tokens, self.items[item as usize]) == *numbers;
            found.whole = self.whole.find(hash(numbers), same).copied();
        }
        found
    }

    /// Counts the rows of each n-gram: once a row, in whatever of the columns it stands. Says for each row
    /// whether it shares anything with the benchmark at all.
    pub fn count(&self, columns: &[TextColumn], stop: &Stop) -> Result<Vec<bool>> {
        let rows = columns.first().map_or(0, TextColumn::len);
        for column in columns.iter().skip(1) {
            columns[0].check_same_length(column)?;
        }
        let numbers: Vec<usize> = (0..rows).collect();
        let scratches = Lent::<Scratch>::default();
        each(&numbers, ROWS_AT_ONCE, |&row| {
            stop.check()?;
            let mut grams: Vec<u32> = Vec::new();
            let mut whole = false;
            for text in columns.iter().filter_map(|column| column.get(row)) {
                let words = split(text)?;
                let found = scratches.with(|scratch| self.scan(text, &words, scratch));
                grams.extend(found.grams.iter().map(|&(_, gram)| gram));
                whole |= found.whole.is_some();
            }
            grams.sort_unstable();
            grams.dedup();
            for &gram in &grams {
                self.rows[gram as usize].fetch_add(1, Ordering::Relaxed);
            }
            Ok(whole || !grams.is_empty())
        })
    }
}

fn words_of(tokens: &[u32], item: Item) -> &[u32] {
    &tokens[item.start..item.start + item.words]
}

/// A hash of words' numbers. Equal hashes are always compared, so it need only be quick and even.
fn hash(numbers: &[u32]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = numbers.iter().fold(ODD, |sum, &number| {
        (sum.rotate_left(23) ^ u64::from(number)).wrapping_mul(ODD)
    });
    (folded ^ (folded >> 29)).wrapping_mul(ODD)
}

#[cfg(test)]
mod tests;
