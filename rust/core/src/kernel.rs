//! The bit-parallel kernel: Myers' blocks of rows in Hyyrö's form, run in strips of a few blocks from
//! left to right inside a band of columns.
//!
//! A strip needs the row above it only as steps of -1, 0 or +1 from column to column, and leaves such a
//! row below. So memory is one row, whatever the number of strips. Cells outside the band are entered as
//! if only deletions and insertions led there: every value is the cost of a real script, hence never too
//! small, and exact wherever an optimal script stays inside the band.

use crate::Result;
use crate::stop::Stop;

/// Rows of one block. Two machine words with a carry between them take fewer instructions than two blocks.
const BLOCK: usize = 128;
/// Blocks of one strip: their state fits the nearest cache, and little lies outside of the band.
const BLOCKS: usize = 4;
/// Rows of one strip.
pub const STRIP: usize = BLOCK * BLOCKS;

/// Steps between neighbouring columns of a row, one byte each.
const UP: u8 = 1;
const DOWN: u8 = 2;

/// The columns that are looked at for given rows of a `rows` x `cols` table.
#[derive(Debug, Clone, Copy)]
pub struct Band {
    rows: u64,
    cols: u64,
    /// Columns left and right of the middle line.
    half: u64,
    /// The middle line follows the table's own slope instead of its two corner diagonals.
    slanted: bool,
}

impl Band {
    /// Holds every script of cost `bound` or less.
    pub fn within(rows: usize, cols: usize, bound: usize) -> Self {
        let spare = bound.saturating_sub(rows.abs_diff(cols));
        Self {
            rows: rows as u64,
            cols: cols as u64,
            half: spare as u64 / 2,
            slanted: false,
        }
    }

    /// As wide as `cells` cells allow, around the line from corner to corner.
    pub fn of_size(rows: usize, cols: usize, cells: u64) -> Self {
        let half = cells / (2 * rows as u64).max(1);
        Self {
            rows: rows as u64,
            cols: cols as u64,
            half,
            slanted: true,
        }
    }

    /// Cells inside the band, roughly.
    pub fn cells(&self) -> u64 {
        let slack = if self.slanted {
            0
        } else {
            self.rows.abs_diff(self.cols)
        };
        let width = (slack + 2 * self.half + 1).min(self.cols);
        self.rows.saturating_mul(width)
    }

    /// First and last column (counted from 1) for the rows after `from` up to `to`.
    fn columns(&self, from: usize, to: usize) -> (usize, usize) {
        let (from, to) = (from as u64, to as u64);
        let (left, right) = if self.slanted {
            // Both factors are below 2^32.
            (
                from * self.cols / self.rows.max(1),
                (to * self.cols).div_ceil(self.rows.max(1)),
            )
        } else {
            let shorter_by = self.rows.saturating_sub(self.cols);
            let longer_by = self.cols.saturating_sub(self.rows);
            ((from + 1).saturating_sub(shorter_by), to + longer_by)
        };
        let first = left.saturating_sub(self.half).clamp(1, self.cols.max(1));
        let last = (right + self.half).min(self.cols);
        (first as usize, last as usize)
    }
}

/// One row of the table: its value at column `first`, and the steps for the columns after it.
#[derive(Debug, Default, Clone)]
pub struct Row {
    first: usize,
    last: usize,
    value: i64,
    /// `steps[c]` leads from column c to c + 1; meaningful from `first` to `last`.
    steps: Vec<u8>,
}

impl Row {
    /// The row above the table.
    pub fn top(cols: usize) -> Self {
        Self {
            first: 0,
            last: cols,
            value: 0,
            steps: vec![UP; cols],
        }
    }

    /// Value in the last column that was looked at.
    pub fn end(&self) -> i64 {
        self.value + climb(&self.steps[self.first..self.last])
    }

    /// The part up to column `cols`, as something to start from again.
    pub fn keep(&self, cols: usize) -> Checkpoint {
        let last = self.last.min(cols).max(self.first);
        Checkpoint {
            first: self.first,
            value: self.value,
            steps: self.steps[self.first..last].to_vec(),
        }
    }
}

