//! A file's rows as batches of a few megabytes, decoded on a thread of their own.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, StructArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::{FieldLevels, ProjectionMask, parquet_to_arrow_field_levels};

use super::cells::{Trouble, add_sizes, materialised};
use super::file::{ParquetFile, as_views};
use super::source::Group;
use super::{file_error, text_of};
use crate::{Error, Result};

/// What one step of a reader gives: rows, or rows that are lost and why.
#[derive(Debug)]
pub enum Item {
    Batch(RecordBatch),
    Lost {
        rows: usize,
        reason: String,
        column: Option<String>,
    },
}

impl Item {
    pub fn rows(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.num_rows(),
            Self::Lost { rows, .. } => *rows,
        }
    }
}

/// How large a batch may be; a single row that is larger is a batch of its own.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

/// Rows as they are decoded: whatever is bytes in the file as `BinaryView`.
pub struct Views {
    file: Arc<ParquetFile>,
    mask: ProjectionMask,
    levels: FieldLevels,
    limits: Limits,
    group: usize,
    open: Option<Open>,
}

/// The row group that is being read.
struct Open {
    reader: ParquetRecordBatchReader,
    left: usize,
}

impl Views {
    /// `columns` names leaves or what they are part of; none means all.
    pub fn new(file: Arc<ParquetFile>, columns: Option<&[String]>, limits: Limits) -> Result<Self> {
        let mask = file.mask(columns);
        let hint: Fields = file.schema().fields().iter().map(as_views).collect();
        let levels = parquet_to_arrow_field_levels(&file.plain, mask.clone(), Some(&hint))
            .map_err(|error| file_error(&file.path, error))?;
        Ok(Self {
            file,
            mask,
            levels,
            limits,
            group: 0,
            open: None,
        })
    }

    fn reader(
        &self,
        levels: &FieldLevels,
        group: usize,
        mask: &ProjectionMask,
    ) -> parquet::errors::Result<ParquetRecordBatchReader> {
        let file = &self.file;
        let group = Group::new(file.source.clone(), file.metadata.clone(), group, mask);
        let each = usize::try_from(group.row_bytes())
            .unwrap_or(usize::MAX)
            .max(1);
        let rows = (self.limits.bytes / each).clamp(1, self.limits.rows.max(1));
        ParquetRecordBatchReader::try_new_with_row_groups(levels, &group, rows, None)
    }

    /// The rows that are left of the open group as lost, with what is wrong and in which column.
    fn lost(&mut self, rows: usize, what: &str) -> Item {
        let group = self.group;
        self.open = None;
        self.group += 1;
        let column = self.culprit(group);
        let name = self
            .file
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let of = column
            .as_ref()
            .map_or_else(String::new, |c| format!("column `{c}` of "));
        let reason = format!("{of}row group {group} of {name} cannot be read: {what}");
        Item::Lost {
            rows,
            reason,
            column,
        }
    }

    /// The first column of a group that by itself cannot be read to its end.
    fn culprit(&self, group: usize) -> Option<String> {
        let hint: Fields = self.file.schema().fields().iter().map(as_views).collect();
        let leaves = self.file.leaves();
        let broken = |leaf: usize| {
            let mask = ProjectionMask::leaves(&self.file.plain, [leaf]);
            let read = || -> parquet::errors::Result<()> {
                let levels =
                    parquet_to_arrow_field_levels(&self.file.plain, mask.clone(), Some(&hint))?;
                self.reader(&levels, group, &mask)?
                    .try_for_each(|batch| batch.map(drop))?;
                Ok(())
            };
            !matches!(catch_unwind(AssertUnwindSafe(read)), Ok(Ok(())))
        };
        let mut chosen = (0..leaves.len()).filter(|&i| self.mask.leaf_included(i));
        chosen
            .find(|&leaf| broken(leaf))
            .map(|leaf| leaves[leaf].clone())
    }

    /// The next rows of the open group; none where it has no more.
    fn step(&mut self) -> Option<std::result::Result<RecordBatch, String>> {
        let open = self.open.as_mut()?;
        // The library is not written for hostile files: what it stumbles over is a broken file.
        match catch_unwind(AssertUnwindSafe(|| open.reader.next())) {
            Ok(Some(Ok(batch))) => Some(Ok(batch)),
            Ok(Some(Err(error))) => Some(Err(text_of(&error))),
            Ok(None) if open.left > 0 => Some(Err("it ends too early".to_owned())),
            Ok(None) => None,
            Err(_) => Some(Err("its pages are damaged".to_owned())),
        }
    }
}

