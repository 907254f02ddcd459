//! One table for as many pairs as a vector has lanes: its buffers, and the strips that run over them.

use crate::Result;
use crate::band::Band;
use crate::batch::Symbols;
use crate::cpu::Kernel;
use crate::kernel::Vertical;
use crate::lanes::Lanes;
use crate::stop::Stop;

/// Rows that one word of a lane holds.
pub const WORD: usize = 64;
/// Columns that are filled at once.
const COLUMNS_AT_ONCE: usize = 128;
/// Words of one strip: their state fits the registers.
const STRIP_WORDS: usize = 4;
const STRIP: usize = WORD * STRIP_WORDS;

/// A column's word: the number of its symbol, and above it the step in the row that was run last.
const UP: u64 = 1 << 62;

/// Bits of a symbol's number that strips are made for.
const WIDTHS: [usize; 6] = [5, 6, 7, 8, 10, 12];
/// Numbers below this fit.
pub const MAX_KINDS: usize = 1 << WIDTHS[WIDTHS.len() - 1];

/// Words in the alignment of the widest vector.
#[derive(Debug, Default)]
struct Words(Vec<Line>);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

impl Words {
    /// At least `words` words; what is new is zero.
    fn reserve(&mut self, words: usize) {
        let lines = words.div_ceil(8);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 8]));
        }
    }

    fn as_slice(&self) -> &[u64] {
        // SAFETY: a line is eight words without padding, and the lines lie one after the other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 8) }
    }

    fn as_mut_slice(&mut self) -> &mut [u64] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }
}

/// A group of pairs and the buffers for it, which are used again from group to group.
#[derive(Debug, Default)]
pub struct Group {
    lanes: usize,
    rows: usize,
    cols: usize,
    /// Where in `WIDTHS` the width of the numbers stands.
    width: usize,
    /// Length of the common prefix that each lane was given, and its last column.
    prefixes: Vec<usize>,
    ends: Vec<usize>,
    /// The rows' numbers, lane by lane: low bytes and high ones.
    low: Vec<u8>,
    high: Vec<u8>,
    columns: Words,
    planes: Words,
    record: Words,
    /// The vertical steps of a strip's last column.
    edge: Words,
    strips: Vec<Strip>,
    pub values: Vec<i64>,
}

/// Rows and columns of one strip, and where its record starts.
#[derive(Debug)]
struct Strip {
    first: usize,
    last: usize,
    words: usize,
    offset: usize,
}

/// Rows, columns and lanes of the table that holds `pairs` of (rows, columns).
pub fn shape(pairs: impl Iterator<Item = (usize, usize)> + Clone) -> (usize, usize) {
    let longest = pairs.clone().map(|(rows, _)| rows).max().unwrap_or(0);
    let rows = longest.next_multiple_of(WORD);
    let cols = pairs.map(|(m, n)| n + rows - m).max().unwrap_or(0);
    (rows, cols)
}

impl Group {
    /// Takes the pairs (rows, columns) into the lanes of `kernel`; `kinds` is above all numbers.
    pub fn load(&mut self, kernel: Kernel, pairs: &[(Symbols, Symbols)], kinds: usize) {
        let lengths = pairs.iter().map(|(a, b)| (a.len(), b.len()));
        (self.rows, self.cols) = shape(lengths);
        self.lanes = lanes(kernel);
        self.width = WIDTHS
            .iter()
            .position(|&bits| kinds <= 1 << bits)
            .unwrap_or(WIDTHS.len() - 1);
        let (lanes, rows) = (self.lanes, self.rows);
        self.prefixes.clear();
        self.ends.clear();
        self.low.clear();
        self.low.resize(lanes * rows, 0);
        self.high.clear();
        if self.is_wide() {
            self.high.resize(lanes * rows, 0);
        }
        for (lane, (a, b)) in pairs.iter().enumerate() {
            let prefix = rows - a.len();
            let into = lane * rows + prefix..(lane + 1) * rows;
            match a {
                Symbols::Bytes(bytes, numbers) => {
                    for (place, &byte) in self.low[into].iter_mut().zip(*bytes) {
                        *place = numbers[usize::from(byte)];
                    }
                }
                Symbols::Numbers(numbers, last) => {
                    for (place, number) in self.low[into.clone()].iter_mut().zip(*numbers) {
                        *place = *number.min(last) as u8;
                    }
                    if !self.high.is_empty() {
                        for (place, number) in self.high[into].iter_mut().zip(*numbers) {
                            *place = (number.min(last) >> 8) as u8;
                        }
                    }
                }
            }
            self.prefixes.push(prefix);
            self.ends.push(prefix + b.len());
        }
        self.load_columns(pairs);
    }

