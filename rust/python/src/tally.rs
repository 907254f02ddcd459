//! The sums of `stats` for Python.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, LargeStringArray};
use arrow_schema::DataType;
use clair_core::columns::TextColumn;
use clair_core::measure::{self, EXACT};
use clair_core::stop::Stop;
use clair_core::table::measures;
use clair_core::tally::{self, Measure};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::input::Column;
use crate::work::{run, to_python};

/// Pairs summed up.
#[pyclass(frozen)]
pub struct Tally(Mutex<tally::Tally>);

impl Tally {
    pub fn change(
        &self,
        py: Python<'_>,
        add: impl FnOnce(&mut tally::Tally, &Stop) -> clair_core::Result<()> + Send,
    ) -> PyResult<()> {
        run(py, |stop| {
            let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            add(&mut tally, stop)
        })
    }

    fn measure(&self, py: Python<'_>, rejected: &TextColumn, chosen: &TextColumn) -> PyResult<()> {
        self.change(py, |tally, stop| {
            tally.add(&measures(rejected, chosen, stop)?);
            Ok(())
        })
    }

    fn read<T>(&self, of: impl FnOnce(&tally::Tally) -> T) -> T {
        of(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Tally {
    #[new]
    #[pyo3(signature = (exact=EXACT))]
    fn new(exact: usize) -> Self {
        Self(Mutex::new(tally::Tally::new(exact)))
    }

    /// Measures pairs and adds them; a pair with a null is left out.
    fn add(&self, py: Python<'_>, rejected: Column, chosen: Column) -> PyResult<()> {
        self.measure(py, &rejected.named("rejected")?, &chosen.named("chosen")?)
    }

    /// As `add`, for texts of Python.
    fn add_texts(
        &self,
        py: Python<'_>,
        rejected: Vec<String>,
        chosen: Vec<String>,
    ) -> PyResult<()> {
        let column = |name, texts: Vec<String>| {
            let texts: ArrayRef = Arc::new(LargeStringArray::from(texts));
            TextColumn::new(name, &DataType::LargeUtf8, &[texts]).map_err(to_python)
        };
        self.measure(
            py,
            &column("rejected", rejected)?,
            &column("chosen", chosen)?,
        )
    }

    #[getter]
    fn pairs(&self) -> u64 {
        self.read(|tally| tally.counts.pairs)
    }

    #[getter]
    fn chosen_longer(&self) -> u64 {
        self.read(|tally| tally.counts.chosen_longer)
    }

    #[getter]
    fn identical(&self) -> u64 {
        self.read(|tally| tally.counts.identical)
    }

    #[getter]
    fn near_identical(&self) -> u64 {
        self.read(|tally| tally.counts.near_identical)
    }

    #[getter]
    fn edit_position(&self) -> Vec<u64> {
        self.read(|tally| tally.counts.edit_position.to_vec())
    }

    #[getter]
    fn flags(&self) -> Vec<(String, u64)> {
        self.read(|tally| tally.flags.counted.clone())
    }

    #[getter]
    fn methods(&self) -> Vec<(String, u64)> {
        self.read(|tally| tally.methods.counted.clone())
    }

    /// Sums of `tokens_in`, `tokens_out` and `cost_usd`; none where no pair says.
    #[getter]
    fn usage(&self) -> (Option<f64>, Option<f64>, Option<f64>) {
        self.read(|tally| {
            let usage = &tally.usage;
            (usage.tokens_in, usage.tokens_out, usage.cost_usd)
        })
    }

    fn distribution(&self, py: Python<'_>, name: &str) -> PyResult<Distribution> {
        let measure = Measure::named(name)
            .ok_or_else(|| PyValueError::new_err(format!("no such measure: {name}")))?;
        Ok(Distribution(
            py.detach(|| self.read(|t| t.distribution(measure))),
        ))
    }
}

/// All values of a measure, in order.
#[pyclass(frozen)]
pub struct Distribution(measure::Distribution);

#[pymethods]
impl Distribution {
    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    #[getter]
    fn mean(&self) -> f64 {
        self.0.mean()
    }

    #[getter]
    fn std(&self) -> f64 {
        self.0.std()
    }

    #[getter]
    fn ends(&self) -> Option<(f64, f64)> {
        self.0.ends()
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        self.0.quantile(q)
    }

    fn below(&self, bound: f64) -> u64 {
        self.0.below(bound)
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    // The measures by name, and whether they count something.
    let measures: Vec<_> = Measure::ALL.map(|(m, name)| (name, m.whole())).into();
    m.add("MEASURES", measures)?;
    m.add_class::<Tally>()?;
    m.add_class::<Distribution>()
}