/// A row that was put aside.
#[derive(Debug)]
pub struct Checkpoint {
    first: usize,
    value: i64,
    steps: Vec<u8>,
}

impl Checkpoint {
    /// The row again, without the columns after `cols`.
    pub fn row(&self, cols: usize) -> Row {
        let last = (self.first + self.steps.len()).min(cols);
        let mut steps = vec![UP; cols];
        steps[self.first..last].copy_from_slice(&self.steps[..last - self.first]);
        Row {
            first: self.first,
            last,
            value: self.value,
            steps,
        }
    }
}

fn climb(steps: &[u8]) -> i64 {
    steps
        .iter()
        .map(|&s| i64::from(s & 1) - i64::from(s >> 1))
        .sum()
}

/// Differences between neighbouring rows, kept for walking back.
#[derive(Debug, Default)]
pub struct Record {
    strips: Vec<RecordedStrip>,
    bits: Vec<u128>,
}

#[derive(Debug)]
struct RecordedStrip {
    from: usize,
    to: usize,
    first: usize,
    last: usize,
    offset: usize,
    blocks: usize,
}

/// The step from the row above to a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vertical {
    Up,
    Same,
    Down,
    /// Right of the band, where only steps from the left lead.
    Outside,
}

impl Record {
    pub fn clear(&mut self) {
        self.strips.clear();
        self.bits.clear();
    }

    /// Bytes that recording `rows` rows of at most `width` columns takes.
    pub fn bytes(rows: usize, width: usize) -> usize {
        rows.div_ceil(BLOCK)
            .saturating_mul(width)
            .saturating_mul(BLOCK / 4)
    }

    /// The step that leads down to row `row` (from 1) in column `col` (from 0).
    pub fn vertical(&self, row: usize, col: usize) -> Vertical {
        let at = self.strips.partition_point(|s| s.to < row);
        // The left edge of the band is entered from above.
        let Some(strip) = self.strips.get(at).filter(|s| col >= s.first) else {
            return Vertical::Up;
        };
        if col > strip.last {
            return Vertical::Outside;
        }
        let bit = row - strip.from - 1;
        let base = strip.offset + (col - strip.first) * 2 * strip.blocks + bit / BLOCK;
        let is_set = |word: u128| word >> (bit % BLOCK) & 1 == 1;
        if is_set(self.bits[base]) {
            Vertical::Up
        } else if is_set(self.bits[base + strip.blocks]) {
            Vertical::Down
        } else {
            Vertical::Same
        }
    }
}

/// Buffers that are used again from pair to pair.
#[derive(Debug, Default)]
pub struct Scratch {
    /// For each symbol the row of `matches` that belongs to it in this strip; 0 where it does not occur.
    slots: Vec<u16>,
    matches: Vec<u128>,
    pub record: Record,
}

/// Rows of a table (`pattern`) against its columns (`text`).
pub struct Table<'p> {
    pattern: &'p [u32],
    text: &'p [u32],
    band: Band,
}

impl<'p> Table<'p> {
    pub fn new(pattern: &'p [u32], text: &'p [u32], band: Band, scratch: &mut Scratch) -> Self {
        let highest = pattern.iter().chain(text).max().map_or(0, |&s| s as usize);
        if scratch.slots.len() <= highest {
            scratch.slots.resize(highest + 1, 0);
        }
        Self {
            pattern,
            text,
            band,
        }
    }

    /// The same table without the columns after `cols`.
    pub fn up_to(&self, cols: usize) -> Self {
        Self {
            text: &self.text[..cols],
            ..*self
        }
    }

    /// Columns that the band holds for the rows after `from` up to `to`.
    pub fn width(&self, from: usize, to: usize) -> usize {
        let (first, last) = self.band.columns(from, to);
        (last.min(self.text.len()) + 1).saturating_sub(first)
    }

