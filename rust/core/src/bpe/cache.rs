//! Counts of short pieces that came before. Text repeats its words, so most pieces end here.

use super::merge::Scratch;

/// Pieces up to this many bytes fit into a key, and their counts into four bits.
pub const SHORT: usize = 15;
const LENGTH_SHIFT: u32 = 120;
const COUNT_SHIFT: u32 = 124;
const KEY: u128 = (1 << COUNT_SHIFT) - 1;

const BUCKET_BITS: u32 = 14;

/// Entries with the newest first: a key, and above it the count. Zero is none. One cache line.
#[repr(align(64))]
#[derive(Clone)]
struct Bucket([u128; 4]);

/// What a thread keeps between texts: a megabyte, whatever it counts.
pub struct Cache {
    /// The tokenizer whose counts these are.
    owner: u64,
    buckets: Vec<Bucket>,
    pub scratch: Scratch,
}

impl Cache {
    pub const fn new() -> Self {
        Self {
            owner: 0,
            buckets: Vec::new(),
            scratch: Scratch::new(),
        }
    }

    /// Forgets the counts of any other tokenizer.
    pub fn serve(&mut self, owner: u64) {
        if self.owner != owner {
            self.buckets.clear();
            self.buckets.resize(1 << BUCKET_BITS, Bucket([0; 4]));
            self.owner = owner;
        }
    }

    #[inline]
    pub fn get(&self, key: u128, hash: u64) -> Option<u32> {
        let entries = &self.buckets[bucket(hash)].0;
        // All four are looked at: where an entry lies cannot be foreseen, and a wrong guess costs more.
        let found = entries.iter().fold(0, |found, &entry| {
            let same = u128::from(entry & KEY == key);
            found | entry & same.wrapping_neg()
        });
        (found != 0).then_some((found >> COUNT_SHIFT) as u32)
    }

    pub fn put(&mut self, key: u128, hash: u64, count: u32) {
        let entries = &mut self.buckets[bucket(hash)].0;
        entries.copy_within(..3, 1);
        entries[0] = key | u128::from(count) << COUNT_SHIFT;
    }
}

#[inline]
fn bucket(hash: u64) -> usize {
    (hash >> (u64::BITS - BUCKET_BITS)) as usize
}

/// The bytes of a piece of 1 to `SHORT` bytes, and its length.
pub fn key_of(piece: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..piece.len()].copy_from_slice(piece);
    u128::from_le_bytes(bytes) | (piece.len() as u128) << LENGTH_SHIFT
}

/// `key_of(&text[start..end])`, read at once where the text goes on.
#[inline]
pub fn key_at(text: &[u8], start: usize, end: usize) -> u128 {
    let Some(&bytes) = text[start..].first_chunk::<16>() else {
        return key_of(&text[start..end]);
    };
    let length = end - start;
    let kept = (1_u128 << (8 * length)) - 1;
    u128::from_le_bytes(bytes) & kept | (length as u128) << LENGTH_SHIFT
}

#[inline]
pub fn hash_of_key(key: u128) -> u64 {
    mix(key as u64, (key >> 64) as u64)
}

/// The hash of a piece; for a short one that of its key.
pub fn hash(piece: &[u8]) -> u64 {
    if piece.len() <= SHORT {
        return hash_of_key(key_of(piece));
    }
    let (whole, rest) = piece.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let state = whole.iter().fold(piece.len() as u64, |h, &eight| {
        mix(h, u64::from_le_bytes(eight))
    });
    mix(state, u64::from_le_bytes(last))
}

#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_at_once_are_the_same() {
        let text = b"The quick brown fox\0\0 jumps";
        for start in 0..text.len() {
            for end in start + 1..=text.len().min(start + SHORT) {
                assert_eq!(key_at(text, start, end), key_of(&text[start..end]));
            }
        }
    }

    #[test]
    fn four_pieces_of_a_bucket_are_kept_and_the_oldest_goes() {
        let mut cache = Cache::new();
        cache.serve(1);
        let keys = ["a", "b", "c", "d", "e"].map(|piece| key_of(piece.as_bytes()));
        for (key, count) in keys[..4].iter().zip([0, 1, 2, 15]) {
            assert_eq!(cache.get(*key, 7), None);
            cache.put(*key, 7, count);
        }
        assert_eq!(
            keys.map(|key| cache.get(key, 7)),
            [Some(0), Some(1), Some(2), Some(15), None]
        );
        cache.put(keys[4], 7, 3);
        assert_eq!(
            keys.map(|key| cache.get(key, 7)),
            [None, Some(1), Some(2), Some(15), Some(3)]
        );
        cache.serve(1);
        assert_eq!(cache.get(keys[4], 7), Some(3));
        cache.serve(2);
        assert_eq!(cache.get(keys[4], 7), None);
    }
}
