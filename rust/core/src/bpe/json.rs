//! A tokenizer out of a `tokenizer.json`, if it is of a shape that is counted here exactly as the library
//! `tokenizers` counts it: byte-level BPE, cut by one of the patterns known by their text. Anything that
//! is not on these lists is left to the library.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::added::{Added, AddedToken};
use super::merge::{Scratch, encode};
use super::vocabulary::{BYTES, MOST_TOKENS, Missing, NONE, Vocabulary};
use super::{Pattern, Tokenizer};
use crate::{Error, Result};

/// What became of a file.
pub enum Loaded {
    Here(Arc<Tokenizer>),
    /// What about it is not counted here.
    Elsewhere(String),
}

type Native<T> = std::result::Result<T, String>;

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT_2_SHORT: &str =
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const PATTERNS: [(&str, Pattern); 6] = [
    (LLAMA_3, Pattern::Llama3),
    (QWEN_2, Pattern::Qwen2),
    (O200K, Pattern::O200k),
    (TEKKEN, Pattern::Tekken),
    (GPT_2, Pattern::Gpt2),
    (GPT_2_SHORT, Pattern::Gpt2),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    version: Option<String>,
    /// Texts are counted whole, so these two say nothing.
    #[serde(rename = "truncation", default)]
    _truncation: IgnoredAny,
    #[serde(rename = "padding", default)]
    _padding: IgnoredAny,
    /// It only adds special tokens and moves offsets.
    #[serde(rename = "post_processor", default)]
    _post_processor: IgnoredAny,
    #[serde(rename = "decoder", default)]
    _decoder: IgnoredAny,
    added_tokens: Vec<AddedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
    r#type: String,
    dropout: Option<f64>,
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

/// Tokens and their ids.
struct Vocab<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("tokens with their ids")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(token), id)) = map.next_entry()? {
                    entries.push((token, id));
                }
                Ok(Vocab(entries))
            }
        }
        input.deserialize_map(Entries)
    }
}

/// A string that is borrowed from the file where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Two tokens, as a list or, in older files, with a space between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Text<'a>, #[serde(borrow)] Text<'a>),
    Line(#[serde(borrow)] Text<'a>),
}

impl Merge<'_> {
    fn parts(&self) -> Native<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Ok((&left.0, &right.0)),
            Self::Line(line) => match line.0.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => Ok((left, right)),
                _ => Err(format!("a merge that is not two tokens ('{}')", line.0)),
            },
        }
    }

    /// The name of what is made, in `name`.
    fn product<'n>(&self, name: &'n mut String) -> Option<&'n str> {
        let (left, right) = self.parts().ok()?;
        name.clear();
        name.push_str(left);
        name.push_str(right);
        Some(name)
    }
}

/// The tokenizer of a `tokenizer.json`.
pub fn load(file: &[u8]) -> Result<Loaded> {
    // What is no JSON at all is an error here; the rest is for the library to judge.
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(file) {
        return Err(Error::BadTokenizer {
            reason: error.to_string(),
        });
    }
    Ok(match native(file) {
        Ok(tokenizer) => Loaded::Here(Arc::new(tokenizer)),
        Err(reason) => Loaded::Elsewhere(reason),
    })
}

fn native(file: &[u8]) -> Native<Tokenizer> {
    let file: File = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    if file.version.as_deref() != Some("1.0") {
        return Err(format!("version {:?}", file.version));
    }
    let composed = match kind(&file.normalizer) {
        "null" => false,
        "NFC" => true,
        _ => return Err(format!("the normalizer {}", short(&file.normalizer))),
    };
    let pattern = pattern(&file.pre_tokenizer)
        .ok_or_else(|| format!("the pre-tokenizer {}", short(&file.pre_tokenizer)))?;
    let added = Added::new(&file.added_tokens, composed)?;
    #[derive(Deserialize)]
    struct Kind {
        r#type: Option<String>,
    }
    let model = file.model.get();
    let kind: Kind = serde_json::from_str(model).map_err(|error| error.to_string())?;
    if kind.r#type.as_deref() != Some("BPE") {
        let name = kind.r#type.as_deref().unwrap_or("without a type");
        return Err(format!("a model {name}"));
    }
    let model: Model = serde_json::from_str(model).map_err(|error| error.to_string())?;
    Ok(Tokenizer::new(
        vocabulary(&model)?,
        pattern,
        added,
        composed,
    ))
}