    /// Carries `row`, which lies at `from`, down to the row `to`; `from` is a multiple of `STRIP`.
    /// With `record` the vertical steps of everything in between are added to `scratch.record`.
    pub fn run(
        &self,
        row: &mut Row,
        (from, to): (usize, usize),
        record: bool,
        scratch: &mut Scratch,
        stop: &Stop,
    ) -> Result<()> {
        for top in (from..to).step_by(STRIP) {
            stop.check()?;
            let bottom = (top + STRIP).min(to);
            match (bottom - top).div_ceil(BLOCK) {
                1 => self.strip::<1>(row, top, bottom, record, scratch),
                2 => self.strip::<2>(row, top, bottom, record, scratch),
                3 => self.strip::<3>(row, top, bottom, record, scratch),
                _ => self.strip::<BLOCKS>(row, top, bottom, record, scratch),
            }
        }
        Ok(())
    }

    fn strip<const N: usize>(
        &self,
        row: &mut Row,
        top: usize,
        bottom: usize,
        record: bool,
        scratch: &mut Scratch,
    ) {
        let (first, last) = self.band.columns(top, bottom);
        // When rows are run again for walking back, the columns on the right are gone.
        let last = last.min(self.text.len());
        let first = first.min(last + 1);
        if last > row.last {
            row.steps[row.last..last].fill(UP);
        }
        // The left edge is entered from above.
        let left = first - 1;
        row.value += climb(&row.steps[row.first..left]) + (bottom - top) as i64;
        (row.first, row.last) = (left, last);

        let Scratch {
            slots,
            matches,
            record: kept,
        } = scratch;
        let rows = &self.pattern[top..bottom];
        matches.clear();
        matches.resize(N, 0);
        for (i, &symbol) in rows.iter().enumerate() {
            let slot = &mut slots[symbol as usize];
            if *slot == 0 {
                *slot = (matches.len() / N) as u16;
                matches.resize(matches.len() + N, 0);
            }
            matches[*slot as usize * N + i / BLOCK] |= 1 << (i % BLOCK);
        }
        let (table, _) = matches.as_chunks::<N>();
        let columns = &self.text[left..last];
        let steps = &mut row.steps[left..last];
        let lowest_bit = (rows.len() - 1) % BLOCK;
        if record {
            let offset = kept.bits.len();
            kept.bits.resize(offset + columns.len() * 2 * N, 0);
            let (out, _) = kept.bits[offset..].as_chunks_mut::<N>();
            let (out, _) = out.as_chunks_mut::<2>();
            let mut out = out.iter_mut();
            columns_of::<N>(table, slots, columns, steps, lowest_bit, |up, down| {
                if let Some(place) = out.next() {
                    *place = [*up, *down];
                }
            });
            kept.strips.push(RecordedStrip {
                from: top,
                to: bottom,
                first,
                last,
                offset,
                blocks: N,
            });
        } else {
            columns_of::<N>(table, slots, columns, steps, lowest_bit, |_, _| ());
        }
        for &symbol in rows {
            slots[symbol as usize] = 0;
        }
    }
}

/// The inner loop: all columns of one strip.
#[inline(always)]
fn columns_of<const N: usize>(
    table: &[[u128; N]],
    slots: &[u16],
    columns: &[u32],
    steps: &mut [u8],
    lowest_bit: usize,
    mut keep: impl FnMut(&[u128; N], &[u128; N]),
) {
    let mut up = [u128::MAX; N];
    let mut down = [0_u128; N];
    for (&symbol, step) in columns.iter().zip(steps) {
        let equal = &table[slots[symbol as usize] as usize];
        let mut step_up = u128::from(*step & UP);
        let mut step_down = u128::from(*step >> 1);
        for block in 0..N {
            let (pv, mv) = (up[block], down[block]);
            let eq = equal[block];
            let free = eq | mv;
            let eq = eq | step_down;
            let diagonal = ((eq & pv).wrapping_add(pv) ^ pv) | eq;
            let ph = mv | !(diagonal | pv);
            let mh = pv & diagonal;
            let bit = if block + 1 == N {
                lowest_bit
            } else {
                BLOCK - 1
            };
            let (out_up, out_down) = (ph >> bit & 1, mh >> bit & 1);
            let ph = ph << 1 | step_up;
            let mh = mh << 1 | step_down;
            up[block] = mh | !(free | ph);
            down[block] = ph & free;
            (step_up, step_down) = (out_up, out_down);
        }
        *step = (step_up as u8) | (step_down as u8 * DOWN);
        keep(&up, &down);
    }
}
