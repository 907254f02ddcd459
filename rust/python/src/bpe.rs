//! Counting tokens.

use std::sync::Arc;

use arrow_array::types::UInt32Type;
use arrow_array::{ArrayRef, PrimitiveArray};
use clair_core::bpe::{self, Loaded};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3_arrow::PyArray;
use pyo3_arrow::export::Arro3Array;

use crate::input::Column;
use crate::work::{run, to_python};

/// Texts handed to a counter of Python's at once.
const TEXTS_AT_ONCE: usize = 1024;

/// A tokenizer of one of the shapes that are counted here.
#[pyclass(frozen)]
pub struct Tokenizer(Arc<bpe::Tokenizer>);

/// One of OpenAI's encodings.
#[pyfunction]
pub fn tokenizer_of_encoding(py: Python<'_>, name: &str) -> PyResult<Tokenizer> {
    py.detach(|| bpe::encoding(name))
        .map(Tokenizer)
        .map_err(to_python)
}

/// The tokenizer of a `tokenizer.json`, or what about it is not counted here.
#[pyfunction]
pub fn tokenizer_of_json(py: Python<'_>, file: &[u8]) -> PyResult<(Option<Tokenizer>, String)> {
    match run(py, |_| bpe::load(file))? {
        Loaded::Here(tokenizer) => Ok((Some(Tokenizer(tokenizer)), String::new())),
        Loaded::Elsewhere(reason) => Ok((None, reason)),
    }
}

#[pyfunction]
pub fn count_tokens(
    py: Python<'_>,
    column: Column,
    tokenizer: &Bound<'_, Tokenizer>,
) -> PyResult<Arro3Array> {
    let column = column.named("column")?;
    let tokenizer = &tokenizer.get().0;
    run(py, |stop| tokenizer.count_column(&column, stop)).map(Into::into)
}

/// The same with a counter of Python's, which takes a list of texts and gives as many counts.
#[pyfunction]
pub fn count_tokens_with(
    py: Python<'_>,
    column: Column,
    counter: &Bound<'_, PyAny>,
) -> PyResult<Arro3Array> {
    let column = column.named("column")?;
    let mut counts: Vec<Option<u32>> = Vec::with_capacity(column.len());
    for start in (0..column.len()).step_by(TEXTS_AT_ONCE) {
        let rows = start..column.len().min(start + TEXTS_AT_ONCE);
        let texts = rows.clone().filter_map(|row| column.get(row));
        let texts = PyList::new(py, texts.collect::<Vec<_>>())?;
        let found: Vec<u32> = counter.call1((&texts,))?.extract()?;
        if found.len() != texts.len() {
            return Err(PyValueError::new_err(format!(
                "the counter gave {} counts for {} texts",
                found.len(),
                texts.len()
            )));
        }
        let mut found = found.into_iter();
        counts.extend(rows.map(|row| column.get(row).and_then(|_| found.next())));
    }
    let counts: ArrayRef = Arc::new(PrimitiveArray::<UInt32Type>::from(counts));
    Ok(PyArray::from_array_ref(counts).into())
}
