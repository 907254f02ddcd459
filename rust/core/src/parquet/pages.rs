//! Pages of any size in pieces of about a megabyte.
//!
//! Most writers make pages of a megabyte, DuckDB of a hundred, and a page with one huge cell is as large as
//! that. The library holds a page twice, compressed and not. So a page beyond `LARGE` is decompressed as a
//! stream here and handed on as several small ones; a cell that is longer than any that is read becomes a
//! mark of its length. What cannot be split (values that are encoded as differences, rarer codecs) goes to
//! the library whole.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;

use super::cells::{MAX_CELL_BYTES, mark};
use super::header::{self, Header, Kind};
use super::inflate::stream;
use super::levels::{HIGHEST, Levels, encode};
use super::source::Source;

/// Pages of more bytes than this, decompressed, are split.
pub const LARGE: u64 = 4 << 20;
/// What one piece of a page has, about.
const PIECE_BYTES: usize = 1 << 20;
const PIECE_VALUES: usize = 1 << 16;
/// The Parquet format's number of an encoding of plain values.
const PLAIN: i64 = 0;
/// Of levels in runs.
const RLE: i64 = 3;

/// The headers of a chunk's pages, by the place of each.
pub fn scan(source: &Source, chunk: &ColumnChunkMetaData) -> io::Result<Vec<(u64, Header)>> {
    let (mut offset, length) = chunk.byte_range();
    let end = offset.saturating_add(length);
    let mut found = Vec::new();
    while offset < end {
        let header = header::read(BufReader::with_capacity(1 << 8, source.from(offset)))?;
        found.push((offset, header));
        offset = offset
            .saturating_add(header.len)
            .saturating_add(header.compressed);
    }
    Ok(found)
}

/// A chunk's pages, the large ones in pieces.
pub struct Pages {
    source: Source,
    chunk: ColumnChunkMetaData,
    coming: std::vec::IntoIter<(u64, Header)>,
    split: Option<Split>,
}

impl Pages {
    pub fn new(source: Source, chunk: ColumnChunkMetaData, headers: Vec<(u64, Header)>) -> Self {
        Self {
            source,
            chunk,
            coming: headers.into_iter(),
            split: None,
        }
    }

    /// The page as the library reads it.
    fn whole(&self, offset: u64, header: &Header) -> Result<Option<Page>> {
        let length = i64::try_from(header.len + header.compressed)?;
        let alone = ColumnChunkMetaData::builder(self.chunk.column_descr_ptr())
            .set_compression(self.chunk.compression())
            .set_data_page_offset(i64::try_from(offset)?)
            .set_total_compressed_size(length)
            .build()?;
        SerializedPageReader::new(Arc::new(self.source.clone()), &alone, 0, None)?.get_next_page()
    }

    /// Bytes that each plain value has, 0 where it says itself; none where values cannot be split.
    fn width(&self, header: &Header) -> Option<usize> {
        let descriptor = self.chunk.column_descr();
        let levels = descriptor.max_def_level().max(descriptor.max_rep_level());
        let runs = |level: i64, highest: i16| level == RLE || highest == 0;
        let known = header.kind != Kind::Data
            || (runs(header.definition, descriptor.max_def_level())
                && runs(header.repetition, descriptor.max_rep_level()));
        // Of a dictionary the older name of plain is in use too.
        let plain =
            header.encoding == PLAIN || (header.kind == Kind::Dictionary && header.encoding == 2);
        if !plain || !known || levels > HIGHEST {
            return None;
        }
        match self.chunk.column_type() {
            PhysicalType::BYTE_ARRAY => Some(0),
            PhysicalType::INT32 | PhysicalType::FLOAT => Some(4),
            PhysicalType::INT64 | PhysicalType::DOUBLE => Some(8),
            PhysicalType::INT96 => Some(12),
            PhysicalType::FIXED_LEN_BYTE_ARRAY => usize::try_from(descriptor.type_length())
                .ok()
                .filter(|&n| n > 0),
            PhysicalType::BOOLEAN => None,
        }
    }

