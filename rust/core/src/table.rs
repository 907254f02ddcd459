//! Measures of whole columns, as Arrow arrays. A null on either side gives null.
//!
//! Rows are shared out to the threads of the rayon pool that the caller is in; outside of a pool they are
//! done one after the other.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, UInt32Builder};
use arrow_array::types::{ArrowPrimitiveType, Float64Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, LargeListArray, PrimitiveArray, RecordBatch, StringArray,
    StructArray, UInt32Array,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};

use crate::Result;
use crate::columns::TextColumn;
use crate::cpu::Kernel;
use crate::diff::Block;
use crate::pair::{Measures, TENTHS};
use crate::pairs::{Batch, Texts};
use crate::stop::Stop;

/// Pairs that are measured together: enough that many are of similar size, few enough that what is made of
/// them stays small.
const PAIRS_AT_ONCE: usize = 2048;
/// Bytes of text in them, whatever their number.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Runs of rows whose texts are measured together.
fn parts(a: &TextColumn, b: &TextColumn) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for row in 0..a.len() {
        let length = |column: &TextColumn| column.get(row).map_or(0, str::len);
        let more = length(a) + length(b);
        if row - start >= PAIRS_AT_ONCE || (bytes + more > BYTES_AT_ONCE && row > start) {
            parts.push(start..row);
            (start, bytes) = (row, 0);
        }
        bytes += more;
    }
    parts.push(start..a.len());
    parts
}

/// `f` for the rows of two columns that have text in both, many at a time.
fn pairs<T>(
    a: &TextColumn,
    b: &TextColumn,
    stop: &Stop,
    f: impl Fn(&Batch, &[Texts], &Stop) -> Result<Vec<T>>,
) -> Result<Vec<Option<T>>> {
    a.check_same_length(b)?;
    let batch = Batch::new(Kernel::chosen()?);
    let both = |row| Some((a.get(row)?, b.get(row)?));
    let mut all = Vec::with_capacity(a.len());
    for rows in parts(a, b) {
        stop.check()?;
        let texts: Vec<Texts> = rows.clone().filter_map(both).collect();
        let mut found = f(&batch, &texts, stop)?.into_iter();
        all.extend(rows.map(|row| both(row).and_then(|_| found.next())));
    }
    Ok(all)
}

fn array<T: ArrowPrimitiveType>(values: Vec<Option<T::Native>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<PrimitiveArray<T>>())
}

pub fn jaccard(a: &TextColumn, b: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
    let found = pairs(a, b, stop, Batch::jaccards)?;
    Ok(array::<Float64Type>(found))
}

/// What a distance counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Char,
    Word,
}

pub fn levenshtein(a: &TextColumn, b: &TextColumn, unit: Unit, stop: &Stop) -> Result<ArrayRef> {
    let found = match unit {
        Unit::Char => pairs(a, b, stop, Batch::levenshtein_chars),
        Unit::Word => pairs(a, b, stop, Batch::levenshtein_words),
    };
    Ok(array::<UInt32Type>(found?))
}

pub fn levenshtein_ratio(a: &TextColumn, b: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
    let found = pairs(a, b, stop, Batch::levenshtein_ratios)?;
    Ok(array::<Float64Type>(found))
}

/// Every measure of `Measures` as a column of its own.
pub fn score(rejected: &TextColumn, chosen: &TextColumn, stop: &Stop) -> Result<RecordBatch> {
    Ok(batch(&measures(rejected, chosen, stop)?)?)
}

/// The measures of each pair; none where either text is null.
pub fn measures(
    rejected: &TextColumn,
    chosen: &TextColumn,
    stop: &Stop,
) -> Result<Vec<Option<Measures>>> {
    pairs(rejected, chosen, stop, Batch::measures)
}

/// The edit script of each pair: a list of structs (op, a_start, a_end, b_start, b_end), in characters.
pub fn edit_scripts(a: &TextColumn, b: &TextColumn, stop: &Stop) -> Result<ArrayRef> {
    let scripts = pairs(a, b, stop, Batch::diffs)?;
    let blocks = || scripts.iter().flatten().flatten();
    let offsets = |offset: fn(&Block) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(blocks().map(offset)))
    };
    let op: StringArray = blocks().map(|block| Some(block.op.name())).collect();
    let columns: [(&str, ArrayRef); 5] = [
        ("op", Arc::new(op)),
        ("a_start", offsets(|block| block.a_start)),
        ("a_end", offsets(|block| block.a_end)),
        ("b_start", offsets(|block| block.b_start)),
        ("b_end", offsets(|block| block.b_end)),
    ];
    let field =
        |(name, column): &(&str, ArrayRef)| Field::new(*name, column.data_type().clone(), false);
    let fields: Fields = columns.iter().map(field).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let items = StructArray::try_new(fields.clone(), columns, None)?;
    let lengths = scripts
        .iter()
        .map(|script| script.as_ref().map_or(0, Vec::len));
    let nulls: NullBuffer = scripts.iter().map(Option::is_some).collect();
    Ok(Arc::new(LargeListArray::try_new(
        Arc::new(Field::new("item", DataType::Struct(fields), false)),
        OffsetBuffer::from_lengths(lengths),
        Arc::new(items),
        Some(nulls),
    )?))
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
