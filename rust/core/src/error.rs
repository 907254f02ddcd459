/// What can go wrong; each variant's text is meant for the person who called.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "`{left}` has {left_len} rows and `{right}` has {right_len}: columns of a pair must have the same length"
    )]
    LengthMismatch {
        left: String,
        left_len: usize,
        right: String,
        right_len: usize,
    },
    #[error(
        "`{column}` is of type {data_type}, which is not text: expected a column of strings (Utf8, LargeUtf8, Utf8View or a dictionary of these)"
    )]
    NotText { column: String, data_type: String },
    #[error("`{column}` holds text that is not UTF-8 (row {row} of chunk {chunk})")]
    NotUtf8 {
        column: String,
        chunk: usize,
        row: usize,
    },
    #[error("`{column}` is damaged: row {row} of chunk {chunk} lies outside of the column's data")]
    Damaged {
        column: String,
        chunk: usize,
        row: usize,
    },
    #[error("unknown encoding '{name}': known are {known}")]
    UnknownEncoding { name: String, known: String },
    #[error("CLAIR_APO_KERNEL names '{name}', which this machine does not have: it has {known}")]
    UnknownKernel { name: String, known: String },
    #[error("a text of {bytes} bytes is too long: 4 GiB is the limit of one text")]
    TooLong { bytes: usize },
    #[error(
        "the benchmarks hold more than four billion different {what}, which is more than an index takes"
    )]
    TooMany { what: &'static str },
    #[error("{0}")]
    Setting(String),
    #[error("a temporary file cannot be written or read: {0}")]
    Temporary(#[from] std::io::Error),
    #[error(transparent)]
    Arrow(#[from] arrow_schema::ArrowError),
    #[error("stopped before the end")]
    Stopped,
}

pub type Result<T> = std::result::Result<T, Error>;
