//! What a page's header says, before anything of the page is read.
//!
//! Headers are Thrift structs in its compact protocol; only the fields that matter here are kept.

use std::io::{self, Read};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    Dictionary,
    DataV2,
    Other,
}

#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub kind: Kind,
    /// Bytes of the header itself.
    pub len: u64,
    pub compressed: u64,
    pub uncompressed: u64,
    pub values: u32,
    pub encoding: i64,
    /// How levels are encoded (pages of version 1), or the bytes that they take (version 2).
    pub definition: i64,
    pub repetition: i64,
    pub is_compressed: bool,
}

/// Structs within structs deeper than this are no page header.
const DEPTH: usize = 8;
/// Nor is one of more bytes: statistics of two values, cut short, are the most there is.
const LONGEST: usize = 1 << 20;

struct Compact<R> {
    input: R,
    read: u64,
}

impl<R: Read> Compact<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken())
    }

    fn number(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > LONGEST as u64 {
            return Err(broken());
        }
        for _ in 0..bytes {
            self.byte()?;
        }
        Ok(())
    }

    /// Reads a struct; `see` hears of its numbers and truth values, with the fields that they are in.
    fn fields(&mut self, path: &mut Vec<i64>, see: &mut impl FnMut(&[i64], i64)) -> io::Result<()> {
        if path.len() > DEPTH {
            return Err(broken());
        }
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            id = match head >> 4 {
                0 => self.number()?,
                step => id + i64::from(step),
            };
            path.push(id);
            match head & 0x0f {
                1 => see(path, 1),
                2 => see(path, 0),
                3 => self.pass(1)?,
                4..=6 => {
                    let value = self.number()?;
                    see(path, value);
                }
                7 => self.pass(8)?,
                8 => {
                    let bytes = self.varint()?;
                    self.pass(bytes)?;
                }
                12 => self.fields(path, see)?,
                _ => return Err(broken()),
            }
            path.pop();
        }
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a page header is broken")
}

/// Reads one header from the beginning of `input`.
pub fn read(input: impl Read) -> io::Result<Header> {
    let mut found = [None; 16];
    let mut compact = Compact { input, read: 0 };
    compact.fields(&mut Vec::new(), &mut |path, value| {
        // The struct of each kind of page has its own fields; of the rest none is needed.
        let slot = match path {
            [1] => 0,
            [2] => 1,
            [3] => 2,
            [5 | 7, 1] | [8, 1] => 3,
            [5 | 7, 2] | [8, 4] => 4,
            [5, 3] | [8, 5] => 5,
            [5, 4] | [8, 6] => 6,
            [8, 7] => 7,
            _ => return,
        };
        found[slot] = Some(value);
    })?;
    let size = |slot: usize| {
        found[slot]
            .and_then(|v| u64::try_from(v).ok())
            .ok_or_else(broken)
    };
    let kind = match found[0] {
        Some(0) => Kind::Data,
        Some(2) => Kind::Dictionary,
        Some(3) => Kind::DataV2,
        _ => Kind::Other,
    };
    Ok(Header {
        kind,
        len: compact.read,
        uncompressed: size(1)?,
        compressed: size(2)?,
        values: found[3].and_then(|v| u32::try_from(v).ok()).unwrap_or(0),
        encoding: found[4].unwrap_or(-1),
        definition: found[5].unwrap_or(0),
        repetition: found[6].unwrap_or(0),
        is_compressed: found[7] != Some(0),
    })
}
