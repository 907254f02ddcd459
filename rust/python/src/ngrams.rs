//! The n-grams of benchmarks, for `clair_apo.clean.decontaminate`.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use clair_core::columns::TextColumn;
use clair_core::ngrams::{Aside, Index, Match, Phrase};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyRecordBatch;
use pyo3_arrow::export::{Arro3Array, Arro3RecordBatch};

use crate::input::Column;
use crate::work::run;

/// An index that is never changed once it is built, but for the rows that it counts.
#[pyclass(frozen, module = "clair_apo._core")]
pub struct NgramIndex {
    index: Arc<Index>,
    of_text: UInt32Array,
    aside: Mutex<Option<Arc<Aside>>>,
}

#[pymethods]
impl NgramIndex {
    #[new]
    fn new(py: Python<'_>, texts: Column, n: usize) -> PyResult<Self> {
        if n == 0 {
            return Err(PyValueError::new_err("an n-gram has at least one word"));
        }
        let texts = texts.named("texts")?;
        let (index, of_text) = run(py, |stop| Index::new(&texts, n, stop))?;
        Ok(Self {
            index: Arc::new(index),
            of_text: UInt32Array::from(of_text),
            aside: Mutex::new(None),
        })
    }

    #[getter]
    fn grams(&self) -> usize {
        self.index.grams()
    }

    /// For each text that the index was made of, its item, null where it has no words.
    fn items(&self) -> Arro3Array {
        let items: ArrayRef = Arc::new(self.of_text.clone());
        items.into()
    }

    /// Words of each item.
    fn lengths(&self) -> Arro3Array {
        let lengths = self.index.lengths().map(|words| words as u64);
        let lengths: ArrayRef = Arc::new(UInt64Array::from_iter_values(lengths));
        lengths.into()
    }

    fn count(&self, py: Python<'_>, columns: Vec<Column>) -> PyResult<Arro3Array> {
        let columns = columns
            .iter()
            .map(|column| column.named("columns"))
            .collect::<PyResult<Vec<TextColumn>>>()?;
        let any = run(py, |stop| self.index.count(&columns, stop))?;
        let any: ArrayRef = Arc::new(BooleanArray::from(any));
        Ok(any.into())
    }

    /// Sets n-grams aside that stand in more items or rows; how many they are.
    fn set_aside(&self, py: Python<'_>, items: u32, rows: u32) -> PyResult<usize> {
        let aside = run(py, |_| Ok(self.index.set_aside(items, rows)))?;
        let count = aside.count();
        *self.aside.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(aside));
        Ok(count)
    }

    fn phrases(&self, py: Python<'_>, most: usize) -> PyResult<Arro3RecordBatch> {
        let aside = self.chosen()?;
        let phrases = run(py, |_| Ok(self.index.phrases(&aside, most)))?;
        let number = |of: fn(&Phrase) -> u32| -> ArrayRef {
            Arc::new(UInt32Array::from_iter_values(phrases.iter().map(of)))
        };
        let words: ArrayRef = Arc::new(StringArray::from_iter_values(
            phrases.iter().map(|phrase| &phrase.words),
        ));
        table([
            ("words", words),
            ("items", number(|p| p.items)),
            ("rows", number(|p| p.rows)),
        ])
    }

    fn matches(&self, py: Python<'_>, texts: Column, share: f64) -> PyResult<Arro3RecordBatch> {
        let texts = texts.named("texts")?;
        let aside = self.chosen()?;
        let found = run(py, |stop| self.index.matches(&texts, &aside, share, stop))?;
        let number = |of: fn(&Match) -> u32| -> ArrayRef {
            Arc::new(UInt32Array::from_iter_values(found.iter().map(of)))
        };
        let shares = found
            .iter()
            .map(|m| f64::from(m.shared) / f64::from(m.total.max(1)));
        let shares: ArrayRef = Arc::new(Float64Array::from_iter_values(shares));
        table([
            ("row", number(|m| m.row)),
            ("item", number(|m| m.item)),
            ("shared", number(|m| m.shared)),
            ("total", number(|m| m.total)),
            ("share", shares),
            ("start", number(|m| m.start)),
            ("end", number(|m| m.end)),
        ])
    }
}

impl NgramIndex {
    fn chosen(&self) -> PyResult<Arc<Aside>> {
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        aside
            .clone()
            .ok_or_else(|| PyValueError::new_err("set_aside comes first"))
    }
}

fn table<const N: usize>(columns: [(&str, ArrayRef); N]) -> PyResult<Arro3RecordBatch> {
    let batch = RecordBatch::try_from_iter(columns)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PyRecordBatch::new(batch).into())
}
