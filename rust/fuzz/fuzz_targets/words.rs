//! Words and their places against one expression of a regex engine.

#![no_main]

use clair_core::words::split;
use clair_fuzz::{text, words};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = text(bytes);
    let found = split(&text).expect("a short text");
    assert_eq!(found.chars as usize, text.chars().count());
    let list: Vec<&str> = found.words.iter().map(|w| w.of(&text)).collect();
    assert_eq!(list, words(&text));
    let mut at = (0, 0);
    for word in &found.words {
        let (start, end) = (word.start as usize, word.end as usize);
        at.1 += text[at.0..start].chars().count();
        assert_eq!(word.char_start as usize, at.1);
        at = (end, at.1 + text[start..end].chars().count());
        assert_eq!(word.char_end as usize, at.1);
    }
});
