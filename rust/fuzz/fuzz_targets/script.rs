//! The word script: applied it gives the other text's words, and it costs the word distance.

#![no_main]

use clair_core::levenshtein::plain;
use clair_core::pair::word_script;
use clair_core::script::UnitOp;
use clair_fuzz::{numbered, run, two};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (a, b) = two(bytes);
    let units = run(|scratch, stop| word_script(&a, &b, scratch, stop));
    let (x, y) = numbered(&a, &b);
    let mut out: Vec<u32> = Vec::new();
    let mut at = 0;
    for unit in &units {
        out.extend_from_slice(&x[at..unit.a as usize]);
        assert_eq!(out.len(), unit.b as usize);
        at = unit.a as usize + usize::from(unit.op != UnitOp::Insert);
        if unit.op != UnitOp::Delete {
            out.push(y[unit.b as usize]);
        }
    }
    out.extend_from_slice(&x[at..]);
    assert_eq!(out, y);
    assert_eq!(units.len() as u32, plain(&x, &y));
});
