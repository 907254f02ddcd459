//! Text columns in any of Arrow's layouts, chunked or not, as rows of `Option<&str>`.

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, GenericStringArray, LargeStringArray, OffsetSizeTrait, StringArray,
    StringViewArray, downcast_integer_array,
};
use arrow_buffer::ArrowNativeType;
use arrow_schema::DataType;

use crate::{Error, Result};

enum Chunk {
    Text(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
    /// For each row its key, or none where key is null.
    Dictionary(Vec<Option<usize>>, Box<Chunk>),
    Null,
}

impl Chunk {
    fn new(column: &str, array: &ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string::<i32>().clone()),
            DataType::LargeUtf8 => Self::Large(array.as_string::<i64>().clone()),
            DataType::Utf8View => Self::View(array.as_string_view().clone()),
            DataType::Null => Self::Null,
            DataType::Dictionary(_, _) => {
                let dictionary = array.as_any_dictionary();
                let values = Self::new(column, dictionary.values())?;
                Self::Dictionary(
                    keys(dictionary.keys(), dictionary.values().len()),
                    Box::new(values),
                )
            }
            other => {
                return Err(Error::NotText {
                    column: column.to_owned(),
                    data_type: other.to_string(),
                });
            }
        })
    }

    /// The first row that cannot be read as text. Producers need not check what they hand over, and what
    /// reads a file often does not: a `&str` must never hold other bytes, nor lie outside of the buffers.
    fn first_fault(&self) -> Option<(usize, Fault)> {
        match self {
            Self::Text(array) => fault_of(array, |row| by_offsets(array, row)),
            Self::Large(array) => fault_of(array, |row| by_offsets(array, row)),
            Self::View(array) => fault_of(array, |row| by_view(array, row)),
            Self::Dictionary(_, values) => values.first_fault(),
            Self::Null => None,
        }
    }

    fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Text(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Dictionary(keys, values) => values.get((*keys.get(row)?)?),
            Self::Null => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NotUtf8,
    Outside,
}

/// The first row that is not null and whose bytes are missing or no UTF-8.
fn fault_of<'a>(
    array: &dyn Array,
    bytes: impl Fn(usize) -> Option<&'a [u8]>,
) -> Option<(usize, Fault)> {
    (0..array.len())
        .filter(|&row| array.is_valid(row))
        .find_map(|row| match bytes(row).map(std::str::from_utf8) {
            Some(Ok(_)) => None,
            Some(Err(_)) => Some((row, Fault::NotUtf8)),
            None => Some((row, Fault::Outside)),
        })
}

/// A row's bytes, none where its offsets do not fit the data.
fn by_offsets<O: OffsetSizeTrait>(array: &GenericStringArray<O>, row: usize) -> Option<&[u8]> {
    let end = |row: usize| array.value_offsets().get(row)?.to_usize();
    array.value_data().get(end(row)?..end(row + 1)?)
}

/// A row's bytes, none where its view does not fit the data. A view is a length and, where that is more
/// than 12, four bytes of prefix, a buffer's index and an offset into it; else the bytes themselves.
fn by_view(array: &StringViewArray, row: usize) -> Option<&[u8]> {
    let word = |view: u128, index: usize| (view >> (32 * index)) as u32 as usize;
    let view = *array.views().get(row)?;
    let length = word(view, 0);
    if length > 12 {
        let start = word(view, 3);
        let buffer = array.data_buffers().get(word(view, 2))?;
        return buffer.get(start..start.checked_add(length)?);
    }
    let bytes = array.views().inner().as_slice();
    bytes.get(16 * row + 4..16 * row + 4 + length)
}

/// Keys as numbers; one that points outside of the values is none.
fn keys(array: &dyn Array, values: usize) -> Vec<Option<usize>> {
    downcast_integer_array!(
        array => array
            .iter()
            .map(|key| key.and_then(|k| k.to_usize()).filter(|&k| k < values))
            .collect(),
        _ => vec![None; array.len()]
    )
}

/// A column of texts that is read in place: chunks are never joined, and no layout is converted.
pub struct TextColumn {
    name: String,
    chunks: Vec<Chunk>,
    /// First row of each chunk, and after the last the number of rows.
    starts: Vec<usize>,
}

