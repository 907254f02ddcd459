//! Counting tokens of byte-pair encodings: OpenAI's, and those of a `tokenizer.json`.

mod added;
mod cache;
mod json;
mod merge;
mod split;
mod vocabulary;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arrow_array::types::UInt32Type;
use arrow_array::{ArrayRef, PrimitiveArray};

use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::work::each;
use crate::{Error, Result};
use added::Added;
use cache::{Cache, SHORT};
pub use json::{Loaded, load};
use split::Rules;
use vocabulary::Vocabulary;

/// Encodings that are known, by the names that tiktoken gives them.
pub const ENCODINGS: [&str; 2] = ["cl100k_base", "o200k_base"];

/// Bytes of a text between two looks at `Stop`.
const BYTES_AT_ONCE: usize = 1 << 16;

/// Rows that one task takes at least.
const ROWS_AT_ONCE: usize = 32;

/// The patterns that cut a text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Cl100k,
    O200k,
    Gpt2,
    Gpt2DigitsApart,
    Llama3,
    Qwen2,
    Tekken,
}

/// Counts the tokens of texts.
pub struct Tokenizer {
    /// Which counts in a cache are of this one.
    id: u64,
    vocabulary: Vocabulary,
    pattern: Pattern,
    /// Tokens that are cut out of the text before anything else.
    added: Added,
    /// Whether a text is brought into normal form C.
    composed: bool,
}

static CL100K: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let pairs = include_bytes!(concat!(env!("OUT_DIR"), "/cl100k_base.pairs"));
    Arc::new(Tokenizer::of_pairs(pairs, Pattern::Cl100k))
});

static O200K: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let pairs = include_bytes!(concat!(env!("OUT_DIR"), "/o200k_base.pairs"));
    Arc::new(Tokenizer::of_pairs(pairs, Pattern::O200k))
});

/// The tokenizer of an encoding. The first call for each makes its tables, which takes some milliseconds.
pub fn encoding(name: &str) -> Result<Arc<Tokenizer>> {
    match name {
        "cl100k_base" => Ok(Arc::clone(&CL100K)),
        "o200k_base" => Ok(Arc::clone(&O200K)),
        _ => Err(Error::UnknownEncoding {
            name: name.to_owned(),
            known: ENCODINGS.join(", "),
        }),
    }
}

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache::new()) };
}

impl Tokenizer {
    fn new(vocabulary: Vocabulary, pattern: Pattern, added: Added, composed: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            vocabulary,
            pattern,
            added,
            composed,
        }
    }

    /// One of OpenAI's, whose vocabulary the build script wrote.
    fn of_pairs(pairs: &[u8], pattern: Pattern) -> Self {
        let (parts, _) = pairs.as_chunks::<3>();
        let (merges, _) = parts.as_chunks::<2>();
        let part = |[a, b, c]: [u8; 3]| u32::from_le_bytes([a, b, c, 0]);
        let mut vocabulary = Vocabulary::with_room(merges.len());
        for &[left, right] in merges {
            vocabulary.add(part(left), part(right));
        }
        vocabulary.finish(std::iter::empty(), None);
        Self::new(vocabulary, pattern, Added::default(), false)
    }

    /// The number of tokens of a text.
    pub fn count(&self, text: &str, stop: &Stop) -> Result<u32> {
        let count = CACHE.with_borrow_mut(|cache| {
            cache.serve(self.id);
            self.added.count_around(text, self.composed, |text| {
                self.count_text(text, cache, stop)
            })
        })?;
        u32::try_from(count).map_err(|_| Error::TooLong { bytes: text.len() })
    }

    /// The number of tokens of each text, null for null.
    pub fn count_column(&self, texts: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
        let rows: Vec<usize> = (0..texts.len()).collect();
        let counts = each(&rows, ROWS_AT_ONCE, |&row| {
            stop.check()?;
            let text = texts.get(row);
            text.map(|text| self.count(text, stop)).transpose()
        })?;
        Ok(Arc::new(PrimitiveArray::<UInt32Type>::from(counts)))
    }

    fn count_text(&self, text: &str, cache: &mut Cache, stop: &Stop) -> Result<usize> {
        match self.pattern {
            Pattern::Cl100k => self.count_pieces::<split::Cl100k>(text, cache, stop),
            Pattern::O200k => self.count_pieces::<split::O200k>(text, cache, stop),
            Pattern::Gpt2 => self.count_pieces::<split::Gpt2>(text, cache, stop),
            Pattern::Gpt2DigitsApart => {
                self.count_pieces::<split::Gpt2DigitsApart>(text, cache, stop)
            }
            Pattern::Llama3 => self.count_pieces::<split::Llama3>(text, cache, stop),
            Pattern::Qwen2 => self.count_pieces::<split::Qwen2>(text, cache, stop),
            Pattern::Tekken => self.count_pieces::<split::Tekken>(text, cache, stop),
        }
    }

    fn count_pieces<R: Rules>(&self, text: &str, cache: &mut Cache, stop: &Stop) -> Result<usize> {
        let bytes = text.as_bytes();
        let (mut count, mut start, mut check_at) = (0, 0, BYTES_AT_ONCE);
        while start < bytes.len() {
            let end = split::piece_end::<R>(text, start);
            count += self.count_piece(bytes, start, end, cache, stop)?;
            start = end;
            if start >= check_at {
                stop.check()?;
                check_at = start + BYTES_AT_ONCE;
            }
        }
        Ok(count)
    }

    /// The number of tokens of `text[start..end]`, which is not empty.
    #[inline(always)]
    fn count_piece(
        &self,
        text: &[u8],
        start: usize,
        end: usize,
        cache: &mut Cache,
        stop: &Stop,
    ) -> Result<usize> {
        if end - start == 1 && self.vocabulary.missing.is_none() {
            return Ok(1);
        }
        if end - start > SHORT {
            let piece = &text[start..end];
            return self.count_anew(piece, cache::hash(piece), cache, stop);
        }
        let key = cache::key_at(text, start, end);
        let hash = cache::hash_of_key(key);
        if let Some(count) = cache.get(key, hash) {
            return Ok(count as usize);
        }
        let count = self.count_anew(&text[start..end], hash, cache, stop)?;
        cache.put(key, hash, count as u32);
        Ok(count)
    }

    #[inline(never)]
    fn count_anew(&self, piece: &[u8], hash: u64, cache: &mut Cache, stop: &Stop) -> Result<usize> {
        if self.vocabulary.is_token(piece, hash) {
            return Ok(1);
        }
        match &self.vocabulary.missing {
            None => merge::count(&self.vocabulary, piece, &mut cache.scratch, stop),
            Some(missing) => {
                merge::count_without(&self.vocabulary, missing, piece, &mut cache.scratch, stop)
            }
        }
    }
}

#[cfg(test)]
mod tests;
