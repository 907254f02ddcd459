//! Running work without the interpreter: on all cores, and so that Ctrl-C ends it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clair_core::stop::Stop;
use clair_core::{Error, Result};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// How often signals are looked at while work is under way.
pub const POLL: Duration = Duration::from_millis(50);

/// Texts of a single call up to this many bytes are not worth a thread.
const SMALL: usize = 1 << 14;

pub fn to_python(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::NotText { .. } => PyTypeError::new_err(text),
        Error::LengthMismatch { .. }
        | Error::NotUtf8 { .. }
        | Error::Damaged { .. }
        | Error::UnknownEncoding { .. }
        | Error::UnknownKernel { .. }
        | Error::TooMany { .. }
        | Error::Setting(_)
        | Error::BadTokenizer { .. }
        | Error::Parquet { .. }
        | Error::TooLong { .. } => PyValueError::new_err(text),
        Error::Temporary(error) => match error.raw_os_error() {
            Some(number) => PyOSError::new_err((number, text)),
            None => PyOSError::new_err(text),
        },
        // With its number, from which Python finds the kind: FileNotFoundError, PermissionError …
        Error::Io { path, source } => {
            let number = source.raw_os_error();
            PyOSError::new_err((number, described(&source), path))
        }
        Error::Arrow(_) | Error::Thread(_) | Error::Stopped => PyRuntimeError::new_err(text),
    }
}

/// What the system says, without the number that Rust puts behind it.
fn described(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Threads do not survive a fork, so each process has a pool of its own.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

fn pool() -> PyResult<Arc<ThreadPool>> {
    let process = std::process::id();
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = &*slot
        && *owner == process
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new()
        .thread_name(|i| format!("clair-{i}"))
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("no threads to work with: {error}")))?;
    let pool = Arc::new(pool);
    // A pool of the parent has no threads here; ending it would wait for locks that they held.
    std::mem::forget(slot.replace((process, Arc::clone(&pool))));
    Ok(pool)
}

/// A panic is a bug of ours; Python shall see it as an ordinary error.
fn guarded<T>(work: impl FnOnce(&Stop) -> Result<T>, stop: &Stop) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(|| work(stop))) {
        Ok(result) => result.map_err(to_python),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(PyRuntimeError::new_err(format!("internal error: {text}")))
        }
    }
}

/// Runs `work` on the pool while this thread waits, without the interpreter, and looks at signals.
pub fn run<T: Send>(py: Python<'_>, work: impl FnOnce(&Stop) -> Result<T> + Send) -> PyResult<T> {
    let pool = pool()?;
    let stop = Stop::new();
    let (sender, receiver) = channel();
    pool.in_place_scope(|scope| {
        let stop = &stop;
        scope.spawn(move |_| {
            // The receiver is gone only after an interrupt, when nobody wants the result.
            let _ = sender.send(guarded(work, stop));
        });
        // The receiver is lent to the waiting part alone.
        let receiver = Mutex::new(receiver);
        let wait = || {
            let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.recv_timeout(POLL)
        };
        let mut interrupt = None;
        loop {
            match py.detach(wait) {
                Ok(result) => return interrupt.map_or(result, Err),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(PyRuntimeError::new_err(
                        "a worker thread ended without a result",
                    ));
                }
            }
            if interrupt.is_none()
                && let Err(error) = py.check_signals()
            {
                stop.set();
                interrupt = Some(error);
            }
        }
    })
}

/// As `run`, for one text or pair of `bytes` bytes: what takes no time is done on this thread.
pub fn run_small<T: Send>(
    py: Python<'_>,
    bytes: usize,
    work: impl FnOnce(&Stop) -> Result<T> + Send,
) -> PyResult<T> {
    if bytes > SMALL {
        return run(py, work);
    }
    py.detach(|| guarded(work, &Stop::new()))
}