impl Iterator for Views {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if self.open.is_none() {
                let metadata = self.file.metadata.row_groups().get(self.group)?;
                let left = usize::try_from(metadata.num_rows()).unwrap_or(0);
                if left == 0 {
                    self.group += 1;
                    continue;
                }
                let opened = catch_unwind(AssertUnwindSafe(|| {
                    self.reader(&self.levels, self.group, &self.mask)
                }));
                match opened {
                    Ok(Ok(reader)) => self.open = Some(Open { reader, left }),
                    Ok(Err(error)) => return Some(self.lost(left, &text_of(&error))),
                    Err(_) => return Some(self.lost(left, "its pages are damaged")),
                }
            }
            let left = self.open.as_ref().map_or(0, |open| open.left);
            match self.step() {
                Some(Ok(batch)) => {
                    if let Some(open) = &mut self.open {
                        open.left = left.saturating_sub(batch.num_rows());
                    }
                    return Some(Item::Batch(batch));
                }
                Some(Err(what)) => return Some(self.lost(left, &what)),
                None => {
                    self.open = None;
                    self.group += 1;
                }
            }
        }
    }
}

/// Makes views into the file's own types, a batch bounded in bytes.
pub struct OwnTypes {
    wanted: Field,
    metadata: HashMap<String, String>,
    bytes: usize,
}

impl OwnTypes {
    pub fn new(file: &ParquetFile, bytes: usize) -> Self {
        let schema = file.schema();
        Self {
            wanted: Field::new("", DataType::Struct(schema.fields().clone()), false),
            metadata: schema.metadata().clone(),
            bytes,
        }
    }

    /// `batch` cut where its bytes pass the limit.
    pub fn cut(&self, batch: &RecordBatch) -> VecDeque<RecordBatch> {
        let mut sizes = vec![0; batch.num_rows()];
        for column in batch.columns() {
            add_sizes(column, &mut sizes);
        }
        let mut parts = VecDeque::new();
        let (mut start, mut bytes) = (0, 0);
        for (row, size) in sizes.iter().enumerate() {
            if row > start && bytes + size > self.bytes {
                parts.push_back(batch.slice(start, row - start));
                (start, bytes) = (row, 0);
            }
            bytes += size;
        }
        parts.push_back(batch.slice(start, batch.num_rows() - start));
        parts
    }

    fn batch(&self, views: &RecordBatch) -> std::result::Result<RecordBatch, Trouble> {
        let rows: ArrayRef = Arc::new(StructArray::from(views.clone()));
        let rows = materialised(&rows, &self.wanted, "")?;
        let rows = rows.as_struct();
        let schema = Schema::new_with_metadata(rows.fields().clone(), self.metadata.clone());
        let options = RecordBatchOptions::new().with_row_count(Some(views.num_rows()));
        Ok(RecordBatch::try_new_with_options(
            Arc::new(schema),
            rows.columns().to_vec(),
            &options,
        )?)
    }

    /// The first rows of `ready`. A cell that cannot be read is one lost row.
    pub fn next(&self, ready: &mut VecDeque<RecordBatch>) -> Option<Item> {
        loop {
            let views = ready.pop_front()?;
            match self.batch(&views) {
                Ok(batch) => return Some(Item::Batch(batch)),
                Err(trouble) if views.num_rows() <= 1 => {
                    let (column, reason) = trouble.told();
                    return Some(Item::Lost {
                        rows: 1,
                        reason,
                        column,
                    });
                }
                Err(_) => {
                    let half = views.num_rows() / 2;
                    ready.push_front(views.slice(half, views.num_rows() - half));
                    ready.push_front(views.slice(0, half));
                }
            }
        }
    }
}

/// A file's rows in its own types.
pub struct Batches {
    views: Views,
    own: OwnTypes,
    ready: VecDeque<RecordBatch>,
}

impl Batches {
    pub fn new(file: Arc<ParquetFile>, columns: Option<&[String]>, limits: Limits) -> Result<Self> {
        Ok(Self {
            own: OwnTypes::new(&file, limits.bytes),
            views: Views::new(file, columns, limits)?,
            ready: VecDeque::new(),
        })
    }
}

impl Iterator for Batches {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.own.next(&mut self.ready) {
                return Some(item);
            }
            match self.views.next()? {
                Item::Batch(batch) => self.ready = self.own.cut(&batch),
                lost => return Some(lost),
            }
        }
    }
}

/// What a thread of its own takes from an iterator, one item ahead of who asks.
pub struct Ahead<T>(Receiver<T>);

/// Starts a thread that runs `items`; it ends with them, or when the result is dropped.
pub fn ahead<T: Send + 'static>(
    items: impl Iterator<Item = T> + Send + 'static,
) -> Result<Ahead<T>> {
    // Without room: the thread keeps one item until it is taken, and then decodes the next.
    let (sender, receiver) = sync_channel(0);
    std::thread::Builder::new()
        .name("clair-read".to_owned())
        .spawn(move || {
            for item in items {
                if sender.send(item).is_err() {
                    return;
                }
            }
        })
        .map_err(Error::Thread)?;
    Ok(Ahead(receiver))
}

impl<T> Ahead<T> {
    /// The next item; none at the end. Waits no longer than `patience`, then it is `Err`.
    pub fn next(&self, patience: Duration) -> std::result::Result<Option<T>, RecvTimeoutError> {
        match self.0.recv_timeout(patience) {
            Ok(item) => Ok(Some(item)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(timeout) => Err(timeout),
        }
    }
}