impl TextColumn {
    /// `name` is what errors call the column; `data_type` is checked even if there are no chunks.
    pub fn new(name: &str, data_type: &DataType, arrays: &[ArrayRef]) -> Result<Self> {
        Chunk::new(name, &arrow_array::new_empty_array(data_type))?;
        let mut starts = vec![0];
        let mut end = 0;
        let mut chunks = Vec::with_capacity(arrays.len());
        for (index, array) in arrays.iter().enumerate() {
            let chunk = Chunk::new(name, array)?;
            if let Some((row, fault)) = chunk.first_fault() {
                let (column, chunk) = (name.to_owned(), index);
                return Err(match fault {
                    Fault::NotUtf8 => Error::NotUtf8 { column, chunk, row },
                    Fault::Outside => Error::Damaged { column, chunk, row },
                });
            }
            chunks.push(chunk);
            end += array.len();
            starts.push(end);
        }
        Ok(Self {
            name: name.to_owned(),
            chunks,
            starts,
        })
    }

    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, row: usize) -> Option<&str> {
        let chunk = self
            .starts
            .partition_point(|&start| start <= row)
            .checked_sub(1)?;
        self.chunks.get(chunk)?.get(row - self.starts[chunk])
    }

    /// Two columns of a pair have the same number of rows, in whatever chunks.
    pub fn check_same_length(&self, other: &Self) -> Result<()> {
        if self.len() == other.len() {
            return Ok(());
        }
        Err(Error::LengthMismatch {
            left: self.name.clone(),
            left_len: self.len(),
            right: other.name.clone(),
            right_len: other.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int8Type;
    use arrow_array::{BinaryArray, DictionaryArray, Int32Array, NullArray, make_array};
    use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
    use arrow_data::ArrayData;

    use super::*;

    const ROWS: [Option<&str>; 4] = [
        Some("a"),
        None,
        Some("a text that is not inlined"),
        Some(""),
    ];

    fn column(arrays: &[ArrayRef]) -> TextColumn {
        TextColumn::new("texts", arrays[0].data_type(), arrays).unwrap()
    }

    fn rows(column: &TextColumn) -> Vec<Option<&str>> {
        (0..column.len()).map(|i| column.get(i)).collect()
    }

    #[test]
    fn every_layout_sliced_and_chunked() {
        let dictionary: DictionaryArray<Int8Type> = ROWS.into_iter().collect();
        let arrays: [ArrayRef; 4] = [
            Arc::new(StringArray::from(ROWS.to_vec())),
            Arc::new(LargeStringArray::from(ROWS.to_vec())),
            Arc::new(StringViewArray::from(ROWS.to_vec())),
            Arc::new(dictionary),
        ];
        for array in arrays {
            assert_eq!(rows(&column(std::slice::from_ref(&array))), ROWS);
            let parts = [array.slice(0, 1), array.slice(1, 0), array.slice(1, 3)];
            assert_eq!(rows(&column(&parts)), ROWS);
            assert_eq!(column(&parts).get(4), None);
        }
        assert_eq!(rows(&column(&[Arc::new(NullArray::new(2))])), [None, None]);
    }

    #[test]
    fn a_dictionary_without_values() {
        let empty = DictionaryArray::<Int8Type>::from_iter([None::<&str>, None]);
        assert_eq!(rows(&column(&[Arc::new(empty)])), [None, None]);
    }

    #[test]
    fn what_is_not_text_is_named() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let error = TextColumn::new("chosen", &DataType::Int32, &[numbers])
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("`chosen` is of type Int32"));
    }

    /// What a producer could hand over by mistake; arrow-rs checks none of it when it takes it over.
    fn column_of(data_type: DataType, buffers: &[Buffer], len: usize) -> Result<TextColumn> {
        let builder = ArrayData::builder(data_type.clone()).len(len);
        // SAFETY: nothing but `TextColumn` reads the array, and that it checks it first is what is tested.
        let data = unsafe { builder.buffers(buffers.to_vec()).build_unchecked() };
        TextColumn::new("texts", &data_type, &[make_array(data)])
    }

    #[test]
    fn offsets_and_views_outside_of_the_data_are_an_error() {
        let values = Buffer::from(b"abcdef");
        for offsets in [[0, 9, 6], [4, 2, 6], [-1, 2, 6], [0, -3, 6]] {
            let small = [Buffer::from_iter(offsets), values.clone()];
            let large = [Buffer::from_iter(offsets.map(i64::from)), values.clone()];
            for result in [
                column_of(DataType::Utf8, &small, 2),
                column_of(DataType::LargeUtf8, &large, 2),
            ] {
                let error = result.err().unwrap();
                assert!(matches!(error, Error::Damaged { .. }), "{offsets:?}");
            }
        }
        let text = Buffer::from(b"a text that is not inlined");
        let view = |length: u128, buffer: u128, offset: u128| {
            Buffer::from_iter([length | buffer << 64 | offset << 96])
        };
        let fine = column_of(DataType::Utf8View, &[view(20, 0, 2), text.clone()], 1).unwrap();
        assert_eq!(fine.get(0), Some("text that is not inl"));
        for (length, buffer, offset) in [(27, 0, 0), (20, 1, 0), (20, 0, 7), (20, 0, 0xffff_ffff)] {
            let bad = [view(length, buffer, offset), text.clone()];
            let error = column_of(DataType::Utf8View, &bad, 1).err().unwrap();
            assert!(matches!(error, Error::Damaged { row: 0, .. }));
        }
    }

    #[test]
    fn a_row_that_is_null_may_hold_anything() {
        let nulls = Some(NullBuffer::from(vec![true, false, true]));
        let offsets = OffsetBuffer::new(vec![0, 1, 2, 3].into());
        let array = BinaryArray::new(offsets, Buffer::from(b"a\xffb"), nulls);
        // SAFETY: only valid rows are read, and these hold UTF-8.
        let texts = unsafe {
            let (offsets, values, nulls) = array.into_parts();
            StringArray::new_unchecked(offsets, values, nulls)
        };
        assert_eq!(
            rows(&column(&[Arc::new(texts)])),
            [Some("a"), None, Some("b")]
        );
    }
}
