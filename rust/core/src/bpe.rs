//! Counting tokens of byte-pair encodings.

use bpe_openai::Tokenizer;

use crate::{Error, Result};

/// Encodings that are known, by the names that tiktoken gives them.
pub const ENCODINGS: [&str; 2] = ["cl100k_base", "o200k_base"];

/// The tokenizer of an encoding. The first call for each unpacks its tables, which takes a moment.
pub fn encoding(name: &str) -> Result<&'static Tokenizer> {
    match name {
        "cl100k_base" => Ok(bpe_openai::cl100k_base()),
        "o200k_base" => Ok(bpe_openai::o200k_base()),
        _ => Err(Error::UnknownEncoding {
            name: name.to_owned(),
            known: ENCODINGS.join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_tiktoken_gives() {
        let texts = [
            ("Hello, world!", [4, 4]),
            (
                "Hello, world! <|endoftext|> 漢字 naïve   \n\n1234567",
                [20, 20],
            ),
            ("def f(x):\n    return x**2  # squared\n", [13, 13]),
            (
                "It's what they'd've SAID… 👍🏽👨\u{200d}👩\u{200d}👧",
                [27, 18],
            ),
        ];
        for (text, expected) in texts {
            assert_eq!(
                ENCODINGS.map(|name| encoding(name).unwrap().count(text)),
                expected
            );
        }
        assert_eq!(encoding("o200k_base").unwrap().count(""), 0);
    }

    #[test]
    fn an_unknown_encoding_names_the_known_ones() {
        let message = encoding("gpt2").err().unwrap().to_string();
        assert!(message.contains("'gpt2'") && message.contains("o200k_base"));
    }
}
