//! The edit script of two texts as blocks of characters, made of a minimal script over their words.

use crate::script::{Unit, UnitOp};
use crate::words::{Word, Words};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Equal,
    Delete,
    Insert,
    Replace,
}

impl Op {
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Delete => "delete",
            Self::Insert => "insert",
            Self::Replace => "replace",
        }
    }
}

/// A piece of both texts, in characters (code points).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub op: Op,
    pub a_start: u32,
    pub a_end: u32,
    pub b_start: u32,
    pub b_end: u32,
}

/// One text with its words.
#[derive(Clone, Copy)]
pub struct Side<'t> {
    pub text: &'t str,
    pub words: &'t Words,
}

impl<'t> Side<'t> {
    /// The text from word `from` up to the end of the word before `to`.
    fn span(&self, from: usize, to: usize) -> &'t [u8] {
        let words = &self.words.words;
        &self.text.as_bytes()[words[from].start as usize..words[to - 1].end as usize]
    }

    /// Bytes and characters between word `from - 1` and word `to`.
    fn gap(&self, from: usize, to: usize) -> Gap<'t> {
        let words = &self.words.words;
        let before = from.checked_sub(1).and_then(|i| words.get(i));
        let (start, char_start) = before.map_or((0, 0), |w: &Word| (w.end as usize, w.char_end));
        let (end, char_end) = words
            .get(to)
            .map_or((self.text.len(), self.words.chars), |w| {
                (w.start as usize, w.char_start)
            });
        Gap {
            text: &self.text[start..end],
            start: char_start,
            end: char_end,
        }
    }
}

/// What lies between two words that are kept.
struct Gap<'t> {
    text: &'t str,
    start: u32,
    end: u32,
}

/// Blocks in order that cover both texts: replaying them on a gives b. Between two blocks that are not
/// `Equal` there is always an equal one with at least one character: edits with nothing but white space
/// between them are one block. White space that is the same at the ends of a change does not belong to it.
pub fn blocks(a: Side, b: Side, units: &[Unit]) -> Vec<Block> {
    let mut out = Blocks::default();
    let (a_count, b_count) = (a.words.words.len(), b.words.words.len());
    // Words of both sides that are placed already, and the edits that are not.
    let (mut i, mut j) = (0, 0);
    let mut rest = units.iter().peekable();
    loop {
        let (from_a, from_b) = (i, j);
        while let Some(unit) = rest.next_if(|u| u.a as usize == i && u.b as usize == j) {
            i += usize::from(unit.op != UnitOp::Insert);
            j += usize::from(unit.op != UnitOp::Delete);
        }
        out.change(a.gap(from_a, i), b.gap(from_b, j));
        if i >= a_count || j >= b_count {
            break;
        }
        // Kept words up to the next edit: mostly all that lies between them is the same too.
        let kept = match rest.peek() {
            Some(unit) => unit.a as usize - i,
            None => a_count - i,
        };
        let skip = if kept > 1 && a.span(i, i + kept) == b.span(j, j + kept) {
            kept
        } else {
            1
        };
        i += skip;
        j += skip;
    }
    out.finish(a.words.chars, b.words.chars)
}

/// Changes in order; `finish` puts the equal blocks between them.
#[derive(Default)]
struct Blocks {
    blocks: Vec<Block>,
    a: u32,
    b: u32,
}

impl Blocks {
    fn change(&mut self, a: Gap, b: Gap) {
        if a.text == b.text {
            return;
        }
        let same = |(x, y): &(char, char)| x == y && x.is_whitespace();
        let (mut x, mut y) = (a.text.chars(), b.text.chars());
        let head = x.by_ref().zip(y.by_ref()).take_while(same).count() as u32;
        let shortest = (a.end - a.start).min(b.end - b.start);
        let tail = a
            .text
            .chars()
            .rev()
            .zip(b.text.chars().rev())
            .take_while(same)
            .count() as u32;
        let tail = tail.min(shortest - head);
        let (a_start, a_end) = (a.start + head, a.end - tail);
        let (b_start, b_end) = (b.start + head, b.end - tail);
        let op = match (a_start == a_end, b_start == b_end) {
            (true, _) => Op::Insert,
            (_, true) => Op::Delete,
            _ => Op::Replace,
        };
        self.equal_up_to(a_start, b_start);
        self.blocks.push(Block {
            op,
            a_start,
            a_end,
            b_start,
            b_end,
        });
        (self.a, self.b) = (a_end, b_end);
    }

    fn equal_up_to(&mut self, a_end: u32, b_end: u32) {
        let (a_start, b_start) = (self.a, self.b);
        if a_start < a_end {
            self.blocks.push(Block {
                op: Op::Equal,
                a_start,
                a_end,
                b_start,
                b_end,
            });
        }
    }

    fn finish(mut self, a_end: u32, b_end: u32) -> Vec<Block> {
        self.equal_up_to(a_end, b_end);
        self.blocks
    }
}

/// No script over characters needs to cost more than this.
pub fn character_bound(blocks: &[Block]) -> u32 {
    let cost = |x: &Block| (x.a_end - x.a_start).max(x.b_end - x.b_start);
    blocks.iter().filter(|x| x.op != Op::Equal).map(cost).sum()
}
