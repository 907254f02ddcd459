//! Parquet files as streams of Arrow batches, in memory that does not follow the file's own sizes.
//!
//! Reading (`file`, `read`): a thread decodes ahead; columns of bytes are read as views into their pages
//! and become text or bytes of the file's own types (`cells`) a few megabytes at a time. What cannot be
//! read comes out in its place with the reason. Writing (`write`): row groups bounded in bytes.

mod cells;
mod file;
mod header;
mod inflate;
mod levels;
mod pages;
mod pairs;
mod read;
mod source;
mod write;

pub use cells::MAX_CELL_BYTES;
pub use file::ParquetFile;
pub use pairs::{Layout, Pairs, Step};
pub use read::{Ahead, Batches, Item, Limits, Views, ahead};
pub use write::Writer;

use std::path::Path;

use parquet::errors::ParquetError;

use crate::Error;

/// `error` as people read it, with the file it is about.
fn file_error(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(source) => io_error(path, *source),
            Err(other) => unreadable(path, &other.to_string()),
        },
        other => unreadable(path, &text_of(&other)),
    }
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.to_path_buf(),
        source,
    }
}

fn unreadable(path: &Path, what: &str) -> Error {
    Error::Parquet {
        path: path.to_path_buf(),
        what: what.to_owned(),
    }
}

/// The first line of what the library says, without its own prefix.
fn text_of(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    ["Parquet error: ", "Parquet argument error: ", "External: "]
        .iter()
        .fold(line, |rest, prefix| {
            rest.strip_prefix(prefix).unwrap_or(rest)
        })
        .to_owned()
}
