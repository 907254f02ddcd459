//! Measures and edit scripts of pairs of texts, over `&str` and over Arrow columns.
//!
//! *Character* is a Unicode code point. *Word* is what `words::split` makes of a text. Distances are
//! Levenshtein distances. Nothing here knows of Python.

pub mod bpe;
pub mod columns;
pub mod diff;
mod error;
pub mod kernel;
pub mod levenshtein;
pub mod measure;
pub mod pair;
pub mod parquet;
pub mod script;
pub mod stop;
pub mod table;
pub mod tally;
#[cfg(test)]
mod testing;
mod unicode;
pub mod words;

pub use error::{Error, Result};
