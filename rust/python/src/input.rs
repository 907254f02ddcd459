//! Text columns from any producer with the Arrow PyCapsule methods.

use arrow_array::{ArrayRef, new_null_array};
use arrow_schema::{ArrowError, DataType};
use clair_core::columns::TextColumn;
use pyo3::prelude::*;
use pyo3_arrow::error::PyArrowError;
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
        let chunks = reader
            .collect::<Result<_, ArrowError>>()
            .map_err(PyArrowError::from)?;
        Ok(Self { data_type, chunks })
    }
}

impl Column {
    /// The column under the name of the argument that it was given for, which errors mention.
    pub fn named(&self, argument: &str) -> PyResult<TextColumn> {
        TextColumn::new(argument, &self.data_type, &self.chunks).map_err(to_python)
    }
}
