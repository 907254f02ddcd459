//! An open Parquet file: its footer, its Arrow schema, and how its columns are read.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema};
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

use super::source::Source;
use super::{file_error, io_error, unreadable};
use crate::Result;

pub struct ParquetFile {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    pub(super) metadata: Arc<ParquetMetaData>,
    /// The file's schema without its text annotations: the library would give up a whole row group for one
    /// text that is not UTF-8.
    pub(super) plain: SchemaDescriptor,
    schema: SchemaRef,
}

impl ParquetFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        let source = Source::new(file).map_err(|error| io_error(path, error))?;
        // The libraries panic over some damaged footers, such as a schema of types that do not exist.
        let read = || -> ParquetResult<_> {
            let metadata = ParquetMetaDataReader::new().parse_and_finish(&source)?;
            let (plain, schema) = schemas(metadata.file_metadata().schema_descr(), &metadata)?;
            Ok((metadata, plain, schema))
        };
        let (metadata, plain, schema) = catch_unwind(AssertUnwindSafe(read))
            .unwrap_or_else(|_| Err(ParquetError::General("its footer is damaged".to_owned())))
            .map_err(|error| file_error(path, error))?;
        // Names with a zero byte cannot be handed to anybody, and are a sign of damage.
        if schema.fields().iter().any(zero_in) {
            return Err(unreadable(path, "a column's name or type has a zero byte"));
        }
        Ok(Self {
            path: path.to_path_buf(),
            source,
            plain,
            schema: Arc::new(schema),
            metadata: Arc::new(metadata),
        })
    }

    /// The columns as `read` gives them: the Arrow types that the file was written from, but for
    /// dictionaries, which are an encoding here.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn rows(&self) -> u64 {
        let rows = self.metadata.row_groups().iter().map(|g| g.num_rows());
        rows.map(|n| u64::try_from(n).unwrap_or(0)).sum()
    }

    /// Dotted paths of all leaves, in order.
    pub fn leaves(&self) -> Vec<String> {
        let columns = self.plain.columns().iter();
        columns.map(|column| column.path().string()).collect()
    }

    /// The leaves that `columns` names: each by its path or by the beginning of it.
    pub(super) fn mask(&self, columns: Option<&[String]>) -> ProjectionMask {
        let Some(columns) = columns else {
            return ProjectionMask::all();
        };
        let named = |path: &str| {
            columns.iter().any(|c| {
                path.strip_prefix(c.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let leaves = self.leaves();
        let chosen = (0..leaves.len()).filter(|&i| named(&leaves[i]));
        ProjectionMask::leaves(&self.plain, chosen)
    }
}

fn zero_in(field: &FieldRef) -> bool {
    let zone = match field.data_type() {
        DataType::Timestamp(_, Some(zone)) => zone,
        _ => "",
    };
    let inner: &[FieldRef] = match field.data_type() {
        DataType::Struct(fields) => fields,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => std::slice::from_ref(item),
        _ => &[],
    };
    field.name().contains('\0') || zone.contains('\0') || inner.iter().any(zero_in)
}

fn schemas(
    descriptor: &SchemaDescriptor,
    metadata: &ParquetMetaData,
) -> ParquetResult<(SchemaDescriptor, Schema)> {
    let plain = SchemaDescriptor::new(without_text(&descriptor.root_schema_ptr())?);
    let written = metadata.file_metadata().key_value_metadata();
    // A schema in the metadata that cannot be decoded is a hint less, not a reason to refuse the file.
    let schema = parquet_to_arrow_schema(descriptor, written)
        .or_else(|_| parquet_to_arrow_schema(descriptor, None))?;
    let fields = schema.fields().iter().map(without_dictionary);
    let schema = Schema::new_with_metadata(fields.collect::<Fields>(), schema.metadata().clone());
    Ok((plain, schema))
}

fn without_text(node: &TypePtr) -> ParquetResult<TypePtr> {
    let info = node.get_basic_info();
    let id = info.has_id().then(|| info.id());
    let built = match &**node {
        Type::GroupType { fields, .. } => {
            let fields = fields
                .iter()
                .map(without_text)
                .collect::<ParquetResult<_>>()?;
            let mut group = Type::group_type_builder(node.name())
                .with_fields(fields)
                .with_id(id)
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned());
            if info.has_repetition() {
                group = group.with_repetition(info.repetition());
            }
            group.build()?
        }
        Type::PrimitiveType {
            physical_type: PhysicalType::BYTE_ARRAY,
            ..
        } if is_text(node) => Type::primitive_type_builder(node.name(), PhysicalType::BYTE_ARRAY)
            .with_repetition(info.repetition())
            .with_id(id)
            .build()?,
        Type::PrimitiveType { .. } => return Ok(node.clone()),
    };
    Ok(Arc::new(built))
}

fn is_text(node: &Type) -> bool {
    let info = node.get_basic_info();
    let converted = [
        ConvertedType::UTF8,
        ConvertedType::JSON,
        ConvertedType::ENUM,
        ConvertedType::BSON,
    ];
    matches!(
        info.logical_type_ref(),
        Some(LogicalType::String | LogicalType::Json | LogicalType::Enum | LogicalType::Bson)
    ) || converted.contains(&info.converted_type())
}

fn without_dictionary(field: &FieldRef) -> FieldRef {
    with_types(field, &|data_type| match data_type {
        DataType::Dictionary(_, values) => Some((**values).clone()),
        _ => None,
    })
}

/// `field` as it is decoded: bytes of whatever type as views into their pages.
pub(super) fn as_views(field: &FieldRef) -> FieldRef {
    with_types(field, &|data_type| match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::BinaryView),
        DataType::Binary | DataType::LargeBinary => Some(DataType::BinaryView),
        _ => None,
    })
}

/// `field` with the types in it that `replace` has another for.
fn with_types(field: &FieldRef, replace: &impl Fn(&DataType) -> Option<DataType>) -> FieldRef {
    let each = |fields: &Fields| fields.iter().map(|f| with_types(f, replace)).collect();
    let data_type = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(each(fields)),
        DataType::List(item) => DataType::List(with_types(item, replace)),
        DataType::LargeList(item) => DataType::LargeList(with_types(item, replace)),
        DataType::ListView(item) => DataType::ListView(with_types(item, replace)),
        DataType::LargeListView(item) => DataType::LargeListView(with_types(item, replace)),
        DataType::FixedSizeList(item, n) => DataType::FixedSizeList(with_types(item, replace), *n),
        DataType::Map(entries, sorted) => DataType::Map(with_types(entries, replace), *sorted),
        other => match replace(other) {
            Some(new) => new,
            None => return field.clone(),
        },
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}
