//! The pairs of a Parquet file as text columns, without a detour over rows.
//!
//! Done here is what nearly all rows are: answers as text or as messages. A row that is out of the ordinary
//! in any way is handed on as it is, for slower code to judge.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, GenericListArray, OffsetSizeTrait, RecordBatch,
    StringViewArray,
};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field};
use arrow_select::nullif::nullif;

use super::file::ParquetFile;
use super::read::{Item, Limits, OwnTypes, Views};
use crate::Result;
use crate::columns::TextColumn;
use crate::stop::Stop;
use crate::table::measures;
use crate::tally::Tally;

/// The fields of a message: who speaks, and what they say.
const ROLES: [&str; 2] = ["role", "from"];
const CONTENTS: [&str; 2] = ["content", "value"];
const ASSISTANTS: [&[u8]; 4] = [b"assistant", b"gpt", b"model", b"bot"];
const HUMAN: &[u8] = b"\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";
const USAGE: [&str; 3] = ["tokens_in", "tokens_out", "cost_usd"];

/// Which columns hold what.
#[derive(Debug, Clone)]
pub struct Layout {
    pub chosen: String,
    pub rejected: String,
    /// Whether a text may hold its whole conversation, of which the last turn is the answer.
    pub transcript: bool,
    pub flags: Option<String>,
    pub method: Option<String>,
    pub usage: Option<String>,
}

impl Layout {
    /// The leaves to decode; none where a column is of a type that is not read here.
    fn leaves(&self, file: &ParquetFile) -> Option<Vec<String>> {
        let schema = file.schema();
        let all = file.leaves();
        let under = |column: &str, parts: &[&str]| -> Vec<String> {
            let wanted = |leaf: &&String| {
                let segments: Vec<&str> = leaf.split('.').collect();
                segments[0] == column
                    && (parts.is_empty() || segments.last().is_some_and(|s| parts.contains(s)))
            };
            all.iter().filter(wanted).cloned().collect()
        };
        let mut leaves = Vec::new();
        for side in [&self.chosen, &self.rejected] {
            let field = schema.field_with_name(side).ok()?;
            // Of an extension, JSON above all, the texts are not what they stand for.
            if field.metadata().contains_key("ARROW:extension:name") {
                return None;
            }
            let data_type = field.data_type();
            if is_bytes(data_type) {
                leaves.extend(under(side, &[]));
            } else {
                let messages = message_fields(data_type)?;
                let parts: Vec<&str> = messages.iter().map(|field| field.name().as_str()).collect();
                let found = under(side, &parts);
                if found.len() != parts.len() {
                    return None; // a field of a field has the same name
                }
                leaves.extend(found);
            }
        }
        for (column, fits) in [
            (&self.flags, is_names as fn(&DataType) -> bool),
            (&self.method, is_bytes),
            (&self.usage, is_usage),
        ] {
            if let Some(column) = column {
                if !fits(schema.field_with_name(column).ok()?.data_type()) {
                    return None;
                }
                leaves.extend(under(column, &[]));
            }
        }
        Some(leaves)
    }
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
    )
}

fn is_names(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(item) | DataType::LargeList(item) if is_bytes(item.data_type()))
}

fn is_number(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int32
            | DataType::UInt32
            | DataType::Int64
            | DataType::UInt64
            | DataType::Float32
            | DataType::Float64
    )
}

fn is_usage(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else {
        return false;
    };
    USAGE.iter().all(|part| {
        let field = fields.iter().find(|field| field.name() == part);
        field.is_none_or(|field| match *part {
            "cost_usd" => is_number(field.data_type()),
            _ => is_number(field.data_type()) && field.data_type().is_integer(),
        })
    })
}

/// The fields of messages that are texts; none where the type is no list of messages, or not one of texts.
fn message_fields(data_type: &DataType) -> Option<Vec<&Field>> {
    let (DataType::List(item) | DataType::LargeList(item)) = data_type else {
        return None;
    };
    let DataType::Struct(fields) = item.data_type() else {
        return None;
    };
    let names = ROLES.iter().chain(&CONTENTS);
    let found: Vec<&Field> = fields
        .iter()
        .filter(|field| names.clone().any(|name| name == field.name()))
        .map(AsRef::as_ref)
        .collect();
    let has = |names: &[&str]| {
        found
            .iter()
            .any(|field| names.contains(&field.name().as_str()))
    };
    let texts = found.iter().all(|field| is_bytes(field.data_type()));
    (texts && has(&ROLES) && has(&CONTENTS)).then_some(found)
}

/// Some rows of a file: their answers, null where a row is odd, and the odd rows themselves.
pub struct Step {
    pub rows: usize,
    answers: Option<Answers>,
    /// Each with the row of this step that it begins at.
    pub odd: Vec<(usize, Item)>,
}

