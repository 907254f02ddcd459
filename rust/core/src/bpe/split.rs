//! Cutting a text into the pieces that are encoded each by itself: what the patterns of the tokenizers
//! match, without a regular expression.
//!
//! The patterns are alike: contractions, words, numbers, runs of other characters, white space. `Rules`
//! says where they differ. Unicode's classes are those of version 16, as in tiktoken and tokenizers.

use std::sync::LazyLock;

use crate::unicode::Classes;

const CAPITAL: u8 = 1; // Lu, Lt
const SMALL: u8 = 2; // Ll
const UNCASED: u8 = 4; // Lm, Lo
const MARK: u8 = 8; // M
const NUMBER: u8 = 16; // N
const SPACE: u8 = 32; // White_Space
const NEWLINE: u8 = 64; // CR and LF, which are SPACE too
const LATER_NUMBER: u8 = 128; // not assigned in Unicode 16, numbers in 17
const LETTER: u8 = CAPITAL | SMALL | UNCASED;

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    Classes::of_patterns(
        0,
        &[
            (r"[\p{Lu}\p{Lt}]", CAPITAL),
            (r"\p{Ll}", SMALL),
            (r"[\p{Lm}\p{Lo}]", UNCASED),
            (r"\p{M}", MARK),
            (r"\p{N}", NUMBER),
            (r"[\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}]", LATER_NUMBER),
            (r"\s", SPACE),
            (r"[\r\n]", SPACE | NEWLINE),
        ],
    )
});

