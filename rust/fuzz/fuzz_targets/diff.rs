//! Blocks cover both texts in order, replaying them gives the other text, and none is empty or idle.

#![no_main]

use clair_core::diff::Op;
use clair_core::pair::diff;
use clair_fuzz::{run, two};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (a, b) = two(bytes);
    let blocks = run(|scratch, stop| diff(&a, &b, scratch, stop));
    let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut at = (0, 0);
    let mut equal_before = None;
    for block in &blocks {
        assert_eq!((block.a_start, block.b_start), at);
        let old = &x[block.a_start as usize..block.a_end as usize];
        let new = &y[block.b_start as usize..block.b_end as usize];
        let op = match (old.is_empty(), new.is_empty()) {
            (true, true) => panic!("an empty block"),
            (true, false) => Op::Insert,
            (false, true) => Op::Delete,
            (false, false) if old == new => Op::Equal,
            (false, false) => Op::Replace,
        };
        assert_eq!(block.op, op);
        let equal = op == Op::Equal;
        assert_ne!(
            equal_before,
            Some(equal),
            "two blocks of a kind side by side"
        );
        equal_before = Some(equal);
        at = (block.a_end, block.b_end);
    }
    assert_eq!(at, (x.len() as u32, y.len() as u32));
});
