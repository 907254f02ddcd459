//! Parquet files for Python: batches out, batches in.

use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};

use clair_core::parquet::{self, Ahead, Item, Limits};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3_arrow::export::{Arro3RecordBatch, Arro3Schema};
use pyo3_arrow::{PyRecordBatch, PySchema};

use crate::batch::Batch;
use crate::tally::Tally;
use crate::work::{POLL, to_python};

/// An open file. Its columns are what `batches` gives.
#[pyclass(frozen)]
pub struct ParquetFile(Arc<parquet::ParquetFile>);

#[pymethods]
impl ParquetFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let file = py.detach(|| parquet::ParquetFile::open(&path));
        Ok(Self(Arc::new(file.map_err(to_python)?)))
    }

    #[getter]
    fn num_rows(&self) -> u64 {
        self.0.rows()
    }

    /// Names of the columns, in order.
    #[getter]
    fn names(&self) -> Vec<String> {
        let fields = self.0.schema().fields().iter();
        fields.map(|field| field.name().clone()).collect()
    }

    /// Dotted paths of the leaves, in order.
    #[getter]
    fn leaves(&self) -> Vec<String> {
        self.0.leaves()
    }

    #[getter]
    fn schema(&self) -> Arro3Schema {
        Arc::clone(self.0.schema()).into()
    }

    #[pyo3(signature = (columns=None, rows=256, bytes=8 << 20))]
    fn batches(
        &self,
        columns: Option<Vec<String>>,
        rows: usize,
        bytes: usize,
    ) -> PyResult<ParquetBatches> {
        let limits = Limits { rows, bytes };
        let batches = parquet::Batches::new(Arc::clone(&self.0), columns.as_deref(), limits);
        let ahead = parquet::ahead(batches.map_err(to_python)?).map_err(to_python)?;
        Ok(ParquetBatches(Reading::new(ahead)))
    }

    /// The pairs in two columns of answers; none where a column is of a type that is not read here.
    #[pyo3(signature = (chosen, rejected, *, transcript, flags=None, method=None, usage=None, rows=1024, bytes=2 << 20))]
    #[allow(clippy::too_many_arguments)]
    fn pairs(
        &self,
        chosen: String,
        rejected: String,
        transcript: bool,
        flags: Option<String>,
        method: Option<String>,
        usage: Option<String>,
        rows: usize,
        bytes: usize,
    ) -> PyResult<Option<ParquetPairs>> {
        let layout = parquet::Layout {
            chosen,
            rejected,
            transcript,
            flags,
            method,
            usage,
        };
        let limits = Limits { rows, bytes };
        let pairs = parquet::Pairs::new(Arc::clone(&self.0), layout, limits).map_err(to_python)?;
        let ahead = pairs.map(parquet::ahead).transpose().map_err(to_python)?;
        Ok(ahead.map(|ahead| ParquetPairs(Reading::new(ahead))))
    }
}

/// The pairs of a file, measured as they are read.
#[pyclass(frozen)]
pub struct ParquetPairs(Reading<parquet::Step>);

/// Rows that were read, and those among them that are out of the ordinary.
type PyStep = (usize, Vec<(usize, PyItem)>);

#[pymethods]
impl ParquetPairs {
    /// Adds the next pairs to `tally`. Returns how many rows that were, and those out of the ordinary, each
    /// with its place among them; none at the end.
    fn step(&self, py: Python<'_>, tally: &Tally) -> PyResult<Option<PyStep>> {
        let Some(step) = self.0.next(py)? else {
            return Ok(None);
        };
        tally.change(py, |tally, stop| step.tally(tally, stop))?;
        let odd = step.odd.into_iter().map(|(row, item)| (row, item.into()));
        Ok(Some((step.rows, odd.collect())))
    }
}

/// What a thread reads, for whoever asks from Python.
pub struct Reading<T> {
    ahead: Mutex<Ahead<T>>,
    process: u32,
}

impl<T: Send> Reading<T> {
    pub fn new(ahead: Ahead<T>) -> Self {
        Self {
            ahead: Mutex::new(ahead),
            process: std::process::id(),
        }
    }

    /// The next item; none at the end. Ctrl-C is heard while it is waited for.
    pub fn next(&self, py: Python<'_>) -> PyResult<Option<T>> {
        // The thread that reads did not come along.
        if std::process::id() != self.process {
            return Err(PyRuntimeError::new_err(
                "a Parquet file that was opened before a fork cannot be read after it",
            ));
        }
        loop {
            let wait = || {
                let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
                ahead.next(POLL)
            };
            match py.detach(wait) {
                Ok(item) => return Ok(item),
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// Batches of a file, or `(rows, reason, column)` in the place of rows that cannot be read.
#[pyclass(frozen)]
pub struct ParquetBatches(Reading<Item>);

#[derive(IntoPyObject)]
enum PyItem {
    Batch(Arro3RecordBatch),
    Lost((usize, String, Option<String>)),
}

impl From<Item> for PyItem {
    fn from(item: Item) -> Self {
        match item {
            Item::Batch(batch) => Self::Batch(PyRecordBatch::new(batch).into()),
            Item::Lost {
                rows,
                reason,
                column,
            } => Self::Lost((rows, reason, column)),
        }
    }
}

#[pymethods]
impl ParquetBatches {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<PyItem>> {
        Ok(self.0.next(py)?.map(Into::into))
    }
}

/// Writes batches of one schema. Without `finish` the file is no Parquet file.
#[pyclass(frozen)]
pub struct ParquetWriter(Mutex<Option<parquet::Writer>>);

impl ParquetWriter {
    fn finished() -> PyErr {
        PyRuntimeError::new_err("the file is finished")
    }
}

#[pymethods]
impl ParquetWriter {
    #[new]
    fn new(path: PathBuf, schema: PySchema) -> PyResult<Self> {
        let writer = parquet::Writer::create(&path, schema.into_inner()).map_err(to_python)?;
        Ok(Self(Mutex::new(Some(writer))))
    }

    fn write(&self, py: Python<'_>, batch: Batch) -> PyResult<()> {
        let batch = batch.0;
        py.detach(|| {
            let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let writer = writer.as_mut().ok_or_else(Self::finished)?;
            writer.write(&batch).map_err(to_python)
        })
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let writer = writer.take().ok_or_else(Self::finished)?;
            writer.finish().map_err(to_python)
        })
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<ParquetFile>()?;
    m.add_class::<ParquetBatches>()?;
    m.add_class::<ParquetPairs>()?;
    m.add_class::<ParquetWriter>()
}