    /// The columns of all lanes, some at a time, so that they stay in the nearest cache.
    fn load_columns(&mut self, pairs: &[(Symbols, Symbols)]) {
        let (lanes, cols) = (self.lanes, self.cols);
        self.columns.reserve(lanes * cols);
        let columns = &mut self.columns.as_mut_slice()[..lanes * cols];
        for (index, part) in columns.chunks_mut(lanes * COLUMNS_AT_ONCE).enumerate() {
            part.fill(UP);
            let from = index * COLUMNS_AT_ONCE;
            for (lane, (_, b)) in pairs.iter().enumerate() {
                let prefix = self.prefixes[lane];
                let first = prefix.saturating_sub(from).min(part.len() / lanes);
                let places = &mut part[first * lanes..];
                let rest = b.after(from.saturating_sub(prefix));
                match lanes {
                    8 => scatter::<8>(places, lane, &rest),
                    4 => scatter::<4>(places, lane, &rest),
                    _ => scatter::<2>(places, lane, &rest),
                }
            }
        }
    }

    fn bits(&self) -> usize {
        WIDTHS[self.width]
    }

    fn is_wide(&self) -> bool {
        self.bits() > 8
    }

    /// Words that the record of a whole table of this shape takes.
    pub fn record_words(rows: usize, cols: usize, lanes: usize) -> usize {
        2 * rows.div_ceil(WORD) * cols * lanes
    }

    /// Runs the table; the costs are then in `values`. Cells that no script of cost `bounds` or less of their
    /// lane leads through are left out. With `record` the vertical steps are kept for `vertical`.
    pub fn run(
        &mut self,
        kernel: Kernel,
        bounds: &[usize],
        record: bool,
        stop: &Stop,
    ) -> Result<()> {
        let (rows, cols, lanes, bits) = (self.rows, self.cols, self.lanes, self.bits());
        self.strips.clear();
        self.planes.reserve(STRIP_WORDS * bits * lanes);
        self.edge.reserve(2 * STRIP_WORDS * lanes);
        if record {
            self.record.reserve(Self::record_words(rows, cols, lanes));
        }
        let mut band = Band::new(lanes, rows, &self.ends, bounds);
        let go_on = go_on_of(kernel);
        let mut offset = 0;
        for top in (0..rows).step_by(STRIP) {
            stop.check()?;
            let bottom = (top + STRIP).min(rows);
            let words = (bottom - top) / WORD;
            // SAFETY: `kernel` is one that this machine has.
            unsafe { go_on(&mut band, self.columns.as_slice(), top, bottom, cols) };
            let (left, last) = (band.left, band.last);
            self.take_planes(kernel, top, words);
            let strip = pick(kernel, words, self.width, record);
            let columns = &mut self.columns.as_mut_slice()[left * lanes..last * lanes];
            let planes = &self.planes.as_slice()[..words * bits * lanes];
            let edge = &mut self.edge.as_mut_slice()[..2 * words * lanes];
            let kept = if record {
                let end = offset + 2 * words * lanes * (last - left);
                &mut self.record.as_mut_slice()[offset..end]
            } else {
                &mut []
            };
            let next = offset + kept.len();
            // SAFETY: `kernel` is one that this machine has; the slices hold `last - left` columns, `words`
            // times `bits` planes, two times `words` vectors for the edge and, where asked for, as many for
            // each column, and all of them start at multiples of a vector in aligned memory.
            unsafe {
                strip(
                    planes.as_ptr(),
                    columns.as_mut_ptr(),
                    last - left,
                    kept.as_mut_ptr(),
                    edge.as_mut_ptr(),
                );
            }
            band.descend(bottom - top, edge);
            self.strips.push(Strip {
                first: left + 1,
                last,
                words,
                offset,
            });
            offset = next;
        }
        band.into_costs(self.columns.as_slice(), &self.ends, &mut self.values);
        Ok(())
    }

    /// The planes of the rows after `top`: for each word and each bit of a number, that bit in all lanes.
    fn take_planes(&mut self, kernel: Kernel, top: usize, words: usize) {
        let (lanes, bits, rows) = (self.lanes, self.bits(), self.rows);
        let planes = self.planes.as_mut_slice();
        let planes_of = planes_of(kernel);
        for lane in 0..lanes {
            for word in 0..words {
                let from = lane * rows + top + word * WORD;
                for (bytes, first) in [(&self.low, 0), (&self.high, 8)] {
                    let Some(bytes) = bytes.get(from..).and_then(|b| b.first_chunk::<WORD>())
                    else {
                        continue;
                    };
                    let count = bits.min(first + 8) - first;
                    // SAFETY: `kernel` is one that this machine has.
                    let found = unsafe { planes_of(bytes, count) };
                    for (bit, plane) in found.into_iter().enumerate().take(count) {
                        planes[(word * bits + first + bit) * lanes + lane] = plane;
                    }
                }
            }
        }
    }

