//! Writes OpenAI's vocabularies as the pairs that their tokens are merged from, which is all that counting
//! needs: three bytes each for the left and the right part, in the order of the ranks. A part below 256 is
//! that byte, any other the token of that place.

use std::collections::HashMap;
use std::path::Path;
use std::{env, error, fs};

use bpe_openai::Tokenizer;

const BYTES: usize = 256;

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = env::var("OUT_DIR")?;
    let write = |name: &str, tokenizer: &Tokenizer| -> Result<(), Box<dyn error::Error>> {
        let file = Path::new(&folder).join(format!("{name}.pairs"));
        Ok(fs::write(file, pairs(tokenizer)?)?)
    };
    write("cl100k_base", bpe_openai::cl100k_base())?;
    write("o200k_base", bpe_openai::o200k_base())
}

fn pairs(tokenizer: &Tokenizer) -> Result<Vec<u8>, String> {
    let bpe = &tokenizer.bpe;
    let mut merged: HashMap<(u32, u32), u32> = HashMap::new();
    let mut out = Vec::new();
    for token in 0..bpe.num_tokens() as u32 {
        let bytes = bpe.token_bytes(token);
        if (token as usize) < BYTES {
            if bytes.len() != 1 {
                return Err(format!("token {token} should be a single byte"));
            }
            continue;
        }
        let &[left, right] = merge(bytes, &merged).as_slice() else {
            return Err(format!("token {token} is not made of two earlier ones"));
        };
        merged.insert((left, right), token);
        for part in [left, right] {
            out.extend_from_slice(&part.to_le_bytes()[..3]);
        }
    }
    Ok(out)
}

/// Byte-pair encoding with the merges so far.
fn merge(bytes: &[u8], merged: &HashMap<(u32, u32), u32>) -> Vec<u32> {
    let mut parts: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
    let rank = |pair: &[u32]| merged.get(&(pair[0], pair[1])).copied();
    while let Some((token, place)) = parts
        .windows(2)
        .enumerate()
        .filter_map(|(place, pair)| Some((rank(pair)?, place)))
        .min()
    {
        parts[place] = token;
        parts.remove(place + 1);
    }
    parts
}