/// The type of a part of the file.
fn kind(part: &Value) -> &str {
    match part {
        Value::Null => "null",
        _ => part["type"].as_str().unwrap_or_default(),
    }
}

fn short(part: &Value) -> String {
    let text = part.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What a pre-tokenizer comes to, if it is known.
fn pattern(part: &Value) -> Option<Pattern> {
    let whole = [part.clone()];
    let steps = match kind(part) {
        "Sequence" if has_only(part, &["type", "pretokenizers"]) => {
            part["pretokenizers"].as_array()?.as_slice()
        }
        _ => &whole,
    };
    match steps {
        [bytes] if byte_level(bytes)? => Some(Pattern::Gpt2),
        [digits, bytes] if kind(digits) == "Digits" && byte_level(bytes)? => {
            let apart = has_only(digits, &["type", "individual_digits"])
                && digits["individual_digits"] == true;
            apart.then_some(Pattern::Gpt2DigitsApart)
        }
        [split, bytes] if kind(split) == "Split" && !byte_level(bytes)? => {
            let text = split["pattern"]["Regex"].as_str()?;
            // The patterns cover every text, so it is the same to keep what they match.
            let keeps_all = split["behavior"] == "Isolated" && split["invert"] == false
                || split["behavior"] == "Removed" && split["invert"] == true;
            let known = PATTERNS.iter().find(|(known, _)| *known == text)?;
            let fields = ["type", "pattern", "behavior", "invert"];
            (keeps_all && has_only(split, &fields)).then_some(known.1)
        }
        _ => None,
    }
}

fn has_only(part: &Value, fields: &[&str]) -> bool {
    let object = part.as_object();
    object.is_some_and(|object| object.keys().all(|key| fields.contains(&key.as_str())))
}

/// Whether the step to bytes cuts by GPT-2's pattern too, if it is such a step and puts no space in front.
fn byte_level(part: &Value) -> Option<bool> {
    let fields = ["type", "add_prefix_space", "trim_offsets", "use_regex"];
    let plain =
        kind(part) == "ByteLevel" && has_only(part, &fields) && part["add_prefix_space"] == false;
    match &part["use_regex"] {
        _ if !plain => None,
        Value::Null => Some(true),
        cuts => cuts.as_bool(),
    }
}

/// The byte that each character of a byte-level vocabulary stands for: itself for what can be seen, and
/// the characters from U+0100 for the others, in order.
fn alphabet() -> HashMap<char, u8> {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let unseen = (0..=u8::MAX).filter(|&byte| !seen(byte));
    let moved = ('\u{100}'..).zip(unseen);
    let same = (0..=u8::MAX).filter(|&byte| seen(byte));
    same.map(|byte| (char::from(byte), byte))
        .chain(moved)
        .collect()
}

struct Entry {
    bytes: Vec<u8>,
    /// The token here, once it is made.
    token: u32,
}

fn token_of(entries: &HashMap<&str, Entry>, name: &str) -> Native<u32> {
    match entries.get(name) {
        Some(entry) => Ok(entry.token),
        None => Err(format!(
            "a merge of '{name}', which is not in the vocabulary"
        )),
    }
}

fn vocabulary(model: &Model) -> Native<Vocabulary> {
    if model.r#type != "BPE" || model.dropout.is_some_and(|share| share != 0.0) {
        return Err("dropout".to_owned());
    }
    for affix in [&model.continuing_subword_prefix, &model.end_of_word_suffix] {
        if affix.as_deref().is_some_and(|text| !text.is_empty()) {
            return Err("a prefix or suffix of parts of words".to_owned());
        }
    }
    let tokens = &model.vocab.0;
    if tokens.len() + BYTES as usize > MOST_TOKENS {
        return Err(format!("{} tokens", tokens.len()));
    }
    let mut ids = HashSet::with_capacity(tokens.len());
    if !tokens.iter().all(|(_, id)| ids.insert(*id)) {
        return Err("two tokens with the same id".to_owned());
    }
    drop(ids);
    let alphabet = alphabet();
    let mut entries: HashMap<&str, Entry> = HashMap::with_capacity(tokens.len());
    for (name, _) in tokens {
        let bytes: Option<Vec<u8>> = name.chars().map(|c| alphabet.get(&c).copied()).collect();
        // What is not in the alphabet can only be an added token.
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            continue;
        };
        let token = match bytes.as_slice() {
            &[byte] => u32::from(byte),
            _ => NONE,
        };
        if entries.insert(name, Entry { bytes, token }).is_some() {
            return Err(format!("the token '{name}' twice"));
        }
    }
    let missing = missing(model, &entries)?;
    let mut made = Vocabulary::with_room(model.merges.len());
    let mut scratch = Scratch::new();
    let mut product = String::new();
    for merge in &model.merges {
        let (left, right) = merge.parts()?;
        let [left, right] = [token_of(&entries, left)?, token_of(&entries, right)?];
        let Some(entry) = merge
            .product(&mut product)
            .and_then(|name| entries.get_mut(name))
        else {
            return Err(format!(
                "a merge to '{product}', which is not in the vocabulary"
            ));
        };
        if left == NONE || right == NONE {
            continue;
        }
        if made.merged(left, right) != NONE {
            return Err(format!("the merge to '{product}' twice"));
        }
        // Of several merges to a token the one counts at which the encoding of its bytes arrives.
        encode(&made, &entry.bytes, &mut scratch);
        if scratch.parts() == [left, right] {
            entry.token = made.add(left, right);
        }
    }
    // A merge that was passed over never comes to pass, unless the bytes of its token end up as its parts.
    for merge in &model.merges {
        let (left, right) = merge.parts()?;
        let parts = [token_of(&entries, left)?, token_of(&entries, right)?];
        let entry = merge
            .product(&mut product)
            .and_then(|name| entries.get(name));
        if let Some(entry) = entry.filter(|entry| entry.token == NONE) {
            encode(&made, &entry.bytes, &mut scratch);
            if scratch.parts() == parts {
                return Err(format!(
                    "a merge to '{product}' before those that make its parts"
                ));
            }
        }
    }
    let unmerged = entries
        .values()
        .filter(|entry| model.ignore_merges && entry.token == NONE)
        .map(|entry| entry.bytes.as_slice());
    made.finish(unmerged, missing);
    Ok(made)
}

