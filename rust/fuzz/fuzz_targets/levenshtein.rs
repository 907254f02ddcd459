//! Distances of several pairs at once, with every kernel that the machine has, against the plain table.

#![no_main]

use clair_core::cpu::Kernel;
use clair_core::levenshtein::plain;
use clair_core::pairs::Batch;
use clair_core::stop::Stop;
use clair_fuzz::{code_points, numbered, pairs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let pairs = pairs(bytes);
    let texts: Vec<_> = pairs
        .iter()
        .map(|(a, b)| (a.as_ref(), b.as_ref()))
        .collect();
    let chars: Vec<u32> = texts
        .iter()
        .map(|(a, b)| plain(&code_points(a), &code_points(b)))
        .collect();
    let words: Vec<u32> = texts
        .iter()
        .map(|(a, b)| {
            let (a, b) = numbered(a, b);
            plain(&a, &b)
        })
        .collect();
    for kernel in Kernel::available() {
        let (batch, stop) = (Batch::new(kernel), Stop::new());
        assert_eq!(
            batch.levenshtein_chars(&texts, &stop).unwrap(),
            chars,
            "{kernel:?}"
        );
        assert_eq!(
            batch.levenshtein_words(&texts, &stop).unwrap(),
            words,
            "{kernel:?}"
        );
        // Buffers that were used are as good as new ones.
        assert_eq!(
            batch.levenshtein_chars(&texts, &stop).unwrap(),
            chars,
            "{kernel:?}"
        );
    }
});
