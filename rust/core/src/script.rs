//! Minimal edit scripts over symbols, in memory linear in their number.
//!
//! Which of several minimal scripts: the common beginning is kept, then the common end of what remains.
//! In between, walking back from the end, a deletion is preferred to keeping or replacing a symbol, and
//! that to an insertion.

use crate::Result;
use crate::kernel::{Band, Checkpoint, Record, Row, STRIP, Scratch, Table, Vertical};
use crate::levenshtein::{MAX_CELLS, common_ends, solve};
use crate::stop::Stop;

/// Bytes of recorded steps that are kept at a time, whatever the length.
const RECORD_BYTES: usize = 1 << 20;
/// Rows put aside at each level when a table is too large to be recorded at once.
const PARTS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitOp {
    Delete,
    Insert,
    Replace,
}

/// One edit of cost 1. `a` and `b` count the symbols of both sides that lie before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    pub op: UnitOp,
    pub a: u32,
    pub b: u32,
}

/// The unit edits that turn `a` into `b`, in order; what lies between them is kept. Their number is the
/// Levenshtein distance, or beyond `MAX_CELLS` what `distance` gives for the same texts.
pub fn script(a: &[u32], b: &[u32], scratch: &mut Scratch, stop: &Stop) -> Result<Vec<Unit>> {
    script_within(a, b, RECORD_BYTES, MAX_CELLS, scratch, stop)
}

fn script_within(
    a: &[u32],
    b: &[u32],
    record_bytes: usize,
    max_cells: u64,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<Vec<Unit>> {
    let (prefix, suffix) = common_ends(a, b);
    let (a, b) = (&a[prefix..a.len() - suffix], &b[prefix..b.len() - suffix]);
    let band = if Record::bytes(a.len(), b.len()) <= record_bytes {
        Band::within(a.len(), b.len(), a.len().max(b.len()))
    } else {
        solve(a, b, None, max_cells, scratch, stop)?.1
    };
    let mut walk = Walk {
        a,
        b,
        i: a.len(),
        j: b.len(),
        record_bytes,
        units: Vec::new(),
    };
    let table = Table::new(a, b, band, scratch);
    walk.back_to(&table, 0, Row::top(b.len()), scratch, stop)?;
    let mut units = walk.units;
    insert_back(&mut walk.j, &mut units);
    units.reverse();
    for unit in &mut units {
        unit.a += prefix as u32;
        unit.b += prefix as u32;
    }
    Ok(units)
}

/// The way back from the end, `i` and `j` being what is still ahead of it.
struct Walk<'s> {
    a: &'s [u32],
    b: &'s [u32],
    i: usize,
    j: usize,
    record_bytes: usize,
    units: Vec<Unit>,
}

impl Walk<'_> {
    /// Walks up to the row `from`, whose values are in `row`. What is too large to be recorded is run once
    /// to put some rows aside, and then again, part by part, from the last.
    fn back_to(
        &mut self,
        table: &Table,
        from: usize,
        mut row: Row,
        scratch: &mut Scratch,
        stop: &Stop,
    ) -> Result<()> {
        let to = self.i;
        let table = table.up_to(self.j);
        let bytes = Record::bytes(to - from, table.width(from, to));
        if to - from <= STRIP || bytes <= self.record_bytes {
            scratch.record.clear();
            table.run(&mut row, (from, to), true, scratch, stop)?;
            self.follow(&scratch.record, from);
            return Ok(());
        }
        let part = (to - from).div_ceil(STRIP).div_ceil(PARTS) * STRIP;
        let mut aside: Vec<(usize, Checkpoint)> = Vec::new();
        for top in (from..to).step_by(part) {
            aside.push((top, row.keep(self.j)));
            if top + part < to {
                table.run(&mut row, (top, top + part), false, scratch, stop)?;
            }
        }
        drop(row);
        while let Some((top, checkpoint)) = aside.pop() {
            self.back_to(&table, top, checkpoint.row(self.j), scratch, stop)?;
        }
        Ok(())
    }

    fn follow(&mut self, record: &Record, from: usize) {
        let (a, b) = (self.a, self.b);
        let end = (self.i, self.j);
        let vertical = |row, col| record.vertical(row, col);
        (self.i, self.j) = walk_back(a, b, end, from, vertical, &mut self.units);
    }
}

/// The script of a whole table without common ends, whose vertical steps `vertical(row, column)` tells.
pub fn follow<T: PartialEq>(
    a: &[T],
    b: &[T],
    vertical: impl FnMut(usize, usize) -> Vertical,
) -> Vec<Unit> {
    let mut units = Vec::new();
    let (_, mut j) = walk_back(a, b, (a.len(), b.len()), 0, vertical, &mut units);
    insert_back(&mut j, &mut units);
    units.reverse();
    units
}

