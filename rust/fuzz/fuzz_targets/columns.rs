//! Columns out of arbitrary Arrow buffers: an error, or exactly the rows that the buffers hold.
//!
//! Byte 0 picks the layout, byte 1 the number of rows, byte 2 how much is sliced off in front; then come
//! the validity bits, the offsets, views or keys, and the data.

#![no_main]

use arrow_array::{Array, make_array};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::DataType;
use clair_core::Error;
use clair_core::columns::TextColumn;
use libfuzzer_sys::fuzz_target;

type Row<'a> = Option<Option<&'a [u8]>>;

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head)
}

fn offset(bytes: &[u8], width: usize, row: usize) -> Option<usize> {
    let bytes = bytes.get(row * width..(row + 1) * width)?;
    let value = match width {
        4 => i64::from(i32::from_le_bytes(bytes.try_into().ok()?)),
        _ => i64::from_le_bytes(bytes.try_into().ok()?),
    };
    usize::try_from(value).ok()
}

/// Row by row what the layout says: none for what lies outside, or whose key does.
fn expected<'a>(kind: u8, fixed: &'a [u8], data: &'a [u8], row: usize) -> Option<&'a [u8]> {
    match kind {
        0 | 1 => {
            let width = if kind == 0 { 4 } else { 8 };
            data.get(offset(fixed, width, row)?..offset(fixed, width, row + 1)?)
        }
        _ => {
            let view = &fixed[16 * row..16 * row + 16];
            let word = |i: usize| u32::from_le_bytes(view[4 * i..4 * i + 4].try_into().unwrap());
            match word(0) as usize {
                length @ ..=12 => view.get(4..4 + length),
                length if word(2) == 0 => data.get(word(3) as usize..word(3) as usize + length),
                _ => None,
            }
        }
    }
}

fn check(bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    let head = take(&mut rest, 3)?;
    let (kind, len) = (head[0] % 3, usize::from(head[1] % 32));
    let nulls = take(&mut rest, len.div_ceil(8))?;
    let (data_type, fixed) = match kind {
        0 => (DataType::Utf8, take(&mut rest, 4 * (len + 1))?),
        1 => (DataType::LargeUtf8, take(&mut rest, 8 * (len + 1))?),
        _ => (DataType::Utf8View, take(&mut rest, 16 * len)?),
    };
    let builder = ArrayData::builder(data_type.clone())
        .len(len)
        .null_bit_buffer(Some(Buffer::from(nulls)))
        .add_buffer(Buffer::from(fixed))
        .add_buffer(Buffer::from(rest));
    // SAFETY: nothing but `TextColumn` reads the array; that it checks first is what is tried here.
    let array = make_array(unsafe { builder.build_unchecked() });
    let skip = usize::from(head[2]) % (len + 1);
    let column = TextColumn::new("texts", &data_type, &[array.slice(skip, len - skip)]);

    let rows: Vec<Row> = (skip..len)
        .map(|row| {
            let valid = nulls[row / 8] >> (row % 8) & 1 == 1;
            valid.then(|| expected(kind, fixed, rest, row))
        })
        .collect();
    let outside = rows.iter().position(|row| *row == Some(None));
    let invalid = rows
        .iter()
        .position(|row| matches!(row, Some(Some(bytes)) if std::str::from_utf8(bytes).is_err()));
    let first = |x: Option<usize>, y: Option<usize>| x.is_some_and(|x| y.is_none_or(|y| x < y));
    match column {
        Ok(column) => {
            assert_eq!((outside, invalid), (None, None));
            for (row, bytes) in rows.iter().enumerate() {
                assert_eq!(column.get(row).map(str::as_bytes), bytes.flatten());
            }
            assert_eq!(column.get(rows.len()), None);
        }
        Err(Error::Damaged { row, .. }) => {
            assert!(Some(row) == outside && first(outside, invalid));
        }
        Err(Error::NotUtf8 { row, .. }) => {
            assert!(Some(row) == invalid && first(invalid, outside));
        }
        Err(error) => panic!("{error}"),
    }
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
});