/// The bytes without a token, and what becomes of them.
fn missing(model: &Model, entries: &HashMap<&str, Entry>) -> Native<Option<Missing>> {
    let mut bytes: HashSet<u8> = (0..=u8::MAX).collect();
    for entry in entries.values() {
        if let &[byte] = entry.bytes.as_slice() {
            bytes.remove(&byte);
        }
    }
    // These occur in no text.
    bytes.retain(|byte| !matches!(byte, 0xc0 | 0xc1 | 0xf5..));
    let Some(byte) = bytes.iter().min() else {
        return Ok(None);
    };
    if model.byte_fallback || model.fuse_unk {
        return Err(format!(
            "no token for the byte {byte:#04x}, and rules for such bytes"
        ));
    }
    if let Some(name) = &model.unk_token {
        let known = model.vocab.0.iter().any(|(token, _)| token == name);
        let merges = model.merges.iter().map(Merge::parts);
        let merged = |parts: Native<(&str, &str)>| {
            parts.is_ok_and(|(left, right)| left == name || right == name)
        };
        if !known || merges.into_iter().any(merged) {
            return Err(format!(
                "the unknown token '{name}', which is in a merge or missing"
            ));
        }
    }
    Ok(Some(Missing {
        bytes,
        counted: model.unk_token.is_some(),
    }))
}