    /// The steps of one lane's own table.
    pub fn steps(&self, lane: usize) -> Steps<'_> {
        Steps {
            group: self,
            record: self.record.as_slice(),
            lane,
            word: usize::MAX,
            first: 0,
            last: 0,
            start: 0,
            stride: 0,
        }
    }
}

/// The recorded steps of a lane; those near the ones read last are found fastest.
pub struct Steps<'g> {
    group: &'g Group,
    record: &'g [u64],
    lane: usize,
    /// The word of rows that was read last: its columns, where they start in the record, and how far apart
    /// they lie.
    word: usize,
    first: usize,
    last: usize,
    start: usize,
    stride: usize,
}

impl Steps<'_> {
    fn go_to(&mut self, word: usize) {
        let lanes = self.group.lanes;
        let strip = &self.group.strips[word / STRIP_WORDS];
        self.word = word;
        (self.first, self.last) = (strip.first, strip.last);
        self.start = strip.offset + word % STRIP_WORDS * lanes + self.lane;
        self.stride = 2 * strip.words * lanes;
    }

    /// The step that leads down to row `row` (from 1) in column `col` (from 0).
    #[inline]
    pub fn vertical(&mut self, row: usize, col: usize) -> Vertical {
        let prefix = self.group.prefixes[self.lane];
        let (row, col) = (row + prefix - 1, col + prefix);
        if row / WORD != self.word {
            self.go_to(row / WORD);
        }
        if col < self.first {
            return Vertical::Up;
        }
        if col > self.last {
            return Vertical::Outside;
        }
        let at = self.start + (col - self.first) * self.stride;
        let is_set = |word: u64| word >> (row % WORD) & 1 == 1;
        if is_set(self.record[at]) {
            Vertical::Up
        } else if is_set(self.record[at + self.stride / 2]) {
            Vertical::Down
        } else {
            Vertical::Same
        }
    }
}

/// Writes a side's numbers into one lane of `columns`.
fn scatter<const LANES: usize>(columns: &mut [u64], lane: usize, side: &Symbols) {
    let (columns, _) = columns.as_chunks_mut::<LANES>();
    let places = columns.iter_mut().map(|column| &mut column[lane]);
    match side {
        Symbols::Bytes(bytes, numbers) => {
            for (place, &byte) in places.zip(*bytes) {
                *place = UP | u64::from(numbers[usize::from(byte)]);
            }
        }
        Symbols::Numbers(numbers, last) => {
            for (place, number) in places.zip(*numbers) {
                *place = UP | u64::from(*number.min(last));
            }
        }
    }
}

/// Planes, columns, their number, record, edge.
type RunStrip = unsafe fn(*const u64, *mut u64, usize, *mut u64, *mut u64);
type GoOn = unsafe fn(&mut Band, &[u64], usize, usize, usize);
type PlanesOf = unsafe fn(&[u8; 64], usize) -> [u64; 8];

/// All columns of one strip of `WORDS` words, whose symbols have `BITS` bits.
///
/// # Safety
/// As for `Lanes`; the pointers lead to as many vectors as `Group::run` says.
#[inline(always)]
unsafe fn strip<L: Lanes, const WORDS: usize, const BITS: usize, const RECORD: bool>(
    planes: *const u64,
    columns: *mut u64,
    count: usize,
    mut record: *mut u64,
    edge: *mut u64,
) {
    // SAFETY: the caller vouches for instructions and pointers; every offset below stays inside of them.
    unsafe {
        let mut up = [L::splat(u64::MAX); WORDS];
        let mut down = [L::splat(0); WORDS];
        for index in 0..count {
            let place = columns.add(index * L::WIDTH);
            let column = L::load(place);
            let low = column.spread::<0>();
            let high = column.spread::<1>();
            let mut masks = [low; BITS];
            for (bit, mask) in masks.iter_mut().enumerate() {
                *mask = if bit < 8 {
                    L::mask::<0>(low, bit)
                } else {
                    L::mask::<1>(high, bit - 8)
                };
            }
            let mut above_up = column.shift_left();
            let mut above_down = column;
            for word in 0..WORDS {
                let plane = planes.add(word * BITS * L::WIDTH);
                let mut equal = L::load(plane).same(masks[0]);
                for (bit, mask) in masks.iter().enumerate().skip(1) {
                    equal = equal.and_same(L::load(plane.add(bit * L::WIDTH)), *mask);
                }
                let (pv, mv) = (up[word], down[word]);
                let free = equal.or(mv);
                let equal = equal.or(above_down.top_bit());
                let diagonal = equal.and(pv).add(pv).xor_or(pv, equal);
                let ph = mv.or_nor(diagonal, pv);
                let mh = pv.and(diagonal);
                let shifted_up = ph.shift_in(above_up);
                let shifted_down = mh.shift_in(above_down);
                up[word] = shifted_down.or_nor(free, shifted_up);
                down[word] = shifted_up.and(free);
                (above_up, above_down) = (ph, mh);
            }
            column.with_steps(above_up, above_down).store(place);
            if RECORD {
                for word in 0..WORDS {
                    up[word].store(record.add(word * L::WIDTH));
                    down[word].store(record.add((WORDS + word) * L::WIDTH));
                }
                record = record.add(2 * WORDS * L::WIDTH);
            }
        }
        for word in 0..WORDS {
            up[word].store(edge.add(word * L::WIDTH));
            down[word].store(edge.add((WORDS + word) * L::WIDTH));
        }
    }
}

