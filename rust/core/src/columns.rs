//! Text columns in any of Arrow's layouts, chunked or not, as rows of `Option<&str>`.

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BinaryArray, LargeBinaryArray, LargeStringArray, StringArray, StringViewArray,
    downcast_integer_array,
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

    /// The first row whose bytes are no UTF-8: producers need not check, and a `&str` must never hold such.
    fn first_invalid(&self) -> Option<usize> {
        match self {
            Self::Text(array) => invalid(BinaryArray::from(array.clone()).iter()),
            Self::Large(array) => invalid(LargeBinaryArray::from(array.clone()).iter()),
            Self::View(array) => invalid(array.clone().to_binary_view().iter()),
            Self::Dictionary(_, values) => values.first_invalid(),
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

fn invalid<'a>(mut rows: impl Iterator<Item = Option<&'a [u8]>>) -> Option<usize> {
    rows.position(|bytes| bytes.is_some_and(|bytes| std::str::from_utf8(bytes).is_err()))
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
            if let Some(row) = chunk.first_invalid() {
                return Err(Error::NotUtf8 {
                    column: name.to_owned(),
                    chunk: index,
                    row,
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
    use arrow_array::{DictionaryArray, Int32Array, NullArray};

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
}
