//! Distances of whole columns, which may be taken several pairs at a time, against the plain table.

#![no_main]

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use clair_core::levenshtein::plain;
use clair_core::stop::Stop;
use clair_core::table::{self, Unit};
use clair_fuzz::{code_points, columns, numbered, text_column};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [a, b] = columns(bytes);
    let (left, right) = (text_column(&a), text_column(&b));
    let rows: Vec<_> = a
        .iter()
        .zip(&b)
        .map(|(x, y)| x.as_deref().zip(y.as_deref()))
        .collect();
    for unit in [Unit::Char, Unit::Word] {
        let expected: Vec<Option<u32>> = rows
            .iter()
            .map(|row| {
                row.map(|(x, y)| match unit {
                    Unit::Char => plain(&code_points(x), &code_points(y)),
                    Unit::Word => {
                        let (x, y) = numbered(x, y);
                        plain(&x, &y)
                    }
                })
            })
            .collect();
        let found = table::levenshtein(&left, &right, unit, &Stop::new()).expect("distances");
        let found: Vec<Option<u32>> = found.as_primitive::<UInt32Type>().iter().collect();
        assert_eq!(found, expected, "{unit:?}");
    }
});
