//! Measures and edit scripts of pairs of texts, over `&str` and over Arrow columns.
//!
//! *Character* is a Unicode code point. *Word* is what `words::split` makes of a text. Distances are
//! Levenshtein distances. Nothing here knows of Python.

mod band;
pub mod batch;
pub mod bpe;
mod chars;
pub mod columns;
pub mod cpu;
pub mod dedup;
pub mod diff;
mod error;
mod group;
pub mod interned;
pub mod kernel;
mod lanes;
pub mod levenshtein;
pub mod measure;
pub mod ngrams;
pub mod pair;
pub mod pairs;
pub mod parquet;
pub mod script;
pub mod stop;
pub mod table;
pub mod tally;
#[cfg(test)]
mod testing;
mod unicode;
pub mod words;
pub mod work;

pub use error::{Error, Result};