/// The functions of one kernel: `strip` and `planes`, compiled for its instructions.
macro_rules! compiled {
    ($module:ident, $lanes:ty, $features:literal) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            pub unsafe fn run<const WORDS: usize, const BITS: usize, const RECORD: bool>(
                planes: *const u64,
                columns: *mut u64,
                count: usize,
                record: *mut u64,
                edge: *mut u64,
            ) {
                // SAFETY: the caller's promise, handed on.
                unsafe {
                    strip::<$lanes, WORDS, BITS, RECORD>(planes, columns, count, record, edge)
                }
            }

            #[target_feature(enable = $features)]
            pub unsafe fn planes(bytes: &[u8; 64], bits: usize) -> [u64; 8] {
                // SAFETY: the caller's promise, handed on.
                unsafe { <$lanes>::planes(bytes, bits) }
            }

            #[target_feature(enable = $features)]
            pub unsafe fn go_on(
                band: &mut Band,
                columns: &[u64],
                top: usize,
                bottom: usize,
                cols: usize,
            ) {
                band.go_on::<{ <$lanes as Lanes>::WIDTH }>(columns, top, bottom, cols);
            }

            pub fn pick(words: usize, width: usize, record: bool) -> RunStrip {
                match (words, record) {
                    (1, false) => by_width!(width, 1, false),
                    (2, false) => by_width!(width, 2, false),
                    (3, false) => by_width!(width, 3, false),
                    (_, false) => by_width!(width, 4, false),
                    (1, true) => by_width!(width, 1, true),
                    (2, true) => by_width!(width, 2, true),
                    (3, true) => by_width!(width, 3, true),
                    (_, true) => by_width!(width, 4, true),
                }
            }
        }
    };
}

macro_rules! by_width {
    ($width:expr, $words:literal, $record:literal) => {
        match $width {
            0 => run::<$words, { WIDTHS[0] }, $record>,
            1 => run::<$words, { WIDTHS[1] }, $record>,
            2 => run::<$words, { WIDTHS[2] }, $record>,
            3 => run::<$words, { WIDTHS[3] }, $record>,
            4 => run::<$words, { WIDTHS[4] }, $record>,
            _ => run::<$words, { WIDTHS[5] }, $record>,
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(
    avx512vbmi2,
    crate::lanes::avx512::Avx512<true>,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,gfni"
);
#[cfg(target_arch = "x86_64")]
compiled!(
    avx512,
    crate::lanes::avx512::Avx512<false>,
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, crate::lanes::avx2::Avx2, "avx2,bmi1,bmi2,popcnt");
#[cfg(target_arch = "aarch64")]
compiled!(neon, crate::lanes::neon::Neon, "neon");

/// Lanes of a kernel's vector; 1 for the portable one, which does one pair at a time.
pub fn lanes(kernel: Kernel) -> usize {
    match kernel {
        Kernel::Avx512Vbmi2 | Kernel::Avx512 => 8,
        Kernel::Avx2 => 4,
        Kernel::Neon => 2,
        Kernel::Portable => 1,
    }
}

fn pick(kernel: Kernel, words: usize, width: usize, record: bool) -> RunStrip {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vbmi2 => avx512vbmi2::pick(words, width, record),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => avx512::pick(words, width, record),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 => avx2::pick(words, width, record),
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => neon::pick(words, width, record),
        _ => unreachable!("no lanes on this machine"),
    }
}

fn planes_of(kernel: Kernel) -> PlanesOf {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vbmi2 => avx512vbmi2::planes,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => avx512::planes,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 => avx2::planes,
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => neon::planes,
        _ => unreachable!("no lanes on this machine"),
    }
}

fn go_on_of(kernel: Kernel) -> GoOn {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vbmi2 => avx512vbmi2::go_on,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => avx512::go_on,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 => avx2::go_on,
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => neon::go_on,
        _ => unreachable!("no lanes on this machine"),
    }
}
