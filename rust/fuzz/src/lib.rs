//! Texts out of a fuzzer's bytes, and plain rules that the kernels are compared with.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use arrow_array::{ArrayRef, StringViewArray};
use arrow_schema::DataType;
use clair_core::columns::TextColumn;
use clair_core::kernel::Scratch;
use clair_core::stop::Stop;
use regex::Regex;

/// What bytes from 128 on stand for in a text: letters, marks, digits and signs of many scripts, joiners,
/// every kind of white space, and the ends of the planes.
const OTHERS: [char; 64] = [
    'é',
    'É',
    'ß',
    'ÿ',
    'µ',
    '·',
    '«',
    '°',
    '\u{300}',
    '\u{301}',
    'α',
    'Ω',
    'ж',
    'Я',
    'א',
    'ש',
    'ع',
    'ي',
    '\u{64e}',
    '٣',
    'क',
    '\u{93f}',
    '५',
    'ก',
    '\u{e31}',
    '๑',
    'ກ',
    '\u{eb1}',
    'ក',
    '\u{17d2}',
    'မ',
    '\u{102c}',
    'あ',
    'ん',
    'ア',
    '\u{3099}',
    'ー',
    '漢',
    '字',
    '〇',
    '々',
    '한',
    '、',
    '。',
    '「',
    '\u{200c}',
    '\u{200d}',
    '\u{a0}',
    '\u{2003}',
    '\u{2028}',
    '\u{3000}',
    '\u{85}',
    '\u{ad}',
    '—',
    '…',
    '’',
    '₃',
    'Ⅷ',
    '👍',
    '🏽',
    '𝒳',
    '𠀀',
    '\u{ffff}',
    '\u{10ffff}',
];

/// `bytes` if they are UTF-8, else a character for each.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => bytes
            .iter()
            .map(|&byte| match byte {
                ..128 => byte as char,
                _ => OTHERS[usize::from(byte) % OTHERS.len()],
            })
            .collect(),
    }
}

/// Two texts, parted by the first byte 255.
pub fn two(bytes: &[u8]) -> (Cow<'_, str>, Cow<'_, str>) {
    let mut parts = bytes.splitn(2, |&byte| byte == 255);
    let mut next = || text(parts.next().unwrap_or_default());
    (next(), next())
}

/// Pairs of texts, all parted by bytes 255.
pub fn pairs(bytes: &[u8]) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let texts: Vec<_> = bytes.split(|&byte| byte == 255).map(text).collect();
    texts
        .chunks_exact(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect()
}

/// A column of texts that are parted by bytes 255; where one begins with a byte 254 it is null.
pub fn column(bytes: &[u8]) -> (Vec<Option<Cow<'_, str>>>, TextColumn) {
    let rows: Vec<Option<Cow<str>>> = bytes
        .split(|&byte| byte == 255)
        .map(|part| (part.first() != Some(&254)).then(|| text(part)))
        .collect();
    let array: ArrayRef = Arc::new(StringViewArray::from_iter(
        rows.iter().map(Option::as_deref),
    ));
    let column = TextColumn::new("texts", &DataType::Utf8View, &[array]).expect("a column of text");
    (rows, column)
}

/// `f` with what the functions of `pair` want.
pub fn run<T>(f: impl FnOnce(&mut Scratch, &Stop) -> clair_core::Result<T>) -> T {
    f(&mut Scratch::default(), &Stop::new()).expect("texts of this size are measured")
}

/// The rule of words as one expression of another engine.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let alone = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}";
    Regex::new(&format!(r"[\w--[{alone}]]+|[^\s--[\w--[{alone}]]]")).expect("the expression")
});

pub fn words(text: &str) -> Vec<&str> {
    WORDS.find_iter(text).map(|word| word.as_str()).collect()
}

/// The words of two texts as numbers that are equal where the words are.
pub fn numbered(a: &str, b: &str) -> (Vec<u32>, Vec<u32>) {
    let mut known: Vec<&str> = Vec::new();
    let mut number = |word| {
        known.iter().position(|&k| k == word).unwrap_or_else(|| {
            known.push(word);
            known.len() - 1
        }) as u32
    };
    let a = words(a).into_iter().map(&mut number).collect();
    let b = words(b).into_iter().map(&mut number).collect();
    (a, b)
}

pub fn code_points(text: &str) -> Vec<u32> {
    text.chars().map(u32::from).collect()
}
