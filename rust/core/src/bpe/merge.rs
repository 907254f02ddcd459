//! Byte-pair encoding of one piece: of all adjacent parts that make a token, the lowest token is made
//! first, and of equal ones the leftmost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::vocabulary::{Missing, NONE, Vocabulary};
use crate::Result;
use crate::stop::Stop;

/// Up to this many bytes, looking at all parts for each merge is the fastest.
const SCANNED: usize = 256;
/// Longer pieces are done in windows of this many bytes.
const WINDOW: usize = 192;

/// Room for the parts of a piece, kept between pieces.
pub struct Scratch {
    parts: Vec<u32>,
    /// The token that each part makes with the next one.
    makes: Vec<u32>,
    /// Where the next part begins, and the one before.
    next: Vec<u32>,
    before: Vec<u32>,
    queue: BinaryHeap<Reverse<u64>>,
    joint: Vec<u8>,
}

impl Scratch {
    pub const fn new() -> Self {
        Self {
            parts: Vec::new(),
            makes: Vec::new(),
            next: Vec::new(),
            before: Vec::new(),
            queue: BinaryHeap::new(),
            joint: Vec::new(),
        }
    }

    /// What `encode` left.
    pub fn parts(&self) -> &[u32] {
        &self.parts
    }
}

/// The number of tokens of a piece.
pub fn count(
    vocabulary: &Vocabulary,
    piece: &[u8],
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<usize> {
    match piece.len() {
        ..=16 => Ok(count_in_lanes::<16>(vocabulary, piece)),
        17..=32 => Ok(count_in_lanes::<32>(vocabulary, piece)),
        33..=64 => Ok(count_in_lanes::<64>(vocabulary, piece)),
        65..=SCANNED => {
            encode(vocabulary, piece, scratch);
            Ok(scratch.parts.len())
        }
        _ => count_in_windows(vocabulary, piece, scratch, stop),
    }
}

/// The number of tokens of up to `LANES` bytes, at most 64. Parts stay where they begin, so that the first
/// of the lowest merges is the least of a fixed number of values.
fn count_in_lanes<const LANES: usize>(vocabulary: &Vocabulary, piece: &[u8]) -> usize {
    const PLACES: u32 = 64;
    let value = |token: u32, place: usize| match token {
        NONE => NONE,
        _ => token * PLACES + place as u32,
    };
    let mut parts = [0; LANES];
    // The token that each part makes with the next one, and its place.
    let mut makes = [NONE; LANES];
    for (place, &byte) in piece.iter().enumerate() {
        parts[place] = u32::from(byte);
    }
    for (place, pair) in piece.windows(2).enumerate() {
        makes[place] = value(vocabulary.merged_bytes(pair[0], pair[1]), place);
    }
    // A bit for each place where a part begins.
    let mut begins = u64::MAX
        .checked_shr(PLACES - piece.len() as u32)
        .unwrap_or(0);
    loop {
        let first = makes.iter().fold(NONE, |least, &value| least.min(value));
        if first == NONE {
            return begins.count_ones() as usize;
        }
        let (token, place) = (first / PLACES, (first % PLACES) as usize);
        let after = |place: usize| (begins & (u64::MAX << place << 1)).trailing_zeros() as usize;
        let gone = after(place);
        let next = after(gone);
        begins &= !(1 << gone);
        parts[place] = token;
        makes[gone] = NONE;
        makes[place] = match parts.get(next) {
            Some(&right) => value(vocabulary.merged(token, right), place),
            None => NONE,
        };
        let before = begins & ((1 << place) - 1);
        if before != 0 {
            let left = before.ilog2() as usize;
            makes[left] = value(vocabulary.merged(parts[left], token), left);
        }
    }
}

/// As `count`, where some bytes have no token.
pub fn count_without(
    vocabulary: &Vocabulary,
    missing: &Missing,
    piece: &[u8],
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<usize> {
    let is_missing = |byte: &u8| missing.bytes.contains(byte);
    if !piece.iter().any(is_missing) {
        return count(vocabulary, piece, scratch, stop);
    }
    if !missing.counted {
        let rest: Vec<u8> = piece.iter().copied().filter(|b| !is_missing(b)).collect();
        return count(vocabulary, &rest, scratch, stop);
    }
    let mut tokens = piece.iter().filter(|byte| is_missing(byte)).count();
    for part in piece.split(is_missing) {
        tokens += count(vocabulary, part, scratch, stop)?;
    }
    Ok(tokens)
}

/// As `count`, in time and room that do not grow with the square of the length.
///
/// A row of tokens is the encoding of its bytes if each two neighbours are the encoding of theirs. So
/// the first tokens of a window stand where the last of them fits to the first of the window that begins
/// behind it. Where it does not, the window before is made twice as long, and where that does not fit to
/// what is before it either, all windows are.
fn count_in_windows(
    vocabulary: &Vocabulary,
    piece: &[u8],
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<usize> {
    /// A window that begins at `start`, behind `count` tokens of which `last` is the last one.
    #[derive(Clone, Copy)]
    struct Window {
        start: usize,
        length: usize,
        count: usize,
        last: Option<u32>,
    }
    let first = |length| Window {
        start: 0,
        length,
        count: 0,
        last: None,
    };
    let mut usual = WINDOW;
    let mut window = first(usual);
    let mut previous = window;
    loop {
        stop.check()?;
        let end = piece.len().min(window.start + window.length);
        encode(vocabulary, &piece[window.start..end], scratch);
        if let Some(last) = window.last {
            let parts = std::mem::take(&mut scratch.parts);
            let fits = fit(vocabulary, last, parts[0], scratch);
            scratch.parts = parts;
            if !fits {
                if window.start == previous.start {
                    usual *= 2;
                    previous = first(usual);
                } else {
                    previous.length *= 2;
                }
                window = previous;
                continue;
            }
        }
        if end == piece.len() {
            return Ok(window.count + scratch.parts.len());
        }
        // The tokens near the end depend on what follows.
        let most = window.length / 4 * 3;
        let mut taken = 0;
        let mut next = Window {
            length: usual,
            ..window
        };
        for &part in &scratch.parts {
            let length = vocabulary.token(part).len();
            if taken > 0 && taken + length > most {
                break;
            }
            taken += length;
            next.count += 1;
            next.last = Some(part);
        }
        next.start += taken;
        previous = window;
        window = next;
    }
}

/// Whether two tokens are the encoding of their bytes.
fn fit(vocabulary: &Vocabulary, left: u32, right: u32, scratch: &mut Scratch) -> bool {
    let mut joint = std::mem::take(&mut scratch.joint);
    joint.clear();
    joint.extend_from_slice(vocabulary.token(left));
    joint.extend_from_slice(vocabulary.token(right));
    encode(vocabulary, &joint, scratch);
    scratch.joint = joint;
    scratch.parts == [left, right]
}

/// The tokens of `bytes`, in `scratch.parts`.
pub fn encode(vocabulary: &Vocabulary, bytes: &[u8], scratch: &mut Scratch) {
    if bytes.len() <= SCANNED {
        scan(vocabulary, bytes, scratch);
    } else {
        queue(vocabulary, bytes, scratch);
    }
}

fn start(vocabulary: &Vocabulary, bytes: &[u8], scratch: &mut Scratch) {
    scratch.parts.clear();
    scratch
        .parts
        .extend(bytes.iter().map(|&byte| u32::from(byte)));
    scratch.makes.clear();
    let pairs = bytes.windows(2);
    scratch
        .makes
        .extend(pairs.map(|pair| vocabulary.merged_bytes(pair[0], pair[1])));
}

/// Looks at all parts for each merge.
fn scan(vocabulary: &Vocabulary, bytes: &[u8], scratch: &mut Scratch) {
    start(vocabulary, bytes, scratch);
    let Scratch { parts, makes, .. } = scratch;
    loop {
        let token = makes.iter().fold(NONE, |least, &made| least.min(made));
        let found = makes.iter().position(|&made| made == token);
        let Some(place) = found.filter(|_| token != NONE) else {
            return;
        };
        parts[place] = token;
        parts.remove(place + 1);
        makes.remove(place);
        if place < makes.len() {
            makes[place] = vocabulary.merged(token, parts[place + 1]);
        }
        if place > 0 {
            makes[place - 1] = vocabulary.merged(parts[place - 1], token);
        }
    }
}

/// Keeps the merges that are possible in a queue.
fn queue(vocabulary: &Vocabulary, bytes: &[u8], scratch: &mut Scratch) {
    start(vocabulary, bytes, scratch);
    let Scratch {
        parts,
        makes,
        next,
        before,
        queue,
        ..
    } = scratch;
    let length = bytes.len() as u32;
    makes.push(NONE); // the last part has no next one
    next.clear();
    next.extend(1..=length);
    before.clear();
    before.extend((0..length).map(|place| place.wrapping_sub(1)));
    let entry = |token: u32, place: u32| Reverse(u64::from(token) << 32 | u64::from(place));
    queue.clear();
    queue.extend(
        (0..length)
            .zip(&*makes)
            .filter(|&(_, &token)| token != NONE)
            .map(|(place, &token)| entry(token, place)),
    );
    while let Some(Reverse(first)) = queue.pop() {
        let (token, place) = ((first >> 32) as u32, first as u32);
        let at = place as usize;
        // What was possible when it was queued need not be any more.
        if makes[at] != token {
            continue;
        }
        parts[at] = token;
        let gone = next[at] as usize;
        (parts[gone], makes[gone]) = (NONE, NONE);
        next[at] = next[gone];
        makes[at] = NONE;
        if let Some(&right) = parts.get(next[at] as usize) {
            before[next[at] as usize] = place;
            makes[at] = vocabulary.merged(token, right);
            if makes[at] != NONE {
                queue.push(entry(makes[at], place));
            }
        }
        if place > 0 {
            let left = before[at] as usize;
            makes[left] = vocabulary.merged(parts[left], token);
            if makes[left] != NONE {
                queue.push(entry(makes[left], left as u32));
            }
        }
    }
    parts.retain(|&part| part != NONE);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpe::encoding;

    fn parts(by: fn(&Vocabulary, &[u8], &mut Scratch), v: &Vocabulary, bytes: &[u8]) -> Vec<u32> {
        let mut scratch = Scratch::new();
        by(v, bytes, &mut scratch);
        scratch.parts
    }

    fn check(vocabulary: &Vocabulary, bytes: &[u8]) {
        let scanned = parts(scan, vocabulary, bytes);
        assert_eq!(parts(queue, vocabulary, bytes), scanned);
        let mut scratch = Scratch::new();
        let count = count_in_windows(vocabulary, bytes, &mut scratch, &Stop::new()).unwrap();
        assert_eq!(count, scanned.len());
        for length in [1, 2, 15, 16, 31, 32, 63, 64] {
            let start = &bytes[..length.min(bytes.len())];
            let scanned = parts(scan, vocabulary, start);
            let count = super::count(vocabulary, start, &mut scratch, &Stop::new()).unwrap();
            assert_eq!(count, scanned.len());
        }
    }

    proptest! {
        #[test]
        fn the_ways_agree(text in "[ab]{1,900}|[a-e \n]{1,900}|\\PC{1,200}|(hello|Wörld|漢字| ){1,99}") {
            for name in ["cl100k_base", "o200k_base"] {
                check(&encoding(name).unwrap().vocabulary, text.as_bytes());
            }
        }
    }

    /// Powers of two of one letter: where a window ends hangs on the whole text.
    #[test]
    fn windows_grow_until_they_fit() {
        let mut vocabulary = Vocabulary::with_room(12);
        let mut power = u32::from(b'a');
        for _ in 0..12 {
            power = vocabulary.add(power, power);
        }
        vocabulary.finish(std::iter::empty(), None);
        for length in [191, 192, 193, 400, 1000, 4095, 4096, 4097, 5000, 12_289] {
            check(&vocabulary, &vec![b'a'; length]);
        }
    }

    #[test]
    fn a_long_piece_can_be_stopped() {
        let stop = Stop::new();
        stop.set();
        let vocabulary = &encoding("o200k_base").unwrap().vocabulary;
        assert!(count(vocabulary, &[b'a'; 1000], &mut Scratch::new(), &stop).is_err());
    }
}
