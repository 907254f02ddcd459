//! Attention over arrays that Python holds. A call runs one head on the thread that calls, without the
//! interpreter; several threads may run other heads, or other rows, over the same arrays.

use clair_attention::{Given, Gradients, Head, HeadMut, Instructions, Pass, Side};
use clair_core::cpu::Kernel;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyNotImplementedError, PyValueError};
use pyo3::prelude::*;

use crate::work::to_python;

type Span = (usize, usize);

/// An array of rows, [rows, heads, size], or of a number for each row of each head, [heads, rows].
struct Array {
    buffer: PyBuffer<f32>,
    name: &'static str,
}

impl Array {
    fn of(name: &'static str, array: &Bound<'_, PyAny>, write: bool) -> PyResult<Array> {
        let buffer = PyBuffer::<f32>::get(array)?;
        if !buffer.is_c_contiguous() || (write && buffer.readonly()) {
            return Err(wrong(
                name,
                "must be contiguous, and writable if it is a result",
            ));
        }
        Ok(Array { buffer, name })
    }

    fn shape(&self) -> &[usize] {
        self.buffer.shape()
    }

    fn like(&self, shape: &[usize]) -> PyResult<()> {
        if self.shape() == shape {
            return Ok(());
        }
        Err(wrong(
            self.name,
            &format!("has the shape {:?} and not {shape:?}", self.shape()),
        ))
    }

    fn start(&self) -> usize {
        self.buffer.buf_ptr() as usize
    }
}

fn wrong(name: &str, why: &str) -> PyErr {
    PyValueError::new_err(format!("{name} {why}"))
}

/// Which head of which rows, and how many there are.
#[derive(Clone, Copy)]
struct Place {
    instructions: Instructions,
    rows: usize,
    heads: usize,
    key_heads: usize,
    size: usize,
    head: usize,
}

impl Place {
    fn of(query: &Array, key: &Array, value: &Array, head: usize) -> PyResult<Place> {
        let instructions = instructions()?.ok_or_else(|| {
            PyNotImplementedError::new_err(
                "attention here is written for AVX-512, and for AVX2 with FMA",
            )
        })?;
        let (&[rows, heads, size], &[_, key_heads, _]) = (query.shape(), key.shape()) else {
            return Err(wrong("query and key", "must have three dimensions"));
        };
        key.like(&[rows, key_heads, size])?;
        value.like(&[rows, key_heads, size])?;
        if key_heads == 0 || heads % key_heads != 0 || size % 16 != 0 || head >= heads {
            return Err(wrong(
                "query",
                "must have a multiple of the heads of key, each a multiple of 16 wide, and the head asked for",
            ));
        }
        Ok(Place {
            instructions,
            rows,
            heads,
            key_heads,
            size,
            head,
        })
    }

    fn side(&self, prefix: Span, own: Span) -> PyResult<Side> {
        let spans = [prefix, own];
        if spans
            .iter()
            .any(|&(start, end)| start > end || end > self.rows)
        {
            return Err(wrong("prefix or own", "lies outside of the rows"));
        }
        Ok(Side {
            prefix: prefix.0..prefix.1,
            own: own.0..own.1,
        })
    }

    // SAFETY (both): `start` is that of an array of `rows` rows of so many heads, which was checked.
    unsafe fn queries(&self, start: usize) -> Head {
        unsafe {
            Head::of(
                start as *const f32,
                self.heads * self.size,
                self.head,
                self.size,
            )
        }
    }

