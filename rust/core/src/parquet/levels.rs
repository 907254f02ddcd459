//! Repetition and definition levels: runs of one level, or levels packed bit by bit.

use bytes::Bytes;

/// Levels up to this are handled: a column nested deeper than any that holds text.
pub const HIGHEST: i16 = u8::MAX as i16;

pub fn width(highest: i16) -> u32 {
    u16::BITS - highest.max(0).unsigned_abs().leading_zeros()
}

/// Levels one by one out of their encoding.
pub struct Levels {
    bytes: Bytes,
    at: usize,
    width: u32,
    run: Run,
}

enum Run {
    Same {
        level: u8,
        left: u64,
    },
    /// Levels that are packed from the bit `bit` on.
    Packed {
        bit: usize,
        left: u64,
    },
}

impl Levels {
    pub fn new(bytes: Bytes, highest: i16) -> Self {
        Self {
            bytes,
            at: 0,
            width: width(highest),
            run: Run::Same { level: 0, left: 0 },
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn next_run(&mut self) -> Option<()> {
        let head = self.varint()?;
        self.run = if head & 1 == 0 {
            let level = *self.bytes.get(self.at)?;
            // Levels of more than eight bits have a second byte, and are not handled.
            self.at += 1;
            Run::Same {
                level,
                left: head >> 1,
            }
        } else {
            let groups = head >> 1;
            let bit = self.at * 8;
            let bytes = groups.checked_mul(self.width.into())?;
            self.at = self.at.checked_add(usize::try_from(bytes).ok()?)?;
            Run::Packed {
                bit,
                left: groups.checked_mul(8)?,
            }
        };
        Some(())
    }
}

impl Iterator for Levels {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            match &mut self.run {
                Run::Same { left: 0, .. } | Run::Packed { left: 0, .. } => {}
                Run::Same { level, left } => {
                    *left -= 1;
                    return Some(*level);
                }
                Run::Packed { bit, left } => {
                    let mut level = 0;
                    for i in 0..self.width as usize {
                        let at = *bit + i;
                        level |= (self.bytes.get(at / 8)? >> (at % 8) & 1) << i;
                    }
                    *bit += self.width as usize;
                    *left -= 1;
                    return Some(level);
                }
            }
            self.next_run()?;
        }
    }
}

/// Appends `levels` with their length before them, as pages of version 1 have it.
pub fn encode(levels: &[u8], highest: i16, out: &mut Vec<u8>) {
    let width = width(highest) as usize;
    let mut run = Vec::new();
    match levels {
        [first, rest @ ..] if rest.iter().all(|level| level == first) => {
            varint((levels.len() as u64) << 1, &mut run);
            run.push(*first);
        }
        _ => {
            let groups = levels.len().div_ceil(8);
            varint((groups as u64) << 1 | 1, &mut run);
            let start = run.len();
            run.resize(start + groups * width, 0);
            for (n, level) in levels.iter().enumerate() {
                for i in 0..width {
                    let at = n * width + i;
                    run[start + at / 8] |= (level >> i & 1) << (at % 8);
                }
            }
        }
    }
    out.extend((run.len() as u32).to_le_bytes());
    out.extend(run);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn levels_come_back(
            (highest, levels) in (1_i16..20).prop_flat_map(|highest| {
                let level = prop_oneof![Just(0), Just(highest as u8), 0..=highest as u8];
                (Just(highest), prop::collection::vec(level, 1..300))
            })
        ) {
            let mut bytes = Vec::new();
            encode(&levels, highest, &mut bytes);
            let found = Levels::new(Bytes::from(bytes).slice(4..), highest);
            prop_assert_eq!(found.take(levels.len()).collect::<Vec<_>>(), levels);
        }

        #[test]
        fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            Levels::new(bytes.into(), 3).take(1000).for_each(drop);
        }
    }
}
