//! Numbers for the words of a benchmark, in lower case.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Every different word has a number, counted from 0.
#[derive(Debug, Default)]
pub struct Vocabulary {
    hasher: DefaultHashBuilder,
    numbers: HashTable<u32>,
    spelled: Vec<Box<str>>,
}

impl Vocabulary {
    /// The number of `word`, which gets one if it has none.
    pub fn add(&mut self, word: &str, lowered: &mut String) -> u32 {
        let word = lower(word, lowered);
        let (hasher, spelled) = (&self.hasher, &mut self.spelled);
        let hash = hasher.hash_one(word);
        let known = self
            .numbers
            .find(hash, |&n| &*spelled[n as usize] == word)
            .copied();
        known.unwrap_or_else(|| {
            let number = spelled.len() as u32;
            spelled.push(word.into());
            self.numbers
                .insert_unique(hash, number, |&n| hasher.hash_one(&*spelled[n as usize]));
            number
        })
    }

    /// The number of `word`, if the benchmark has it.
    pub fn find(&self, word: &str, lowered: &mut String) -> Option<u32> {
        let word = lower(word, lowered);
        self.numbers
            .find(self.hasher.hash_one(word), |&n| {
                &*self.spelled[n as usize] == word
            })
            .copied()
    }

    pub fn spelled(&self, number: u32) -> &str {
        &self.spelled[number as usize]
    }
}

/// A word in lower case; `room` holds it where it was not.
fn lower<'a>(word: &'a str, room: &'a mut String) -> &'a str {
    if !word.is_ascii() {
        *room = word.to_lowercase();
        return room;
    }
    if !word.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return word;
    }
    room.clear();
    room.push_str(word);
    room.make_ascii_lowercase();
    room
}
