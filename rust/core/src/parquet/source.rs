//! A file read at positions, and the pages of one row group's columns from it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::column::page::{PageIterator, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::header::{Header, Kind};
use super::pages::{LARGE, Pages, scan};

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
    source: Source,
    metadata: Arc<ParquetMetaData>,
    index: usize,
    /// Of the leaves that are read the headers of their pages; none where these are broken, which the
    /// library then says better.
    headers: Vec<Option<Vec<(u64, Header)>>>,
}

impl Group {
    /// `index` among the file's row groups, of which the leaves in `mask` are read.
    pub fn new(
        source: Source,
        metadata: Arc<ParquetMetaData>,
        index: usize,
        mask: &ProjectionMask,
    ) -> Self {
        let chunks = metadata.row_group(index).columns().iter().enumerate();
        let headers = chunks.map(|(leaf, chunk)| {
            mask.leaf_included(leaf)
                .then(|| scan(&source, chunk).ok())?
        });
        Self {
            headers: headers.collect(),
            source,
            metadata,
            index,
        }
    }

    /// About the most bytes that a row has: the mean of the page with the largest values, of each leaf.
    pub fn row_bytes(&self) -> u64 {
        let rows = self.num_rows().max(1) as u64;
        let leaf = |headers: &Vec<(u64, Header)>| {
            let data = || headers.iter().filter(|(_, h)| h.kind != Kind::Dictionary);
            let largest = data()
                .map(|(_, h)| h.uncompressed / u64::from(h.values.max(1)))
                .max();
            let values: u64 = data().map(|(_, h)| u64::from(h.values)).sum();
            // In a list a row has several values.
            largest.unwrap_or(0).saturating_mul(values.div_ceil(rows))
        };
        self.headers.iter().flatten().map(leaf).sum()
    }
}

impl RowGroups for Group {
    fn num_rows(&self) -> usize {
        usize::try_from(self.metadata.row_group(self.index).num_rows()).unwrap_or(0)
    }

    fn column_chunks(&self, leaf: usize) -> Result<Box<dyn PageIterator>> {
        let chunk = self.metadata.row_group(self.index).column(leaf);
        let headers = self.headers.get(leaf).and_then(Option::as_ref);
        let large = headers.filter(|pages| pages.iter().any(|(_, h)| h.uncompressed > LARGE));
        let pages: Box<dyn PageReader> = match large {
            Some(headers) => Box::new(Pages::new(
                self.source.clone(),
                chunk.clone(),
                headers.clone(),
            )),
            // Without page locations pages follow each other, which needs no index.
            None => Box::new(SerializedPageReader::new(
                Arc::new(self.source.clone()),
                chunk,
                self.num_rows(),
                None,
            )?),
        };
        Ok(Box::new(Once(Some(pages))))
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
