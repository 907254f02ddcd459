//! Blocks cover both texts in order, replaying them gives the other text, and none is empty or idle; they are
//! the same alone and among several pairs, with every kernel that the machine has.

#![no_main]

use clair_core::cpu::Kernel;
use clair_core::diff::{Block, Op};
use clair_core::pair::diff;
use clair_core::pairs::Batch;
use clair_core::stop::Stop;
use clair_fuzz::{pairs, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let pairs = pairs(bytes);
    let texts: Vec<_> = pairs
        .iter()
        .map(|(a, b)| (a.as_ref(), b.as_ref()))
        .collect();
    let alone: Vec<Vec<Block>> = texts
        .iter()
        .map(|(a, b)| run(|scratch, stop| diff(a, b, scratch, stop)))
        .collect();
    for ((a, b), blocks) in texts.iter().zip(&alone) {
        check(a, b, blocks);
    }
    for kernel in Kernel::available() {
        let together = Batch::new(kernel).diffs(&texts, &Stop::new()).unwrap();
        assert_eq!(together, alone, "{kernel:?}");
    }
});

fn check(a: &str, b: &str, blocks: &[Block]) {
    let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut at = (0, 0);
    let mut equal_before = None;
    for block in blocks {
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
}
