//! Compressed bytes as a stream, where the library decompresses a page in one piece.

use std::io::{self, BufRead, BufReader, Read};

use parquet::basic::Compression;

/// `input` decompressed; none where the codec cannot be streamed.
pub fn stream<'a>(
    codec: Compression,
    input: impl Read + Send + 'a,
) -> io::Result<Option<Box<dyn Read + Send + 'a>>> {
    Ok(Some(match codec {
        Compression::UNCOMPRESSED => Box::new(input),
        Compression::SNAPPY => Box::new(Snappy::new(BufReader::with_capacity(1 << 16, input))),
        Compression::ZSTD(_) => Box::new(zstd::stream::read::Decoder::new(input)?),
        Compression::GZIP(_) => Box::new(flate2::read::MultiGzDecoder::new(input)),
        _ => return Ok(None),
    }))
}

/// Snappy's raw format. Its writers work on blocks of 64 KiB, so no copy reaches further back.
struct Snappy<R> {
    input: R,
    /// What was decompressed last; the part from `given` on was not asked for yet.
    window: Vec<u8>,
    given: usize,
    /// Bytes of a literal that are still in the input.
    literal: usize,
    /// Bytes that are to come; none before the beginning was read.
    left: Option<u64>,
}

const REACH: usize = 1 << 16;
/// What is decompressed in one go.
const PIECE: usize = 1 << 16;

impl<R: BufRead> Snappy<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            window: Vec::with_capacity(REACH + 2 * PIECE),
            given: 0,
            literal: 0,
            left: None,
        }
    }

    fn total(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            let byte = u64::from(byte[0]);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken())
    }

    /// Reads a literal's length, or does a copy.
    fn element(&mut self) -> io::Result<()> {
        let mut bytes = [0; 5];
        // Most elements lie whole in what is buffered.
        let ready = self.input.fill_buf()?;
        let tag = *ready.first().ok_or(io::ErrorKind::UnexpectedEof)?;
        let more = match tag & 3 {
            0 => usize::from(tag >> 2).saturating_sub(59),
            1 => 1,
            2 => 2,
            _ => 4,
        };
        if let Some(element) = ready.get(1..=more) {
            bytes[..more].copy_from_slice(element);
            self.input.consume(1 + more);
        } else {
            self.input.consume(1);
            self.input.read_exact(&mut bytes[..more])?;
        }
        let number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let tag = usize::from(tag);
        let (len, offset) = match (tag & 3, tag >> 2) {
            (0, short @ 0..60) => return self.literal(short),
            (0, _) => return self.literal(number),
            (1, high) => (4 + (high & 7), (tag >> 5) << 8 | number),
            (_, high) => (1 + high, number),
        };
        let start = self.window.len().checked_sub(offset).ok_or_else(broken)?;
        match offset {
            0 => return Err(broken()),
            _ if offset >= len => self.window.extend_from_within(start..start + len),
            // The copy reaches into what it writes.
            _ => (start..start + len).for_each(|at| self.window.push(self.window[at])),
        }
        Ok(())
    }

    fn literal(&mut self, less_one: usize) -> io::Result<()> {
        self.literal = less_one + 1;
        Ok(())
    }

    /// Decompresses the next piece, if there is one.
    fn fill(&mut self) -> io::Result<()> {
        let left = match self.left {
            Some(left) => left,
            None => self.total()?,
        };
        if self.window.len() > REACH {
            self.window.drain(..self.window.len() - REACH);
        }
        let before = self.window.len();
        self.given = before;
        while self.window.len() - before < PIECE && ((self.window.len() - before) as u64) < left {
            if self.literal == 0 {
                self.element()?;
            }
            let take = self.literal.min(PIECE) as u64;
            let read = self
                .input
                .by_ref()
                .take(take)
                .read_to_end(&mut self.window)?;
            if (read as u64) < take {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.literal -= read;
        }
        let made = (self.window.len() - before) as u64;
        self.left = Some(left.checked_sub(made).ok_or_else(broken)?);
        Ok(())
    }
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "its compressed bytes are broken",
    )
}

impl<R: BufRead> Read for Snappy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.window.len() && self.left != Some(0) {
            self.fill()?;
        }
        let ready = &self.window[self.given..];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use parquet::basic::ZstdLevel;
    use proptest::prelude::*;

    use super::*;

    fn inflated(codec: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        if let Some(mut stream) = stream(codec, bytes)? {
            stream.read_to_end(&mut out)?;
        }
        Ok(out)
    }

    fn data() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..20);
        // Words again and again: copies, also far ones; and enough of them for several blocks.
        (
            words,
            prop::collection::vec(any::<prop::sample::Index>(), 0..20_000),
        )
            .prop_map(|(words, picks)| picks.iter().flat_map(|i| i.get(&words).clone()).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn streams_give_what_went_in(data in data()) {
            let snappy = snap::raw::Encoder::new().compress_vec(&data).unwrap();
            prop_assert_eq!(&inflated(Compression::SNAPPY, &snappy).unwrap(), &data);
            let zstd = zstd::bulk::compress(&data, 1).unwrap();
            prop_assert_eq!(&inflated(Compression::ZSTD(ZstdLevel::default()), &zstd).unwrap(), &data);
            prop_assert_eq!(&inflated(Compression::UNCOMPRESSED, &data).unwrap(), &data);
        }

        #[test]
        fn hostile_bytes_are_an_error_or_some_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = inflated(Compression::SNAPPY, &bytes);
        }
    }
}