struct Answers {
    chosen: ArrayRef,
    rejected: ArrayRef,
    flags: Option<ArrayRef>,
    method: Option<ArrayRef>,
    usage: Option<ArrayRef>,
}

impl Step {
    /// Measures the pairs of this step and adds them to `tally`.
    pub fn tally(&self, tally: &mut Tally, stop: &Stop) -> Result<()> {
        let Some(answers) = &self.answers else {
            return Ok(());
        };
        let text = |name, column: &ArrayRef| {
            TextColumn::new(name, &DataType::Utf8View, std::slice::from_ref(column))
        };
        let rejected = text("rejected", &answers.rejected)?;
        let chosen = text("chosen", &answers.chosen)?;
        tally.add(&measures(&rejected, &chosen, stop)?);
        for row in (0..self.rows).filter(|&row| answers.chosen.is_valid(row)) {
            if let Some(flags) = &answers.flags {
                names_in(flags, row, |flag| tally.flags.add(flag));
            }
            let method = answers.method.as_ref().map(|m| m.as_binary_view());
            if let Some(name) = method.and_then(|method| text_at(method, row)) {
                tally.methods.add(name);
            }
            if let Some(usage) = &answers.usage {
                let usage = usage.as_struct();
                for part in USAGE.iter().filter(|_| usage.is_valid(row)) {
                    if let Some(value) = usage.column_by_name(part).and_then(|c| number(c, row)) {
                        tally.usage.add(part, value);
                    }
                }
            }
        }
        Ok(())
    }
}

fn text_at(column: &BinaryViewArray, row: usize) -> Option<&str> {
    column
        .is_valid(row)
        .then(|| std::str::from_utf8(column.value(row)).ok())?
}

fn names_in(list: &ArrayRef, row: usize, mut see: impl FnMut(&str)) {
    if list.is_null(row) {
        return;
    }
    let names = match list.data_type() {
        DataType::List(_) => list.as_list::<i32>().value(row),
        _ => list.as_list::<i64>().value(row),
    };
    let names = names.as_binary_view();
    (0..names.len())
        .filter_map(|i| text_at(names, i))
        .for_each(&mut see);
}

/// A number of any of the types of `is_number`.
fn number(column: &ArrayRef, row: usize) -> Option<f64> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as f64,
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row) as f64,
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row),
        _ => return None,
    })
}

/// The answers of a column, null where a row is odd.
fn answers(
    column: &ArrayRef,
    transcript: bool,
) -> std::result::Result<StringViewArray, ArrowError> {
    match column.data_type() {
        DataType::List(_) => spoken(column.as_list::<i32>()),
        DataType::LargeList(_) => spoken(column.as_list::<i64>()),
        _ => {
            let texts = valid_only(column.as_binary_view());
            let whole = |text: &str| text.as_bytes().starts_with(HUMAN);
            if transcript && texts.iter().flatten().any(whole) {
                return Ok(texts.iter().map(|text| text.map(last_turn)).collect());
            }
            Ok(texts)
        }
    }
}

/// What the assistant says last in a transcript; any other text is an answer as it is.
fn last_turn(text: &str) -> &str {
    match text.rfind(ASSISTANT) {
        Some(at) if text.as_bytes().starts_with(HUMAN) => {
            let answer = &text[at + ASSISTANT.len()..];
            answer.strip_prefix(' ').unwrap_or(answer)
        }
        _ => text,
    }
}

/// Texts, null where the bytes are no UTF-8.
fn valid_only(column: &BinaryViewArray) -> StringViewArray {
    column.clone().to_string_view().unwrap_or_else(|_| {
        let text = |bytes| std::str::from_utf8(bytes).ok();
        column.iter().map(|cell| cell.and_then(text)).collect()
    })
}

