//! Measures of whole columns, as Arrow arrays. A null on either side gives null.
//!
//! Rows are shared out to the threads of the rayon pool that the caller is in; outside of a pool they are
//! done one after the other.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, UInt32Builder};
use arrow_array::types::{ArrowPrimitiveType, Float64Type, UInt32Type};
use arrow_array::{ArrayRef, BooleanArray, PrimitiveArray, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use rayon::prelude::*;

use crate::columns::TextColumn;
use crate::kernel::Scratch;
use crate::pair::{Measures, TENTHS, measure};
use crate::stop::Stop;
use crate::{Result, pair};

/// Rows that one task takes at least.
const ROWS_AT_ONCE: usize = 8;

fn rows<T: Send>(
    count: usize,
    stop: &Stop,
    row: impl Fn(usize, &mut Scratch) -> Result<Option<T>> + Sync,
) -> Result<Vec<Option<T>>> {
    let checked = |scratch: &mut Scratch, i| {
        stop.check()?;
        row(i, scratch)
    };
    if rayon::current_thread_index().is_none() {
        let mut scratch = Scratch::default();
        return (0..count).map(|i| checked(&mut scratch, i)).collect();
    }
    (0..count)
        .into_par_iter()
        .with_min_len(ROWS_AT_ONCE)
        .map_init(Scratch::default, checked)
        .collect()
}

/// `f` for each row of two columns.
fn pairs<T: Send>(
    a: &TextColumn,
    b: &TextColumn,
    stop: &Stop,
    f: impl Fn(&str, &str, &mut Scratch, &Stop) -> Result<T> + Sync,
) -> Result<Vec<Option<T>>> {
    a.check_same_length(b)?;
    rows(a.len(), stop, |i, scratch| match (a.get(i), b.get(i)) {
        (Some(x), Some(y)) => f(x, y, scratch, stop).map(Some),
        _ => Ok(None),
    })
}

fn array<T: ArrowPrimitiveType>(values: Vec<Option<T::Native>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<PrimitiveArray<T>>())
}

pub fn jaccard(a: &TextColumn, b: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
    Ok(array::<Float64Type>(pairs(a, b, stop, |x, y, _, _| {
        pair::jaccard(x, y)
    })?))
}

/// What a distance counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Char,
    Word,
}

pub fn levenshtein(a: &TextColumn, b: &TextColumn, unit: Unit, stop: &Stop) -> Result<ArrayRef> {
    let distance = match unit {
        Unit::Char => pair::levenshtein_chars,
        Unit::Word => pair::levenshtein_words,
    };
    Ok(array::<UInt32Type>(pairs(a, b, stop, distance)?))
}

pub fn levenshtein_ratio(a: &TextColumn, b: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
    Ok(array::<Float64Type>(pairs(
        a,
        b,
        stop,
        pair::levenshtein_ratio,
    )?))
}

/// Every measure of `Measures` as a column of its own.
pub fn score(rejected: &TextColumn, chosen: &TextColumn, stop: &Stop) -> Result<RecordBatch> {
    let measures = pairs(rejected, chosen, stop, measure)?;
    Ok(batch(&measures)?)
}

fn batch(rows: &[Option<Measures>]) -> std::result::Result<RecordBatch, ArrowError> {
    let float = |f: fn(&Measures) -> f64| {
        array::<Float64Type>(rows.iter().map(|m| m.as_ref().map(f)).collect())
    };
    let count = |f: fn(&Measures) -> u32| {
        array::<UInt32Type>(rows.iter().map(|m| m.as_ref().map(f)).collect())
    };
    let length_ratio = rows.iter().map(|m| m.as_ref()?.length_ratio).collect();
    let identical: BooleanArray = rows
        .iter()
        .map(|m| m.as_ref().map(|m| m.identical))
        .collect();
    let columns: [(&str, ArrayRef); 12] = [
        ("jaccard", float(|m| m.jaccard)),
        ("levenshtein", count(|m| m.levenshtein)),
        ("levenshtein_ratio", float(|m| m.levenshtein_ratio)),
        ("word_edits", count(|m| m.word_edits)),
        ("word_edit_ratio", float(|m| m.word_edit_ratio)),
        ("chosen_chars", count(|m| m.chosen_chars)),
        ("rejected_chars", count(|m| m.rejected_chars)),
        ("chosen_words", count(|m| m.chosen_words)),
        ("rejected_words", count(|m| m.rejected_words)),
        ("length_ratio", array::<Float64Type>(length_ratio)),
        ("edit_position", positions(rows)),
        ("identical", Arc::new(identical)),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, c)| Field::new(*name, c.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn positions(rows: &[Option<Measures>]) -> ArrayRef {
    let item = Field::new("item", DataType::UInt32, true);
    let mut builder =
        FixedSizeListBuilder::new(UInt32Builder::new(), TENTHS as i32).with_field(item);
    for row in rows {
        match row {
            Some(m) => builder.values().append_slice(&m.edit_position),
            None => builder.values().append_nulls(TENTHS),
        }
        builder.append(row.is_some());
    }
    Arc::new(builder.finish())
}
