//! Columns as they are decoded (bytes as views into pages) made into columns of the file's own types.

use std::sync::Arc;

use arrow_array::builder::{GenericByteBuilder, StringViewBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{BinaryType, ByteArrayType, LargeBinaryType, LargeUtf8Type, Utf8Type};
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, FixedSizeListArray, GenericListArray, MapArray,
    OffsetSizeTrait, StructArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, FieldRef};

/// The most bytes of one cell that are read; a row with a longer one is a bad row.
pub const MAX_CELL_BYTES: usize = 64 << 20;

/// What stands for a cell that is too long to be read. It is no UTF-8, so no text is taken for it.
const MARK: [u8; 17] = *b"\xff\xfe\x9bclair-too-long";

/// The mark of a cell of so many bytes.
pub fn mark(bytes: usize) -> Vec<u8> {
    let mut mark = MARK.to_vec();
    mark.extend((bytes as u64).to_le_bytes());
    mark
}

/// The bytes that a cell has in the file where they are too many.
fn long_of(cell: &[u8]) -> Option<usize> {
    if cell.len() > MAX_CELL_BYTES {
        return Some(cell.len());
    }
    let bytes = cell.strip_prefix(&MARK)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

/// What is wrong with a cell.
#[derive(Debug, PartialEq)]
pub enum Trouble {
    /// A text that is no UTF-8 from this byte on.
    NotUtf8 { column: String, byte: usize },
    /// More bytes than are read.
    TooLong { column: String, bytes: usize },
    /// Something that the types do not allow for.
    Other(String),
}

impl Trouble {
    /// The column, as a dotted path, and what people read about it.
    pub fn told(self) -> (Option<String>, String) {
        match self {
            Self::NotUtf8 { column, byte } => {
                let text = format!("text that is not UTF-8 (byte {byte} of a cell of `{column}`)");
                (Some(column), text)
            }
            Self::TooLong { column, bytes } => {
                let text = format!(
                    "a cell of `{column}` has {} MiB; at most {} are read",
                    bytes >> 20,
                    MAX_CELL_BYTES >> 20
                );
                (Some(column), text)
            }
            Self::Other(what) => (None, what),
        }
    }
}

impl From<ArrowError> for Trouble {
    fn from(error: ArrowError) -> Self {
        Self::Other(error.to_string())
    }
}

/// `array` with its views made into what `wanted` says. `wanted` may have more fields than were read.
pub fn materialised(array: &ArrayRef, wanted: &Field, path: &str) -> Result<ArrayRef, Trouble> {
    let inside = |field: &Field| match path {
        "" => field.name().clone(),
        _ => format!("{path}.{}", field.name()),
    };
    Ok(match (array.data_type(), wanted.data_type()) {
        (DataType::BinaryView, to) => bytes(array.as_binary_view(), to, path)?,
        (DataType::Struct(fields), DataType::Struct(to)) => {
            let from = array.as_struct();
            let mut read = Vec::with_capacity(fields.len());
            let mut types = Vec::with_capacity(fields.len());
            for (field, column) in fields.iter().zip(from.columns()) {
                let target = to
                    .iter()
                    .find(|f| f.name() == field.name())
                    .unwrap_or(field);
                let column = materialised(column, target, &inside(target))?;
                types.push(retyped(target, &column));
                read.push(column);
            }
            Arc::new(StructArray::try_new_with_length(
                types.into(),
                read,
                from.nulls().cloned(),
                from.len(),
            )?)
        }
        (DataType::List(_), DataType::List(to)) => list::<i32>(array, to, path)?,
        (DataType::LargeList(_), DataType::LargeList(to)) => list::<i64>(array, to, path)?,
        (DataType::FixedSizeList(_, size), DataType::FixedSizeList(to, _)) => {
            let from = array.as_fixed_size_list();
            // Of a slice the values are sliced too.
            let values = materialised(from.values(), to, path)?;
            Arc::new(FixedSizeListArray::try_new(
                retyped(to, &values),
                *size,
                values,
                from.nulls().cloned(),
            )?)
        }
        (DataType::Map(_, sorted), DataType::Map(to, _)) => {
            let from = array.as_map();
            let (offsets, entries) = used(from.offsets(), |a, n| from.entries().slice(a, n));
            let entries: ArrayRef = Arc::new(entries);
            let entries = materialised(&entries, to, path)?;
            Arc::new(MapArray::try_new(
                retyped(to, &entries),
                offsets,
                entries.as_struct().clone(),
                from.nulls().cloned(),
                *sorted,
            )?)
        }
        _ => array.clone(),
    })
}

/// `field` of the type that `array` has: fields that were not read are not in it.
fn retyped(field: &FieldRef, array: &ArrayRef) -> FieldRef {
    if field.data_type() == array.data_type() {
        return field.clone();
    }
    Arc::new(Field::clone(field).with_data_type(array.data_type().clone()))
}

fn list<O: OffsetSizeTrait>(
    array: &ArrayRef,
    to: &FieldRef,
    path: &str,
) -> Result<ArrayRef, Trouble> {
    let from: &GenericListArray<O> = array.as_list();
    let (offsets, values) = used(from.offsets(), |a, n| from.values().slice(a, n));
    let values = materialised(&values, to, path)?;
    Ok(Arc::new(GenericListArray::<O>::try_new(
        retyped(to, &values),
        offsets,
        values,
        from.nulls().cloned(),
    )?))
}

/// The values that a slice of a list uses, and its offsets into them.
fn used<O: OffsetSizeTrait, T>(
    offsets: &OffsetBuffer<O>,
    slice: impl Fn(usize, usize) -> T,
) -> (OffsetBuffer<O>, T) {
    let first = offsets.first().copied().unwrap_or_default();
    let last = offsets.last().copied().unwrap_or_default();
    let moved: ScalarBuffer<O> = offsets.iter().map(|&o| o - first).collect();
    let values = slice(first.as_usize(), (last - first).as_usize());
    (OffsetBuffer::new(moved), values)
}

fn bytes(from: &BinaryViewArray, to: &DataType, path: &str) -> Result<ArrayRef, Trouble> {
    let long = |i: &usize| from.is_valid(*i) && long_of(from.value(*i)).is_some();
    if let Some(row) = (0..from.len()).find(long) {
        return Err(Trouble::TooLong {
            column: path.to_owned(),
            bytes: long_of(from.value(row)).unwrap_or(0),
        });
    }
    Ok(match to {
        DataType::Utf8 => copied::<Utf8Type>(from, |b| checked(b, path))?,
        DataType::LargeUtf8 => copied::<LargeUtf8Type>(from, |b| checked(b, path))?,
        DataType::Binary => copied::<BinaryType>(from, Ok)?,
        DataType::LargeBinary => copied::<LargeBinaryType>(from, Ok)?,
        DataType::Utf8View => {
            // Copied too: a view keeps whole pages, of which a slice of rows may use a corner.
            let mut builder = StringViewBuilder::with_capacity(from.len());
            for cell in from {
                builder.append_option(cell.map(|b| checked(b, path)).transpose()?);
            }
            Arc::new(builder.finish())
        }
        _ => Arc::new(from.gc()),
    })
}

fn checked<'a>(bytes: &'a [u8], path: &str) -> Result<&'a str, Trouble> {
    std::str::from_utf8(bytes).map_err(|error| Trouble::NotUtf8 {
        column: path.to_owned(),
        byte: error.valid_up_to(),
    })
}

