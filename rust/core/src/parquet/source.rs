//! A file read at positions, and the pages of one row group's columns from it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::column::page::{PageIterator, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

/// A file that several readers share: each reads at positions of its own.
#[derive(Clone)]
pub struct Source {
    file: Arc<File>,
    len: u64,
}

impl Source {
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            len,
        })
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&*self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&*self.file, buffer, offset)
    }

    /// A reader of what follows `offset`.
    pub fn from(&self, offset: u64) -> Tail {
        Tail {
            source: self.clone(),
            offset,
        }
    }
}

pub struct Tail {
    source: Source,
    offset: u64,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Source {
    type T = BufReader<Tail>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        // Page headers are read this way: a few dozen bytes each.
        Ok(BufReader::with_capacity(1 << 9, self.from(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // Before anything is set aside: a broken header may ask for gigabytes.
        if start.saturating_add(length as u64) > self.len {
            return Err(ParquetError::EOF(format!(
                "the file ends before byte {} of it",
                start.saturating_add(length as u64)
            )));
        }
        let mut bytes = vec![0; length];
        self.from(start).read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// One row group of a file, its pages read one at a time.
pub struct Group {
    pub source: Source,
    pub metadata: Arc<ParquetMetaData>,
    pub index: usize,
}

impl RowGroups for Group {
    fn num_rows(&self) -> usize {
        self.metadata.row_group(self.index).num_rows() as usize
    }

    fn column_chunks(&self, leaf: usize) -> Result<Box<dyn PageIterator>> {
        let chunk = self.metadata.row_group(self.index).column(leaf);
        let pages = SerializedPageReader::new(
            Arc::new(self.source.clone()),
            chunk,
            self.num_rows(),
            // Without page locations pages follow each other, which needs no index.
            None,
        )?;
        Ok(Box::new(Once(Some(Box::new(pages)))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::once(self.metadata.row_group(self.index)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// The pages of a single chunk.
struct Once(Option<Box<dyn PageReader>>);

impl Iterator for Once {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl PageIterator for Once {}
