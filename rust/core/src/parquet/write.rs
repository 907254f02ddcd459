//! Writing Parquet: zstd, page indexes, and row groups bounded in bytes.

use std::fs::File;
use std::io::BufWriter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::{file_error, io_error, unreadable};
use crate::Result;

/// What an open row group may hold in memory before it goes to the disk: its compressed pages and what
/// is not yet one.
const GROUP_BYTES: usize = 16 << 20;
/// What is handed over at a time, between two looks at the memory, which is also the least that a page
/// takes.
const ROWS_AT_ONCE: usize = 1024;
const BYTES_AT_ONCE: usize = 1 << 20;

/// Writes batches of one schema to a file. Without `finish` the file is no Parquet file.
pub struct Writer {
    path: PathBuf,
    inner: ArrowWriter<BufWriter<File>>,
}

impl Writer {
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let file = File::create(path).map_err(|error| io_error(path, error))?;
        // Readers other than Arrow's look for these among the file's own keys.
        let mut keys: Vec<_> = schema.metadata().iter().collect();
        keys.sort();
        let keys = keys
            .into_iter()
            .map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(keys.collect()))
            .build();
        let inner = caught(path, || {
            ArrowWriter::try_new(BufWriter::new(file), schema, Some(properties))
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            inner,
        })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let bytes: usize = batch.columns().iter().map(bytes_of).sum();
        let each = (bytes / batch.num_rows().max(1)).max(1);
        let most = (BYTES_AT_ONCE / each).clamp(1, ROWS_AT_ONCE);
        for start in (0..batch.num_rows()).step_by(most) {
            let rows = most.min(batch.num_rows() - start);
            let Self { path, inner } = self;
            caught(path, || part(inner, &batch.slice(start, rows)))?;
        }
        Ok(())
    }

    /// Writes what is left and the footer.
    pub fn finish(self) -> Result<()> {
        let Self { path, inner } = self;
        let file = caught(&path, || inner.into_inner())?;
        let flushed = file.into_inner().map_err(|error| error.into_error());
        flushed.map(drop).map_err(|error| io_error(&path, error))
    }
}

/// What the rows of a column take, whatever it is a slice of.
fn bytes_of(column: &ArrayRef) -> usize {
    let whole = |_| column.get_array_memory_size();
    column
        .to_data()
        .get_slice_memory_size()
        .unwrap_or_else(whole)
}

fn part(inner: &mut ArrowWriter<BufWriter<File>>, batch: &RecordBatch) -> ParquetResult<()> {
    inner.write(batch)?;
    if inner.memory_size() >= GROUP_BYTES {
        inner.flush()?;
    }
    Ok(())
}

/// The library panics at some types that it does not know: an error like any other here.
fn caught<T>(path: &Path, write: impl FnOnce() -> ParquetResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(write)) {
        Ok(done) => done.map_err(|error| file_error(path, error)),
        Err(_) => Err(unreadable(
            path,
            "Parquet has no place for a type of its columns",
        )),
    }
}
