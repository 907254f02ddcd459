//! Duplicates: a collector that takes batches, and what became of each row.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::builder::{Float64Builder, StringBuilder, UInt32Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, UInt32Type};
use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::ArrowError;
use clair_core::columns::TextColumn;
use clair_core::dedup::{Batch, Dedup, Keep, Outcome, Settings, signatures};
use clair_core::{Error, Result};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyRecordBatch;
use pyo3_arrow::error::PyArrowError;
use pyo3_arrow::export::{Arro3Array, Arro3RecordBatch};
use pyo3_arrow::input::AnyArray;

use crate::input::Column;
use crate::work::run;

/// Numbers of one type without nulls.
fn numbers<T: ArrowPrimitiveType>(array: AnyArray, name: &str) -> PyResult<Vec<T::Native>> {
    let chunks = array
        .into_reader()?
        .collect::<std::result::Result<Vec<ArrayRef>, ArrowError>>()
        .map_err(PyArrowError::from)?;
    let mut values = Vec::new();
    for chunk in &chunks {
        let typed = chunk
            .as_primitive_opt::<T>()
            .filter(|_| chunk.null_count() == 0);
        let typed = typed.ok_or_else(|| {
            PyValueError::new_err(format!(
                "`{name}` is of type {}: {} without nulls was expected",
                chunk.data_type(),
                T::DATA_TYPE
            ))
        })?;
        values.extend_from_slice(typed.values());
    }
    Ok(values)
}

fn keep_of(name: &str) -> PyResult<Keep> {
    match name {
        "first" => Ok(Keep::First),
        "shortest" => Ok(Keep::Shortest),
        "lowest" => Ok(Keep::Lowest),
        _ => Err(PyValueError::new_err(format!(
            "unknown rule '{name}': known are first, shortest, lowest"
        ))),
    }
}

/// Collects texts, and says in the end which rows stay.
#[pyclass(frozen, name = "Dedup")]
pub struct PyDedup {
    state: Mutex<Option<Dedup>>,
    bands: Option<(usize, usize, f64)>,
}

#[pymethods]
impl PyDedup {
    #[new]
    #[pyo3(signature = (threshold, shingle, keep, seed, memory))]
    fn new(
        threshold: Option<f64>,
        shingle: usize,
        keep: &str,
        seed: u64,
        memory: usize,
    ) -> PyResult<Self> {
        let settings = Settings {
            threshold,
            shingle,
            keep: keep_of(keep)?,
            seed,
            memory,
        };
        let dedup = Dedup::new(settings).map_err(crate::work::to_python)?;
        let bands = dedup.bands();
        Ok(Self {
            bands: bands.map(|b| (b.bands, b.rows, b.recall(threshold.unwrap_or(1.0)))),
            state: Mutex::new(Some(dedup)),
        })
    }

    /// Bands, rows of each, and the share of pairs at the threshold that they find.
    #[getter]
    fn bands(&self) -> Option<(usize, usize, f64)> {
        self.bands
    }

    #[pyo3(signature = (rows, texts, keys=None, rest=vec![]))]
    fn add(
        &self,
        py: Python<'_>,
        rows: AnyArray,
        texts: Column,
        keys: Option<AnyArray>,
        rest: Vec<Column>,
    ) -> PyResult<()> {
        let rows = numbers::<UInt32Type>(rows, "rows")?;
        let keys = keys
            .map(|k| numbers::<Float64Type>(k, "keys"))
            .transpose()?;
        let texts = texts.named("texts")?;
        let rest: Vec<TextColumn> = rest
            .iter()
            .map(|c| c.named("rest"))
            .collect::<PyResult<_>>()?;
        let batch = Batch {
            rows: &rows,
            texts: &texts,
            keys: keys.as_deref(),
            rest: &rest,
        };
        run(py, |stop| self.with(|state| state.add(&batch, stop)))
    }

    fn finish(&self, py: Python<'_>, rows: u32) -> PyResult<PyOutcome> {
        let outcome = run(py, |stop| {
            let state = self
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            state.ok_or_else(ended)?.finish(rows, stop)
        })?;
        Ok(PyOutcome { outcome })
    }
}

fn ended() -> Error {
    Error::Setting("the collector has ended".to_owned())
}

impl PyDedup {
    /// After an error the state may lack rows, so nothing more is done with it.
    fn with(&self, work: impl FnOnce(&mut Dedup) -> Result<()>) -> Result<()> {
        let mut slot = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = slot.take().ok_or_else(ended)?;
        work(&mut state)?;
        *slot = Some(state);
        Ok(())
    }
}

