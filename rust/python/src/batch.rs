//! Record batches from Python, also those that are slices.

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StructArray, make_array};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, Schema};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use pyo3_arrow::PyRecordBatch;

/// A batch of any producer.
pub struct Batch(pub RecordBatch);

impl<'py> FromPyObject<'_, 'py> for Batch {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let Ok(export) = object.getattr("__arrow_c_array__") else {
            return Ok(Self(object.extract::<PyRecordBatch>()?.into_inner()));
        };
        let (schema, array): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) =
            export.call0()?.extract()?;
        let schema = schema
            .pointer_checked(Some(c"arrow_schema"))?
            .cast::<FFI_ArrowSchema>();
        let array = array
            .pointer_checked(Some(c"arrow_array"))?
            .cast::<FFI_ArrowArray>();
        // SAFETY: a capsule of this name holds such a struct, as the Arrow PyCapsule interface has it; the
        // schema is only looked at while its capsule lives, and the array is moved out of its own.
        let batch = unsafe {
            let schema = schema.as_ref();
            from_ffi(FFI_ArrowArray::from_raw(array.as_ptr()), schema)
                .and_then(|data| batch(data, Schema::try_from(schema)?))
        };
        batch
            .map(Self)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

fn batch(data: ArrayData, schema: Schema) -> Result<RecordBatch, ArrowError> {
    if !matches!(data.data_type(), DataType::Struct(_)) {
        return Err(ArrowError::SchemaError(
            "a record batch was expected".to_owned(),
        ));
    }
    let rows = data.len();
    let columns = columns(&data)?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.into(), columns, &options)
}

/// The fields of a struct, cut to its slice. What the library does here for itself cuts a struct in a struct
/// twice.
fn columns(data: &ArrayData) -> Result<Vec<ArrayRef>, ArrowError> {
    let fields = data.child_data().iter();
    fields
        .map(|field| Ok(straight(field)?.slice(data.offset(), data.len())))
        .collect()
}

fn straight(data: &ArrayData) -> Result<ArrayRef, ArrowError> {
    let DataType::Struct(fields) = data.data_type() else {
        return Ok(make_array(data.clone()));
    };
    Ok(std::sync::Arc::new(StructArray::try_new_with_length(
        fields.clone(),
        columns(data)?,
        data.nulls().cloned(),
        data.len(),
    )?))
}