    fn open(&self, offset: u64, header: &Header) -> Result<Option<Split>> {
        let Some(width) = self.width(header) else {
            return Ok(None);
        };
        let descriptor = self.chunk.column_descr();
        let mut raw = self
            .source
            .from(offset + header.len)
            .take(header.compressed);
        let mut levels = |bytes: i64| -> Result<Bytes> {
            let mut buffer = Vec::new();
            let bytes = u64::try_from(bytes)?;
            let read = raw.by_ref().take(bytes).read_to_end(&mut buffer)?;
            ended(read as u64 == bytes)?;
            Ok(buffer.into())
        };
        let (mut repetition, mut definition) = (Bytes::new(), Bytes::new());
        if header.kind == Kind::DataV2 {
            repetition = levels(header.repetition)?;
            definition = levels(header.definition)?;
        }
        let values = if header.is_compressed {
            stream(self.chunk.compression(), raw)?
        } else {
            Some(Box::new(raw) as Box<dyn Read + Send>)
        };
        let Some(values) = values else {
            return Ok(None);
        };
        let mut values = BufReader::with_capacity(1 << 16, values);
        let (max_rep, max_def) = (descriptor.max_rep_level(), descriptor.max_def_level());
        if header.kind == Kind::Data {
            let mut prefixed = |highest: i16| -> Result<Bytes> {
                let mut buffer = Vec::new();
                if highest > 0 {
                    let bytes = u64::from(length(&mut values)?);
                    let read = values.by_ref().take(bytes).read_to_end(&mut buffer)?;
                    ended(read as u64 == bytes)?;
                }
                Ok(buffer.into())
            };
            repetition = prefixed(max_rep)?;
            definition = prefixed(max_def)?;
        }
        Ok(Some(Split {
            values,
            width,
            repetition: (max_rep > 0).then(|| Levels::new(repetition, max_rep)),
            definition: (max_def > 0).then(|| Levels::new(definition, max_def)),
            max_rep,
            max_def,
            left: header.values as usize,
        }))
    }
}

fn ended(whole: bool) -> Result<()> {
    match whole {
        true => Ok(()),
        false => Err(ParquetError::EOF("a page ends too early".to_owned())),
    }
}

fn length(values: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    values.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// A page that is read in pieces.
struct Split {
    values: BufReader<Box<dyn Read + Send>>,
    width: usize,
    repetition: Option<Levels>,
    definition: Option<Levels>,
    max_rep: i16,
    max_def: i16,
    left: usize,
}

impl Split {
    /// Appends one value, or a mark in the place of one that is too long.
    fn value(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let bytes = match self.width {
            0 => length(&mut self.values)? as usize,
            width => width,
        };
        if self.width == 0 && bytes > MAX_CELL_BYTES {
            let passed = io::copy(
                &mut self.values.by_ref().take(bytes as u64),
                &mut io::sink(),
            )?;
            ended(passed == bytes as u64)?;
            let mark = mark(bytes);
            out.extend((mark.len() as u32).to_le_bytes());
            out.extend(mark);
            return Ok(());
        }
        if self.width == 0 {
            out.extend((bytes as u32).to_le_bytes());
        }
        let read = self.values.by_ref().take(bytes as u64).read_to_end(out)?;
        ended(read == bytes)
    }

    fn piece(&mut self) -> Result<Page> {
        let (mut reps, mut defs, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut count = 0;
        let next =
            |levels: &mut Option<Levels>, into: &mut Vec<u8>, otherwise: i16| -> Result<i16> {
                let Some(levels) = levels else {
                    return Ok(otherwise);
                };
                let level = levels.next();
                ended(level.is_some())?;
                into.extend(level);
                Ok(level.map_or(otherwise, i16::from))
            };
        while self.left > 0 && count < PIECE_VALUES && values.len() < PIECE_BYTES {
            next(&mut self.repetition, &mut reps, 0)?;
            if next(&mut self.definition, &mut defs, self.max_def)? == self.max_def {
                self.value(&mut values)?;
            }
            self.left -= 1;
            count += 1;
        }
        let mut buf = Vec::with_capacity(values.len() + 64);
        if self.repetition.is_some() {
            encode(&reps, self.max_rep, &mut buf);
        }
        if self.definition.is_some() {
            encode(&defs, self.max_def, &mut buf);
        }
        buf.extend(values);
        Ok(Page::DataPage {
            buf: buf.into(),
            num_values: count as u32,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        })
    }

    fn dictionary(mut self) -> Result<Page> {
        let num_values = self.left as u32;
        let mut buf = Vec::new();
        for _ in 0..num_values {
            self.value(&mut buf)?;
        }
        Ok(Page::DictionaryPage {
            buf: buf.into(),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        })
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        loop {
            if let Some(split) = self.split.as_mut().filter(|split| split.left > 0) {
                return split.piece().map(Some);
            }
            self.split = None;
            let Some((offset, header)) = self.coming.next() else {
                return Ok(None);
            };
            if header.kind == Kind::Other {
                continue;
            }
            if header.uncompressed > LARGE {
                match self.open(offset, &header)? {
                    Some(mut split) if header.kind == Kind::Dictionary => {
                        (split.repetition, split.definition) = (None, None);
                        return split.dictionary().map(Some);
                    }
                    Some(split) => {
                        self.split = Some(split);
                        continue;
                    }
                    None => {}
                }
            }
            return self.whole(offset, &header);
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let split = self.split.as_ref().is_some_and(|split| split.left > 0);
        let coming = self
            .coming
            .as_slice()
            .iter()
            .find(|(_, h)| h.kind != Kind::Other);
        // Where a record ends is not said, since pieces end anywhere.
        Ok((split || coming.is_some()).then(|| PageMetadata {
            num_rows: None,
            num_levels: None,
            is_dict: !split && coming.is_some_and(|(_, h)| h.kind == Kind::Dictionary),
        }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.get_next_page().map(drop)
    }
}