const ASCII: [u8; 128] = {
    let mut classes = [0; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'A'..=b'Z' => CAPITAL,
            b'a'..=b'z' => SMALL,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => SPACE | NEWLINE,
            b' ' | b'\t' | 0x0b | 0x0c => SPACE,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

/// Where contractions ('s, 't, 're, 've, 'm, 'll, 'd) are cut.
#[derive(PartialEq, Eq)]
pub enum Contractions {
    /// A piece of their own, in small letters.
    Small,
    /// A piece of their own, in any case.
    Any,
    /// The end of a word, in any case.
    OfWord,
    None,
}

/// How a number is cut.
#[derive(PartialEq, Eq)]
pub enum Digits {
    /// Up to so many characters.
    UpTo(usize),
    /// All there are, with a space in front.
    Spaced,
    /// One character; what stands before it does not see it, as if the text ended. This cut is made by
    /// the Rust library, whose numbers are Unicode 17's.
    Apart,
}

/// White space before anything that is not: its last character is left for the next piece.
#[derive(PartialEq, Eq)]
pub enum Space {
    /// `\s+(?!\S)|\s+`
    Plain,
    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    Lines,
    /// `\s+$|\s*[\r\n]+|\s+(?!\S)|\s+`
    EndThenLines,
}

/// What tells the patterns apart.
pub trait Rules {
    const CONTRACTIONS: Contractions;
    const DIGITS: Digits;
    const SPACE: Space;
    /// Words are capitals and then small letters, with their marks, rather than any letters.
    const CASED: bool;
    /// Any one character but letters, numbers and newlines goes with the word after it, not only a space.
    const ANY_LEAD: bool;
    /// What goes with other characters before it.
    const AFTER_OTHER: &[u8];
}

pub struct Cl100k;

impl Rules for Cl100k {
    const CONTRACTIONS: Contractions = Contractions::Any;
    const DIGITS: Digits = Digits::UpTo(3);
    const SPACE: Space = Space::EndThenLines;
    const CASED: bool = false;
    const ANY_LEAD: bool = true;
    const AFTER_OTHER: &[u8] = b"\r\n";
}

pub struct O200k;

impl Rules for O200k {
    const CONTRACTIONS: Contractions = Contractions::OfWord;
    const DIGITS: Digits = Digits::UpTo(3);
    const SPACE: Space = Space::Lines;
    const CASED: bool = true;
    const ANY_LEAD: bool = true;
    const AFTER_OTHER: &[u8] = b"\r\n/";
}

pub struct Gpt2;

impl Rules for Gpt2 {
    const CONTRACTIONS: Contractions = Contractions::Small;
    const DIGITS: Digits = Digits::Spaced;
    const SPACE: Space = Space::Plain;
    const CASED: bool = false;
    const ANY_LEAD: bool = false;
    const AFTER_OTHER: &[u8] = b"";
}

/// `Gpt2` on what lies between single digits.
pub struct Gpt2DigitsApart;

impl Rules for Gpt2DigitsApart {
    const DIGITS: Digits = Digits::Apart;
    const CONTRACTIONS: Contractions = Gpt2::CONTRACTIONS;
    const SPACE: Space = Gpt2::SPACE;
    const CASED: bool = Gpt2::CASED;
    const ANY_LEAD: bool = Gpt2::ANY_LEAD;
    const AFTER_OTHER: &[u8] = Gpt2::AFTER_OTHER;
}

/// The pattern of Llama 3: cl100k's as it was before it looked for the end of the text.
pub struct Llama3;

impl Rules for Llama3 {
    const SPACE: Space = Space::Lines;
    const CONTRACTIONS: Contractions = Cl100k::CONTRACTIONS;
    const DIGITS: Digits = Cl100k::DIGITS;
    const CASED: bool = Cl100k::CASED;
    const ANY_LEAD: bool = Cl100k::ANY_LEAD;
    const AFTER_OTHER: &[u8] = Cl100k::AFTER_OTHER;
}

/// The pattern of Qwen 2: Llama 3's with single digits.
pub struct Qwen2;

impl Rules for Qwen2 {
    const DIGITS: Digits = Digits::UpTo(1);
    const CONTRACTIONS: Contractions = Llama3::CONTRACTIONS;
    const SPACE: Space = Llama3::SPACE;
    const CASED: bool = Llama3::CASED;
    const ANY_LEAD: bool = Llama3::ANY_LEAD;
    const AFTER_OTHER: &[u8] = Llama3::AFTER_OTHER;
}

/// The pattern of Mistral's Tekken: o200k's with single digits and without contractions.
pub struct Tekken;

impl Rules for Tekken {
    const CONTRACTIONS: Contractions = Contractions::None;
    const DIGITS: Digits = Digits::UpTo(1);
    const SPACE: Space = O200k::SPACE;
    const CASED: bool = O200k::CASED;
    const ANY_LEAD: bool = O200k::ANY_LEAD;
    const AFTER_OTHER: &[u8] = O200k::AFTER_OTHER;
}

/// A character's class and length; at the end of the text class 0 and length 0.
#[inline]
fn class_at(text: &str, at: usize) -> (u8, usize) {
    match text.as_bytes().get(at) {
        Some(&byte) if byte < 128 => (ASCII[usize::from(byte)], 1),
        Some(_) => wide_class_at(text, at),
        None => (0, 0),
    }
}

#[inline(never)]
fn wide_class_at(text: &str, at: usize) -> (u8, usize) {
    let character = text[at..].chars().next();
    character.map_or((0, 0), |c| (CLASSES.of(c), c.len_utf8()))
}

/// Where the run of characters of `classes` ends that begins at `at`.
#[inline]
fn run_end(text: &str, mut at: usize, classes: u8) -> usize {
    loop {
        let (class, length) = class_at(text, at);
        if class & classes == 0 {
            return at;
        }
        at += length;
    }
}

/// Where the run of ASCII letters ends that begins at `at`; with `ONLY_SMALL`, of small ones.
#[inline]
fn ascii_letters_end<const ONLY_SMALL: bool>(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    while let Some(&eight) = bytes[at..].first_chunk::<8>() {
        let eight = u64::from_le_bytes(eight);
        let small = if ONLY_SMALL { eight } else { eight | ONES << 5 };
        let low = small & !HIGH;
        // The high bit of each sum says that the byte is at least `a`, or beyond `z`.
        let from_a = low + ONES * (128 - b'a' as u64);
        let beyond_z = low + ONES * (127 - b'z' as u64);
        let others = !(from_a & !beyond_z & !eight) & HIGH;
        if others != 0 {
            return at + (others.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let letter = |byte: &u8| match ONLY_SMALL {
        true => byte.is_ascii_lowercase(),
        false => byte.is_ascii_alphabetic(),
    };
    at + bytes[at..].iter().take_while(|byte| letter(byte)).count()
}

/// Where the letters end that begin at `at`.
#[inline]
fn letters_end(text: &str, mut at: usize) -> usize {
    let bytes = text.as_bytes();
    loop {
        at = ascii_letters_end::<false>(bytes, at);
        if bytes.get(at).is_none_or(u8::is_ascii) {
            return at;
        }
        let (class, length) = wide_class_at(text, at);
        if class & LETTER == 0 {
            return at;
        }
        at += length;
    }
}

/// Where a contraction ends whose apostrophe is at `at`.
fn contraction_end(bytes: &[u8], at: usize, any_case: bool) -> Option<usize> {
    let small = |byte: u8| if any_case { byte | 0x20 } else { byte };
    let rest = bytes.get(at + 1..)?;
    match rest {
        // The long s folds to s.
        [0xc5, 0xbf, ..] if any_case => return Some(at + 3),
        _ => {}
    }
    let (&first, rest) = rest.split_first()?;
    match small(first) {
        b's' | b't' | b'm' | b'd' => Some(at + 2),
        first @ (b'r' | b'v' | b'l') => {
            let second = if first == b'l' { b'l' } else { b'e' };
            (small(*rest.first()?) == second).then_some(at + 3)
        }
        _ => None,
    }
}

/// Where a cased word ends that begins at `at`, or after one character in front of it, whose class is
/// `class`, if that is not a letter.
fn cased_word_end(text: &str, at: usize, class: u8, length: usize) -> Option<usize> {
    const BEGIN: u8 = CAPITAL | UNCASED | MARK;
    const END: u8 = SMALL | UNCASED | MARK;
    let can_lead = class & (LETTER | NUMBER | NEWLINE) == 0;
    let starts = [can_lead.then_some(at + length), Some(at)];
    // Capitals as far as they go, and then at least one of what may end a word: if nothing follows, the
    // last of them that may.
    for start in starts.into_iter().flatten() {
        let (mut here, mut ended) = (start, None);
        loop {
            let (class, length) = class_at(text, here);
            if class & BEGIN == 0 {
                break;
            }
            here += length;
            if class & END != 0 {
                ended = Some(here);
            }
        }
        let end = run_end(text, here, END);
        if end > here {
            return Some(end);
        }
        if ended.is_some() {
            return ended;
        }
    }
    // Capitals alone.
    starts.into_iter().flatten().find_map(|start| {
        let end = run_end(text, start, BEGIN);
        (end > start).then_some(end)
    })
}

/// Where the word ends that begins at `at`, with whatever character may stand in front of it.
#[inline]
fn word_end<R: Rules>(text: &str, at: usize, class: u8, length: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let first = if class & LETTER == 0 { at + length } else { at };
    if !R::CASED {
        let end = letters_end(text, first);
        return (end > first).then_some(end);
    }
    let capitals = bytes[first..]
        .iter()
        .take_while(|byte| byte.is_ascii_uppercase());
    let end = ascii_letters_end::<true>(bytes, first + capitals.count());
    let wide = |at: usize| bytes.get(at).is_some_and(|byte| !byte.is_ascii());
    let end = if wide(at) || wide(end) {
        cased_word_end(text, at, class, length)?
    } else if end > first {
        end
    } else {
        return None;
    };
    if R::CONTRACTIONS == Contractions::OfWord && bytes.get(end) == Some(&b'\'') {
        return contraction_end(bytes, end, true).or(Some(end));
    }
    Some(end)
}

fn space_end<R: Rules>(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut end, mut last, mut line) = (start, start, None);
    let next = loop {
        let (class, length) = class_at(text, end);
        if class & SPACE == 0 {
            break class;
        }
        last = end;
        end += length;
        if class & NEWLINE != 0 {
            line = Some(end);
        }
    };
    let at_end = end == bytes.len();
    if R::SPACE == Space::EndThenLines && at_end {
        return end;
    }
    if let Some(line) = line.filter(|_| R::SPACE != Space::Plain) {
        return line;
    }
    let unseen = R::DIGITS == Digits::Apart && next & number::<R>() != 0;
    if at_end || unseen || last == start {
        return end;
    }
    last
}

#[inline]
const fn number<R: Rules>() -> u8 {
    match R::DIGITS {
        Digits::Apart => NUMBER | LATER_NUMBER,
        _ => NUMBER,
    }
}

/// Where the piece ends that begins at `start`, which is before the end of the text.
#[inline]
pub fn piece_end<R: Rules>(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let (class, length) = class_at(text, start);
    let byte = bytes[start];
    if byte == b'\'' && matches!(R::CONTRACTIONS, Contractions::Small | Contractions::Any) {
        let any_case = R::CONTRACTIONS == Contractions::Any;
        if let Some(end) = contraction_end(bytes, start, any_case) {
            return end;
        }
    }
    let leads = if R::ANY_LEAD {
        class & (NUMBER | NEWLINE) == 0
    } else {
        byte == b' ' || class & LETTER != 0
    };
    if leads && let Some(end) = word_end::<R>(text, start, class, length) {
        return end;
    }
    let after = start + length;
    if class & number::<R>() != 0 {
        return match R::DIGITS {
            Digits::UpTo(most) => (1..most).fold(after, |end, _| {
                let (class, length) = class_at(text, end);
                end + if class & NUMBER != 0 { length } else { 0 }
            }),
            Digits::Spaced => run_end(text, after, NUMBER),
            Digits::Apart => after,
        };
    }
    let other = |at: usize| {
        let (class, length) = class_at(text, at);
        (length > 0 && class & (LETTER | SPACE | number::<R>()) == 0).then_some(at + length)
    };
    let first = if byte == b' ' { after } else { start };
    if R::DIGITS == Digits::Spaced && byte == b' ' {
        let end = run_end(text, first, NUMBER);
        if end > first {
            return end;
        }
    }
    if let Some(mut end) = other(first) {
        while let Some(next) = other(end) {
            end = next;
        }
        let after = bytes[end..].iter();
        return end
            + after
                .take_while(|byte| R::AFTER_OTHER.contains(byte))
                .count();
    }
    space_end::<R>(text, start)
}
