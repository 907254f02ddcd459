//! Text columns from any producer with the Arrow PyCapsule methods.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, new_null_array};
use arrow_schema::{ArrowError, DataType, FieldRef, Fields};
use clair_core::columns::TextColumn;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;

use crate::work::to_python;

/// A column as it came, its chunks as they are.
pub struct Column {
    data_type: DataType,
    chunks: Vec<ArrayRef>,
}

impl<'py> FromPyObject<'_, 'py> for Column {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        // Arrow's own code panics over structures that are empty or do not fit their type.
        catch_unwind(AssertUnwindSafe(|| Self::read(object))).unwrap_or_else(|_| {
            Err(PyValueError::new_err(
                "what was handed over is no whole Arrow array (an object that was used already?)",
            ))
        })
    }
}

impl Column {
    fn read(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let reader = object.extract::<AnyArray>()?.into_reader()?;
        let data_type = reader.field().data_type().clone();
        // polars hands over nulls without a type in a form that arrow does not take; their number is enough.
        if data_type == DataType::Null
            && let Ok(rows) = object.len()
        {
            return Ok(Self {
                data_type,
                chunks: vec![new_null_array(&DataType::Null, rows)],
            });
        }
        // A stream may run a query, in threads that wait for the interpreter.
        let chunks = object
            .py()
            .detach(|| reader.collect::<Result<_, ArrowError>>())
            .map_err(|error| PyRuntimeError::new_err(format!("a column broke off: {error}")))?;
        Ok(Self { data_type, chunks })
    }

    /// The column under the name of the argument that it was given for, which errors mention. A table, which
    /// arrow hands over as structs, is its column where it has but one.
    pub fn named(&self, argument: &str) -> PyResult<TextColumn> {
        let DataType::Struct(fields) = &self.data_type else {
            return TextColumn::new(argument, &self.data_type, &self.chunks).map_err(to_python);
        };
        let (index, data_type) = only_column(argument, fields)?;
        let structs = self.chunks.iter().map(|chunk| chunk.as_struct());
        // Rows of a table are never null; a column of structs may have such, and is no text.
        if structs.clone().any(|chunk| chunk.null_count() > 0) {
            return Err(PyTypeError::new_err(format!(
                "`{argument}` is a column of structs, which is not text: pass its field of strings"
            )));
        }
        let chunks: Vec<ArrayRef> = structs.map(|chunk| chunk.column(index).clone()).collect();
        TextColumn::new(argument, data_type, &chunks).map_err(to_python)
    }
}

/// The one column of a table.
fn only_column<'f>(argument: &str, fields: &'f Fields) -> PyResult<(usize, &'f DataType)> {
    let mut columns = columns_of(fields);
    if let (Some((index, field)), None) = (columns.next(), columns.next()) {
        return Ok((index, field.data_type()));
    }
    let names: Vec<&str> = columns_of(fields)
        .map(|(_, field)| field.name().as_str())
        .collect();
    Err(PyTypeError::new_err(if names.is_empty() {
        format!("`{argument}` is a table without columns")
    } else {
        let names = names.join(", ");
        format!("`{argument}` is a table with the columns {names}: pass one of them")
    }))
}

/// Without the index, which pandas adds under a name of its own.
fn columns_of(fields: &Fields) -> impl Iterator<Item = (usize, &FieldRef)> {
    fields
        .iter()
        .enumerate()
        .filter(|(_, field)| !field.name().starts_with("__index_level_"))
}
