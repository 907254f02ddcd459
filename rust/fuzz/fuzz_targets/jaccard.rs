//! Jaccard of several pairs against sets of words, and all measures together against each one alone, with
//! every kernel that the machine has.

#![no_main]

use std::collections::HashSet;

use clair_core::cpu::Kernel;
use clair_core::pairs::Batch;
use clair_core::stop::Stop;
use clair_fuzz::{pairs, words};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let pairs = pairs(bytes);
    let texts: Vec<_> = pairs
        .iter()
        .map(|(a, b)| (a.as_ref(), b.as_ref()))
        .collect();
    let stop = Stop::new();
    for kernel in Kernel::available() {
        let batch = Batch::new(kernel);
        let measures = batch.measures(&texts, &stop).unwrap();
        let jaccards = batch.jaccards(&texts, &stop).unwrap();
        let chars = batch.levenshtein_chars(&texts, &stop).unwrap();
        let edits = batch.levenshtein_words(&texts, &stop).unwrap();
        for (row, (a, b)) in texts.iter().enumerate() {
            let (x, y) = (words(a), words(b));
            let of_both = &measures[row];
            assert_eq!(of_both.levenshtein, chars[row]);
            assert_eq!(of_both.word_edits, edits[row]);
            assert_eq!(of_both.edit_position.iter().sum::<u32>(), edits[row]);
            assert_eq!(of_both.rejected_words as usize, x.len());
            assert_eq!(of_both.chosen_words as usize, y.len());
            assert_eq!(of_both.rejected_chars as usize, a.chars().count());
            assert_eq!(of_both.chosen_chars as usize, b.chars().count());
            assert_eq!(of_both.identical, a == b);
            let (x, y): (HashSet<_>, HashSet<_>) =
                (x.into_iter().collect(), y.into_iter().collect());
            let expected = match x.union(&y).count() {
                0 => 1.0,
                union => x.intersection(&y).count() as f64 / union as f64,
            };
            assert_eq!((jaccards[row], of_both.jaccard), (expected, expected));
        }
    }
});
