//! Tokens that are cut out of a text wherever they stand, before it is cut into pieces.

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;
use unicode_normalization_alignments::UnicodeNormalization;

use crate::Result;

/// An entry of `added_tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedToken {
    #[serde(rename = "id")]
    _id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// Whether it is looked for in the normalised text rather than in the text as it is.
    normalized: bool,
    /// Special or not, it is one token wherever it stands.
    #[serde(rename = "special")]
    _special: bool,
}

/// What to look for in a text as it is, and then in what lies between that.
#[derive(Default)]
pub struct Added {
    raw: Option<AhoCorasick>,
    normalized: Option<AhoCorasick>,
}

impl Added {
    /// Or what about the tokens is not done here.
    pub fn new(tokens: &[AddedToken], composed: bool) -> std::result::Result<Self, String> {
        for token in tokens {
            if token.single_word || token.lstrip || token.rstrip {
                return Err(format!(
                    "the added token '{}' with single_word, lstrip or rstrip",
                    token.content
                ));
            }
            if token.normalized && composed {
                return Err(format!("the normalized added token '{}'", token.content));
            }
        }
        let search = |normalized: bool| {
            let contents: Vec<&str> = tokens
                .iter()
                .filter(|token| token.normalized == normalized && !token.content.is_empty())
                .map(|token| token.content.as_str())
                .collect();
            if contents.is_empty() {
                return Ok(None);
            }
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(contents)
                .map(Some)
                .map_err(|error| error.to_string())
        };
        Ok(Self {
            raw: search(false)?,
            normalized: search(true)?,
        })
    }

    /// The added tokens of a text and what `count` says for each part between them, in normal form C if
    /// `composed`.
    pub fn count_around(
        &self,
        text: &str,
        composed: bool,
        mut count: impl FnMut(&str) -> Result<usize>,
    ) -> Result<usize> {
        around(self.raw.as_ref(), text, &mut |part| {
            // No character below this one is changed, by itself or with others of its kind.
            if composed && part.chars().any(|c| c >= '\u{300}') {
                let part: String = part.nfc().map(|(c, _)| c).collect();
                return around(self.normalized.as_ref(), &part, &mut count);
            }
            around(self.normalized.as_ref(), part, &mut count)
        })
    }
}

/// The matches of `search` in a text and what `count` says for each part between them.
fn around(
    search: Option<&AhoCorasick>,
    text: &str,
    count: &mut impl FnMut(&str) -> Result<usize>,
) -> Result<usize> {
    let Some(search) = search else {
        return count(text);
    };
    let (mut tokens, mut start) = (0, 0);
    for found in search.find_iter(text) {
        tokens += 1 + count(&text[start..found.start()])?;
        start = found.end();
    }
    Ok(tokens + count(&text[start..])?)
}