    unsafe fn keys(&self, start: usize) -> Head {
        let head = self.head / (self.heads / self.key_heads);
        unsafe {
            Head::of(
                start as *const f32,
                self.key_heads * self.size,
                head,
                self.size,
            )
        }
    }
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // arrays of one pass
pub fn attention_forward(
    py: Python<'_>,
    query: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    head: usize,
    prefix: Span,
    own: Span,
    scale: f32,
) -> PyResult<()> {
    let query = Array::of("query", query, false)?;
    let key = Array::of("key", key, false)?;
    let value = Array::of("value", value, false)?;
    let (out, lse) = (Array::of("out", out, true)?, Array::of("lse", lse, true)?);
    let place = Place::of(&query, &key, &value, head)?;
    out.like(query.shape())?;
    lse.like(&[place.heads, place.rows])?;
    let side = place.side(prefix, own)?;
    let starts = [
        query.start(),
        key.start(),
        value.start(),
        out.start(),
        lse.start(),
    ];
    // The arrays stay alive behind their buffers. SAFETY: shapes and spans were checked, and who calls this
    // gives each head of each row to one call at a time.
    py.detach(|| unsafe {
        let [query, key, value, out, lse] = starts;
        let pass = Pass {
            query: place.queries(query),
            key: place.keys(key),
            value: place.keys(value),
            out: HeadMut::of(out as *mut f32, place.heads * place.size, head, place.size),
            lse: (lse as *mut f32).add(head * place.rows),
        };
        clair_attention::forward(place.instructions, pass, &side, scale);
    });
    Ok(())
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // arrays of one pass
pub fn attention_backward(
    py: Python<'_>,
    query: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    of_out: &Bound<'_, PyAny>,
    of_query: &Bound<'_, PyAny>,
    of_key: &Bound<'_, PyAny>,
    of_value: &Bound<'_, PyAny>,
    head: usize,
    prefix: Span,
    own: Span,
    scale: f32,
) -> PyResult<()> {
    let query = Array::of("query", query, false)?;
    let key = Array::of("key", key, false)?;
    let value = Array::of("value", value, false)?;
    let (out, lse) = (Array::of("out", out, false)?, Array::of("lse", lse, false)?);
    let of_out = Array::of("of_out", of_out, false)?;
    let of_query = Array::of("of_query", of_query, true)?;
    let of_key = Array::of("of_key", of_key, true)?;
    let of_value = Array::of("of_value", of_value, true)?;
    let place = Place::of(&query, &key, &value, head)?;
    for array in [&out, &of_out, &of_query] {
        array.like(query.shape())?;
    }
    lse.like(&[place.heads, place.rows])?;
    for array in [&of_key, &of_value] {
        array.like(&[place.heads, place.rows, place.size])?;
    }
    let side = place.side(prefix, own)?;
    let from = [
        query.start(),
        key.start(),
        value.start(),
        out.start(),
        lse.start(),
        of_out.start(),
    ];
    let to = [of_query.start(), of_key.start(), of_value.start()];
    // SAFETY: as above.
    py.detach(|| unsafe {
        let [query, key, value, out, lse, of_out] = from;
        let given = Given {
            query: place.queries(query),
            key: place.keys(key),
            value: place.keys(value),
            out: place.queries(out),
            lse: (lse as *const f32).add(head * place.rows),
            of_out: place.queries(of_out),
        };
        let [of_query, of_key, of_value] = to;
        let size = place.size;
        let own_rows = |start: usize| {
            HeadMut::of(
                (start as *mut f32).add(head * place.rows * size),
                size,
                0,
                size,
            )
        };
        let gradients = Gradients {
            query: HeadMut::of(of_query as *mut f32, place.heads * size, head, size),
            key: own_rows(of_key),
            value: own_rows(of_value),
        };
        clair_attention::backward(place.instructions, given, &side, scale, gradients);
    });
    Ok(())
}

/// The instructions that attention runs on, the kernel that texts are measured with permitting.
fn instructions() -> PyResult<Option<Instructions>> {
    let kernel = Kernel::chosen().map_err(to_python)?;
    let permitted = |instructions: &Instructions| match kernel {
        Kernel::Avx512Vbmi2 | Kernel::Avx512 => true,
        Kernel::Avx2 => *instructions == Instructions::Avx2,
        Kernel::Neon | Kernel::Portable => false,
    };
    Ok(Instructions::available().find(permitted))
}

/// The name of these instructions, None where there are none.
#[pyfunction]
pub fn attention_kernel() -> PyResult<Option<&'static str>> {
    Ok(instructions()?.map(Instructions::name))
}
