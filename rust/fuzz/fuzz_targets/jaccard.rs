//! Jaccard of whole columns against sets of words, and every other measure against each other.

#![no_main]

use std::collections::HashSet;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type};
use clair_core::stop::Stop;
use clair_core::table::{self, Unit};
use clair_fuzz::{columns, text_column, words};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [a, b] = columns(bytes);
    let (left, right, stop) = (text_column(&a), text_column(&b), Stop::new());
    let found = table::jaccard(&left, &right, &stop).expect("similarities");
    let found = found.as_primitive::<Float64Type>();
    let score = table::score(&left, &right, &stop).expect("measures");
    assert_eq!(score["jaccard"].as_primitive::<Float64Type>(), found);
    for (name, unit) in [("levenshtein", Unit::Char), ("word_edits", Unit::Word)] {
        let alone = table::levenshtein(&left, &right, unit, &stop).expect("distances");
        assert_eq!(
            score[name].as_primitive::<UInt32Type>(),
            alone.as_primitive()
        );
    }
    for (row, (x, y)) in a.iter().zip(&b).enumerate() {
        let expected = x.as_deref().zip(y.as_deref()).map(|(x, y)| {
            let (x, y): (HashSet<_>, HashSet<_>) = (
                words(x).into_iter().collect(),
                words(y).into_iter().collect(),
            );
            match x.union(&y).count() {
                0 => 1.0,
                union => x.intersection(&y).count() as f64 / union as f64,
            }
        });
        assert_eq!(found.iter().nth(row).flatten(), expected);
    }
});