fn copied<'a, T: ByteArrayType>(
    from: &'a BinaryViewArray,
    value: impl Fn(&'a [u8]) -> Result<&'a T::Native, Trouble>,
) -> Result<ArrayRef, Trouble>
where
    T::Native: 'a,
{
    let size = from.lengths().map(|n| n as usize).sum();
    let mut builder = GenericByteBuilder::<T>::with_capacity(from.len(), size);
    for cell in from {
        builder.append_option(cell.map(&value).transpose()?);
    }
    Ok(Arc::new(builder.finish()))
}

/// Adds to each row of `sizes` about how many bytes its cells take.
pub fn add_sizes(array: &ArrayRef, sizes: &mut [usize]) {
    match array.data_type() {
        DataType::BinaryView => {
            let lengths = array.as_binary_view().lengths();
            sizes
                .iter_mut()
                .zip(lengths)
                .for_each(|(size, n)| *size += 16 + n as usize);
        }
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                add_sizes(column, sizes);
            }
        }
        DataType::List(_) => add_list_sizes::<i32>(
            array.as_list::<i32>().offsets(),
            array.as_list::<i32>().values(),
            sizes,
        ),
        DataType::LargeList(_) => add_list_sizes::<i64>(
            array.as_list::<i64>().offsets(),
            array.as_list::<i64>().values(),
            sizes,
        ),
        DataType::Map(_, _) => {
            let entries: ArrayRef = Arc::new(array.as_map().entries().clone());
            add_list_sizes(array.as_map().offsets(), &entries, sizes);
        }
        DataType::FixedSizeList(_, n) => {
            let mut inner = vec![0; array.as_fixed_size_list().values().len()];
            add_sizes(array.as_fixed_size_list().values(), &mut inner);
            let each = inner.chunks((*n).max(1) as usize);
            sizes
                .iter_mut()
                .zip(each)
                .for_each(|(size, part)| *size += part.iter().sum::<usize>());
        }
        other => {
            let width = other.primitive_width().unwrap_or(1);
            sizes.iter_mut().for_each(|size| *size += width);
        }
    }
}

fn add_list_sizes<O: OffsetSizeTrait>(
    offsets: &OffsetBuffer<O>,
    values: &ArrayRef,
    sizes: &mut [usize],
) {
    let mut inner = vec![0; values.len()];
    add_sizes(values, &mut inner);
    for (size, ends) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += 4 + inner[ends[0].as_usize()..ends[1].as_usize()]
            .iter()
            .sum::<usize>();
    }
}