/// What became of each row.
#[pyclass(frozen, name = "Outcome")]
pub struct PyOutcome {
    outcome: Outcome,
}

#[pymethods]
impl PyOutcome {
    /// Whether each of `count` rows from `first` on stays.
    fn stays(&self, first: u32, count: u32) -> Arro3Array {
        flags(first, count, |row| self.outcome.gone(row).is_none())
    }

    /// Whether each of `count` rows from `first` on goes, or another goes because of it.
    fn involved(&self, first: u32, count: u32) -> Arro3Array {
        flags(first, count, |row| self.outcome.involved(row))
    }

    /// Those of `count` rows from `first` on that go: row, kept_row, jaccard, reason.
    fn gone(&self, first: u32, count: u32) -> PyResult<Arro3RecordBatch> {
        gone(&self.outcome, first, count)
    }

    /// Numbers of rows by what became of them, and what it took.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let o = &self.outcome;
        vec![
            ("rows_in", o.rows.into()),
            ("rows_out", o.rows_out.into()),
            ("exact", o.exact.into()),
            ("near", o.near.into()),
            ("without_text", o.without_text.into()),
            ("groups", o.groups.into()),
            ("undecided", o.counts.undecided),
            ("comparisons", o.counts.comparisons),
        ]
    }
}

fn gone(outcome: &Outcome, first: u32, count: u32) -> PyResult<Arro3RecordBatch> {
    let (mut rows, mut kept) = (UInt32Builder::new(), UInt32Builder::new());
    let (mut jaccard, mut reasons) = (Float64Builder::new(), StringBuilder::new());
    for row in first..first.saturating_add(count) {
        if let Some((stays, near, reason)) = outcome.gone(row) {
            rows.append_value(row);
            kept.append_value(stays);
            jaccard.append_value(near);
            reasons.append_value(reason.name());
        }
    }
    let columns: [(&str, ArrayRef); 4] = [
        ("row", Arc::new(rows.finish())),
        ("kept_row", Arc::new(kept.finish())),
        ("jaccard", Arc::new(jaccard.finish())),
        ("reason", Arc::new(reasons.finish())),
    ];
    let batch = RecordBatch::try_from_iter(columns).map_err(PyArrowError::from)?;
    Ok(PyRecordBatch::new(batch).into())
}

fn flags(first: u32, count: u32, flag: impl Fn(u32) -> bool) -> Arro3Array {
    let rows = first..first.saturating_add(count);
    let array: ArrayRef = Arc::new(BooleanArray::from_iter(rows.map(|row| Some(flag(row)))));
    array.into()
}

#[pyfunction]
#[pyo3(signature = (column, permutations, shingle, seed))]
pub fn minhash(
    py: Python<'_>,
    column: Column,
    permutations: usize,
    shingle: usize,
    seed: u64,
) -> PyResult<Arro3Array> {
    let column = column.named("column")?;
    run(py, |stop| {
        signatures(&column, permutations, shingle, seed, stop)
    })
    .map(Into::into)
}

/// The rows of a column that go, as `PyOutcome::gone` gives them.
#[pyfunction]
#[pyo3(signature = (texts, threshold, shingle, exact, keep, seed, memory))]
#[expect(clippy::too_many_arguments)]
pub fn near_duplicates(
    py: Python<'_>,
    texts: Column,
    threshold: f64,
    shingle: usize,
    exact: bool,
    keep: &str,
    seed: u64,
    memory: usize,
) -> PyResult<Arro3RecordBatch> {
    let texts = texts.named("texts")?;
    let settings = Settings {
        threshold: (!exact).then_some(threshold),
        shingle,
        keep: keep_of(keep)?,
        seed,
        memory,
    };
    let count = u32::try_from(texts.len())
        .ok()
        .filter(|&count| count < u32::MAX)
        .ok_or_else(|| PyValueError::new_err("`texts` has 2**32 - 1 rows or more"))?;
    let outcome = run(py, |stop| {
        let mut dedup = Dedup::new(settings)?;
        let rows: Vec<u32> = (0..count).collect();
        let batch = Batch {
            rows: &rows,
            texts: &texts,
            keys: None,
            rest: &[],
        };
        dedup.add(&batch, stop)?;
        dedup.finish(count, stop)
    })?;
    gone(&outcome, 0, count)
}
