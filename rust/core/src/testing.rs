//! Random texts for the property tests of this crate.

use proptest::prelude::*;

/// Texts of few different characters, so that words and characters repeat, of many scripts.
pub fn text() -> impl Strategy<Value = String> {
    let few = "[ab \n.é漢\u{301}👍_0]{0,80}";
    let many = any::<String>();
    let words = prop::collection::vec(
        prop::sample::select(vec![
            "the", "a", "cat", " ", "  ", "\n", "、", "漢字", "x1", "—", "👍🏽", "é",
        ]),
        0..120,
    )
    .prop_map(|parts| parts.join(" "));
    prop_oneof![few, many, words]
}

/// Numbers that repeat, up to a few blocks of 64.
pub fn symbols(longest: usize) -> impl Strategy<Value = Vec<u32>> {
    (1_u32..40).prop_flat_map(move |kinds| prop::collection::vec(0..kinds, 0..longest))
}
