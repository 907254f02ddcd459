//! Token counts of whole columns against the encoder's own list of tokens.

#![no_main]

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use clair_core::stop::Stop;
use clair_core::{bpe, table};
use clair_fuzz::column;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (texts, column) = column(bytes);
    for name in bpe::ENCODINGS {
        let oracle = match name {
            "cl100k_base" => bpe_openai::cl100k_base(),
            "o200k_base" => bpe_openai::o200k_base(),
            other => panic!("no oracle for {other}"),
        };
        let found = table::count_tokens(&column, name, &Stop::new()).expect("counts");
        let expected: Vec<Option<u32>> = texts
            .iter()
            .map(|text| text.as_deref().map(|text| oracle.encode(text).len() as u32))
            .collect();
        let found: Vec<Option<u32>> = found.as_primitive::<UInt32Type>().iter().collect();
        assert_eq!(found, expected, "{name}");
    }
});