/// The content of the last message of the assistant in each row.
fn spoken<O: OffsetSizeTrait>(
    list: &GenericListArray<O>,
) -> std::result::Result<StringViewArray, ArrowError> {
    let messages = list.values().as_struct();
    let texts = |names: [&str; 2]| -> Vec<&BinaryViewArray> {
        let found = names
            .iter()
            .filter_map(|name| messages.column_by_name(name));
        found.map(|column| column.as_binary_view()).collect()
    };
    let (roles, contents) = (texts(ROLES), texts(CONTENTS));
    let all = || roles.iter().chain(&contents);
    let sound = all().all(|column| (*column).clone().to_string_view().is_ok());
    let odd = |i: usize| {
        let broken =
            |c: &&BinaryViewArray| c.is_valid(i) && std::str::from_utf8(c.value(i)).is_err();
        messages.is_null(i) || (!sound && all().any(broken))
    };
    let cell = |columns: &[&BinaryViewArray], i: usize, empty: bool| {
        let told = |c: &&BinaryViewArray| c.is_valid(i) && (empty || !c.value(i).is_empty());
        columns.iter().position(told)
    };
    let assistant = |i: usize| {
        let role = cell(&roles, i, false).map(|of| roles[of].value(i));
        role.is_some_and(|role| ASSISTANTS.contains(&role))
    };
    // For each row the column and the place of its answer.
    let place = |row: usize| {
        if list.is_null(row) {
            return None;
        }
        let ends = &list.value_offsets()[row..row + 2];
        let mut range = ends[0].as_usize()..ends[1].as_usize();
        if range.clone().any(odd) {
            return None;
        }
        let at = range.rfind(|&i| assistant(i))?;
        Some((cell(&contents, at, true)?, at))
    };
    let places = (0..list.len()).map(place);
    if let [content] = contents[..] {
        // Views of the same pages: nothing is copied.
        let at: Vec<Option<usize>> = places.map(|place| place.map(|(_, at)| at)).collect();
        let views: ScalarBuffer<u128> = at
            .iter()
            .map(|at| at.map_or(0, |i| content.views()[i]))
            .collect();
        let nulls: NullBuffer = at.iter().map(Option::is_some).collect();
        let buffers = content.data_buffers().to_vec();
        return BinaryViewArray::try_new(views, buffers, Some(nulls))?.to_string_view();
    }
    let text = |(of, at): (usize, usize)| std::str::from_utf8(contents[of].value(at)).ok();
    Ok(places.map(|place| place.and_then(text)).collect())
}

/// Whether a row of names has one that is no UTF-8.
fn broken_name(column: &ArrayRef, row: usize) -> bool {
    let broken = |names: &BinaryViewArray, i| {
        names.is_valid(i) && std::str::from_utf8(names.value(i)).is_err()
    };
    if column.is_null(row) {
        return false;
    }
    let names = match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(row),
        DataType::LargeList(_) => column.as_list::<i64>().value(row),
        _ => return broken(column.as_binary_view(), row),
    };
    let names = names.as_binary_view();
    (0..names.len()).any(|i| broken(names, i))
}

/// Reads a file's pairs a few megabytes at a time.
pub struct Pairs {
    layout: Layout,
    views: Views,
    own: OwnTypes,
}

impl Pairs {
    /// None where a column is of a type that is not read here.
    pub fn new(file: Arc<ParquetFile>, layout: Layout, limits: Limits) -> Result<Option<Self>> {
        let Some(leaves) = layout.leaves(&file) else {
            return Ok(None);
        };
        Ok(Some(Self {
            layout,
            own: OwnTypes::new(&file, limits.bytes),
            views: Views::new(file, Some(&leaves), limits)?,
        }))
    }

    fn step(&self, batch: &RecordBatch) -> std::result::Result<Step, ArrowError> {
        let column = |name: &Option<String>| batch.column_by_name(name.as_ref()?).cloned();
        let side = |name: &str| {
            let column = batch.column_by_name(name).ok_or_else(|| {
                ArrowError::SchemaError(format!("`{name}` is not among the columns"))
            })?;
            answers(column, self.layout.transcript)
        };
        let (chosen, rejected) = (side(&self.layout.chosen)?, side(&self.layout.rejected)?);
        let (flags, method) = (column(&self.layout.flags), column(&self.layout.method));
        let rows = batch.num_rows();
        let broken = |column: &Option<ArrayRef>, row| {
            column
                .as_ref()
                .is_some_and(|column| broken_name(column, row))
        };
        let odd: BooleanArray = (0..rows)
            .map(|row| {
                let null = chosen.is_null(row) || rejected.is_null(row);
                Some(null || broken(&flags, row) || broken(&method, row))
            })
            .collect();
        let odd_rows = self.odd_rows(batch, &odd);
        Ok(Step {
            rows,
            answers: Some(Answers {
                chosen: nullif(&chosen, &odd)?,
                rejected: nullif(&rejected, &odd)?,
                flags,
                method,
                usage: column(&self.layout.usage),
            }),
            odd: odd_rows,
        })
    }

    /// The odd rows in the file's own types, neighbours together.
    fn odd_rows(&self, batch: &RecordBatch, odd: &BooleanArray) -> Vec<(usize, Item)> {
        let mut found = Vec::new();
        for (start, end) in odd.values().set_slices() {
            let mut row = start;
            let mut ready = self.own.cut(&batch.slice(start, end - start));
            while let Some(item) = self.own.next(&mut ready) {
                let rows = item.rows();
                found.push((row, item));
                row += rows;
            }
        }
        found
    }
}

impl Iterator for Pairs {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let lost = match self.views.next()? {
            Item::Batch(batch) => match self.step(&batch) {
                Ok(step) => return Some(step),
                Err(error) => Item::Lost {
                    rows: batch.num_rows(),
                    reason: error.to_string(),
                    column: None,
                },
            },
            lost => lost,
        };
        Some(Step {
            rows: lost.rows(),
            answers: None,
            odd: vec![(0, lost)],
        })
    }
}
