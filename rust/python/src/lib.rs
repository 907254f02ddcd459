//! The Python module `clair_apo._core`: Arrow in, Arrow out, no algorithms.

mod attention;
mod batch;
mod bpe;
mod dedup;
mod input;
mod ngrams;
mod parquet;
mod tally;
mod work;

use clair_core::cpu::Kernel;
use clair_core::diff::Op;
use clair_core::kernel::Scratch;
use clair_core::script::UnitOp;
use clair_core::table::{self, Unit};
use clair_core::{pair, words as core_words};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3_arrow::PyRecordBatch;
use pyo3_arrow::export::{Arro3Array, Arro3RecordBatch};

use input::Column;
use work::{run, run_small, to_python};

/// An edit as Python gets it: its name and four offsets.
type PyEdit = (&'static str, u32, u32, u32, u32);

fn unit_of(name: &str) -> PyResult<Unit> {
    match name {
        "char" => Ok(Unit::Char),
        "word" => Ok(Unit::Word),
        _ => Err(PyValueError::new_err(format!(
            "unknown unit '{name}': known are char, word"
        ))),
    }
}

#[pyfunction]
fn words(py: Python<'_>, text: &str) -> PyResult<Vec<String>> {
    run_small(py, text.len(), |_| {
        let split = core_words::split(text)?;
        Ok(split
            .words
            .iter()
            .map(|word| word.of(text).to_owned())
            .collect())
    })
}

#[pyfunction]
fn jaccard(py: Python<'_>, a: Column, b: Column) -> PyResult<Arro3Array> {
    let (a, b) = (a.named("a")?, b.named("b")?);
    run(py, |stop| table::jaccard(&a, &b, stop)).map(Into::into)
}

#[pyfunction]
#[pyo3(signature = (a, b, unit="char"))]
fn levenshtein(py: Python<'_>, a: Column, b: Column, unit: &str) -> PyResult<Arro3Array> {
    let unit = unit_of(unit)?;
    let (a, b) = (a.named("a")?, b.named("b")?);
    run(py, |stop| table::levenshtein(&a, &b, unit, stop)).map(Into::into)
}

#[pyfunction]
fn levenshtein_ratio(py: Python<'_>, a: Column, b: Column) -> PyResult<Arro3Array> {
    let (a, b) = (a.named("a")?, b.named("b")?);
    run(py, |stop| table::levenshtein_ratio(&a, &b, stop)).map(Into::into)
}

#[pyfunction]
fn score(py: Python<'_>, rejected: Column, chosen: Column) -> PyResult<Arro3RecordBatch> {
    let (rejected, chosen) = (rejected.named("rejected")?, chosen.named("chosen")?);
    let batch = run(py, |stop| table::score(&rejected, &chosen, stop))?;
    Ok(PyRecordBatch::new(batch).into())
}

#[pyfunction]
fn diff(py: Python<'_>, a: &str, b: &str) -> PyResult<Vec<PyEdit>> {
    let blocks = run_small(py, a.len() + b.len(), |stop| {
        pair::diff(a, b, &mut Scratch::default(), stop)
    })?;
    Ok(blocks
        .iter()
        .map(|x| (x.op.name(), x.a_start, x.a_end, x.b_start, x.b_end))
        .collect())
}

#[pyfunction]
fn edit_scripts(py: Python<'_>, a: Column, b: Column) -> PyResult<Arro3Array> {
    let (a, b) = (a.named("a")?, b.named("b")?);
    run(py, |stop| table::edit_scripts(&a, &b, stop)).map(Into::into)
}

/// The name of the vector kernel in use.
#[pyfunction]
fn kernel() -> PyResult<&'static str> {
    Ok(Kernel::chosen().map_err(to_python)?.name())
}

/// The unit edits over words; offsets count words.
#[pyfunction]
fn word_script(py: Python<'_>, a: &str, b: &str) -> PyResult<Vec<PyEdit>> {
    let units = run_small(py, a.len() + b.len(), |stop| {
        pair::word_script(a, b, &mut Scratch::default(), stop)
    })?;
    let edit = |unit: &clair_core::script::Unit| {
        let (op, in_a, in_b) = match unit.op {
            UnitOp::Delete => (Op::Delete, 1, 0),
            UnitOp::Insert => (Op::Insert, 0, 1),
            UnitOp::Replace => (Op::Replace, 1, 1),
        };
        (op.name(), unit.a, unit.a + in_a, unit.b, unit.b + in_b)
    };
    Ok(units.iter().map(edit).collect())
}

#[pymodule(gil_used = false)]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("ENCODINGS", clair_core::bpe::ENCODINGS)?;
    m.add_class::<bpe::Tokenizer>()?;
    m.add_function(wrap_pyfunction!(words, m)?)?;
    m.add_function(wrap_pyfunction!(jaccard, m)?)?;
    m.add_function(wrap_pyfunction!(levenshtein, m)?)?;
    m.add_function(wrap_pyfunction!(levenshtein_ratio, m)?)?;
    m.add_function(wrap_pyfunction!(score, m)?)?;
    m.add_function(wrap_pyfunction!(bpe::tokenizer_of_encoding, m)?)?;
    m.add_function(wrap_pyfunction!(bpe::tokenizer_of_json, m)?)?;
    m.add_function(wrap_pyfunction!(bpe::count_tokens, m)?)?;
    m.add_function(wrap_pyfunction!(bpe::count_tokens_with, m)?)?;
    m.add_function(wrap_pyfunction!(diff, m)?)?;
    m.add_function(wrap_pyfunction!(word_script, m)?)?;
    m.add_function(wrap_pyfunction!(edit_scripts, m)?)?;
    m.add_function(wrap_pyfunction!(kernel, m)?)?;
    m.add_function(wrap_pyfunction!(attention::attention_forward, m)?)?;
    m.add_function(wrap_pyfunction!(attention::attention_backward, m)?)?;
    m.add_function(wrap_pyfunction!(attention::attention_kernel, m)?)?;
    m.add_class::<ngrams::NgramIndex>()?;
    m.add_function(wrap_pyfunction!(dedup::minhash, m)?)?;
    m.add_function(wrap_pyfunction!(dedup::near_duplicates, m)?)?;
    m.add_class::<dedup::PyDedup>()?;
    parquet::register(m)?;
    tally::register(m)
}