/// Walks from the cell `(i, j)` up to the row `from` and adds the edits, the last one first.
fn walk_back<T: PartialEq>(
    a: &[T],
    b: &[T],
    (mut i, mut j): (usize, usize),
    from: usize,
    mut vertical: impl FnMut(usize, usize) -> Vertical,
    units: &mut Vec<Unit>,
) -> (usize, usize) {
    let unit = |op, i, j| Unit {
        op,
        a: i as u32,
        b: j as u32,
    };
    while i > from {
        match vertical(i, j) {
            Vertical::Up => {
                i -= 1;
                units.push(unit(UnitOp::Delete, i, j));
            }
            Vertical::Outside => {
                j -= 1;
                units.push(unit(UnitOp::Insert, i, j));
            }
            Vertical::Same | Vertical::Down => {
                let differ = a[i - 1] != b[j - 1];
                if differ && vertical(i, j - 1) == Vertical::Down {
                    j -= 1;
                    units.push(unit(UnitOp::Insert, i, j));
                    continue;
                }
                i -= 1;
                j -= 1;
                if differ {
                    units.push(unit(UnitOp::Replace, i, j));
                }
            }
        }
    }
    (i, j)
}

/// What is left of `b` above the first row can only have been inserted.
fn insert_back(j: &mut usize, units: &mut Vec<Unit>) {
    while *j > 0 {
        *j -= 1;
        units.push(Unit {
            op: UnitOp::Insert,
            a: 0,
            b: *j as u32,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::levenshtein::plain;
    use crate::testing::symbols;

    fn apply(a: &[u32], b: &[u32], units: &[Unit]) -> Vec<u32> {
        let mut out = Vec::new();
        let mut at = 0;
        for unit in units {
            out.extend_from_slice(&a[at..unit.a as usize]);
            assert_eq!(out.len(), unit.b as usize);
            at = unit.a as usize + usize::from(unit.op != UnitOp::Insert);
            if unit.op != UnitOp::Delete {
                out.push(b[unit.b as usize]);
            }
        }
        out.extend_from_slice(&a[at..]);
        out
    }

    /// The rule of ties, read off the whole table.
    fn plain_script(a: &[u32], b: &[u32]) -> Vec<Unit> {
        let (prefix, suffix) = common_ends(a, b);
        let (m, n) = (a.len() - suffix, b.len() - suffix);
        let d = |i: usize, j: usize| plain(&a[prefix..i], &b[prefix..j]);
        let (mut i, mut j) = (m, n);
        let mut units = Vec::new();
        while i > prefix || j > prefix {
            let here = d(i, j);
            let op = if i > prefix && d(i - 1, j) + 1 == here {
                i -= 1;
                UnitOp::Delete
            } else if i > prefix
                && j > prefix
                && d(i - 1, j - 1) + u32::from(a[i - 1] != b[j - 1]) == here
            {
                i -= 1;
                j -= 1;
                if a[i] == b[j] {
                    continue;
                }
                UnitOp::Replace
            } else {
                j -= 1;
                UnitOp::Insert
            };
            units.push(Unit {
                op,
                a: i as u32,
                b: j as u32,
            });
        }
        units.reverse();
        units
    }

    proptest! {
        #[test]
        fn gives_b_at_the_least_cost(a in symbols(900), b in symbols(900)) {
            let mut scratch = Scratch::default();
            let units = script(&a, &b, &mut scratch, &Stop::new()).unwrap();
            prop_assert_eq!(apply(&a, &b, &units), b.clone());
            prop_assert_eq!(units.len() as u32, plain(&a, &b));
        }

        #[test]
        fn ties_follow_the_rule(a in symbols(40), b in symbols(40)) {
            let units = script(&a, &b, &mut Scratch::default(), &Stop::new()).unwrap();
            prop_assert_eq!(units, plain_script(&a, &b));
        }

        #[test]
        fn memory_makes_no_difference(a in symbols(2500), b in symbols(2500)) {
            let mut scratch = Scratch::default();
            let whole = script(&a, &b, &mut scratch, &Stop::new()).unwrap();
            let parts = script_within(&a, &b, 0, MAX_CELLS, &mut scratch, &Stop::new()).unwrap();
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn beyond_the_cap_it_still_gives_b_at_the_cost_told(
            a in symbols(1500), b in symbols(1500), cells in 1_u64..400_000,
        ) {
            let mut scratch = Scratch::default();
            let units = script_within(&a, &b, 0, cells, &mut scratch, &Stop::new()).unwrap();
            prop_assert_eq!(apply(&a, &b, &units), b.clone());
            let (x, y) = crate::levenshtein::trim(&a, &b);
            let (told, _) = solve(x, y, None, cells, &mut scratch, &Stop::new()).unwrap();
            prop_assert_eq!(units.len() as u32, told);
        }
    }

    #[test]
    fn many_parts_at_several_levels() {
        let a: Vec<u32> = (0..40_000_u32)
            .map(|i| i.wrapping_mul(2_654_435_761) >> 22)
            .collect();
        let mut b = a.clone();
        b.drain(1000..1300);
        b.splice(30_000..30_010, [1, 2, 3]);
        b[20_000] = 5000;
        let mut scratch = Scratch::default();
        let whole = script(&a, &b, &mut scratch, &Stop::new()).unwrap();
        let parts = script_within(&a, &b, 0, MAX_CELLS, &mut scratch, &Stop::new()).unwrap();
        assert_eq!(apply(&a, &b, &whole), b);
        assert_eq!(whole, parts);
    }
}
