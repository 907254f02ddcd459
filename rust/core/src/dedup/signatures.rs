//! The minima of every text of a column.

use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, UInt32Array};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};
use rayon::prelude::*;

use super::ROWS_AT_ONCE;
use super::sketch::{Scratch, Sketcher};
use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::{Error, Result};

/// More minima than anyone needs; a larger number is a slip.
const MOST_MINIMA: usize = 1 << 16;

/// `minima` numbers a text, with the same seed the same as those that `Dedup` works with.
pub fn signatures(
    column: &TextColumn,
    minima: usize,
    shingle: usize,
    seed: u64,
    stop: &Stop,
) -> Result<ArrayRef> {
    if minima == 0 || minima > MOST_MINIMA || shingle == 0 {
        return Err(Error::Setting(format!(
            "{minima} permutations of shingles of {shingle} words: from 1 to {MOST_MINIMA} \
             permutations and at least one word are possible"
        )));
    }
    let sketcher = Sketcher::new(shingle, minima, seed)?;
    let size = i32::try_from(minima).unwrap_or(i32::MAX);
    let mut values = vec![0; column.len() * minima];
    values
        .par_chunks_mut(minima)
        .enumerate()
        .with_min_len(ROWS_AT_ONCE)
        .try_for_each_init(Scratch::default, |scratch, (row, out)| {
            stop.check()?;
            if let Some(text) = column.get(row) {
                sketcher.text(text, scratch);
                out.copy_from_slice(sketcher.minima(scratch).0);
            }
            Ok::<_, Error>(())
        })?;
    let valid: NullBuffer = (0..column.len())
        .map(|row| column.get(row).is_some())
        .collect::<Vec<bool>>()
        .into();
    let field = Arc::new(Field::new("item", DataType::UInt32, false));
    let list = FixedSizeListArray::try_new(
        field,
        size,
        Arc::new(UInt32Array::from(values)),
        Some(valid),
    )?;
    Ok(Arc::new(list))
}

#[cfg(test)]
mod tests {
    use arrow_array::{Array, StringArray, cast::AsArray, types::UInt32Type};

    use super::*;

    #[test]
    fn null_for_null_and_a_prefix_for_fewer() {
        let texts: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a b c"), None, Some("A  b c")]));
        let column = TextColumn::new("t", &texts.data_type().clone(), &[texts]).unwrap();
        let of = |minima| signatures(&column, minima, 2, 9, &Stop::new()).unwrap();
        let (many, few) = (of(256), of(32));
        let (many, few) = (many.as_fixed_size_list(), few.as_fixed_size_list());
        assert_eq!(many.value_length(), 256);
        assert!(many.is_null(1) && many.is_valid(0));
        assert_eq!(&many.value(0), &many.value(2));
        let first = many.value(0);
        let first = first.as_primitive::<UInt32Type>().values();
        assert_eq!(
            &first[..32],
            few.value(0).as_primitive::<UInt32Type>().values()
        );
        assert!(signatures(&column, 0, 2, 9, &Stop::new()).is_err());
    }
}
