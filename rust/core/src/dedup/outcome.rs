//! What became of each row.

use super::groups::{Firsts, NONE};
use super::visit::Counts;

/// A group that goes because of one that stays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gone {
    pub group: u32,
    pub kept: u32,
    pub jaccard: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The text is that of a row that stays, but for case and white space.
    Exact,
    /// The text is near that of a row that stays.
    Near,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Near => "near",
        }
    }
}

/// What became of all rows.
#[derive(Debug)]
pub struct Outcome {
    group_of_row: Vec<u32>,
    first_row: Vec<u32>,
    /// For each group its place in `gone`, if it goes.
    gone_at: Vec<u32>,
    gone: Vec<Gone>,
    /// Whether others go because of a group.
    speaks: Vec<bool>,
    pub rows: u32,
    pub rows_out: u32,
    pub exact: u32,
    pub near: u32,
    pub without_text: u32,
    /// Rows that stay and because of which others go.
    pub groups: u32,
    pub counts: Counts,
}

impl Outcome {
    pub(super) fn new(firsts: Firsts, rows: u32, gone: Vec<Gone>, counts: Counts) -> Self {
        let mut gone_at = vec![NONE; firsts.len()];
        for (at, each) in gone.iter().enumerate() {
            gone_at[each.group as usize] = at as u32;
        }
        let mut outcome = Self {
            group_of_row: firsts.group_of_row,
            first_row: firsts.row,
            gone_at,
            gone,
            speaks: Vec::new(),
            rows,
            rows_out: 0,
            exact: 0,
            near: 0,
            without_text: 0,
            groups: 0,
            counts,
        };
        let mut speaks = vec![false; outcome.first_row.len()];
        for row in 0..rows {
            match outcome.gone(row) {
                None => outcome.rows_out += 1,
                Some((kept, _, reason)) => {
                    match reason {
                        Reason::Exact => outcome.exact += 1,
                        Reason::Near => outcome.near += 1,
                    }
                    let group = outcome.group_of_row[kept as usize] as usize;
                    outcome.groups += u32::from(!std::mem::replace(&mut speaks[group], true));
                }
            }
            outcome.without_text += u32::from(outcome.group(row).is_none());
        }
        outcome.speaks = speaks;
        outcome
    }

    fn group(&self, row: u32) -> Option<u32> {
        let group = self.group_of_row.get(row as usize).copied();
        group.filter(|&group| group != NONE)
    }

    /// Whether a row goes, or another goes because of it.
    pub fn involved(&self, row: u32) -> bool {
        let speaks =
            |group: u32| self.speaks[group as usize] && self.first_row[group as usize] == row;
        self.group(row).is_some_and(speaks) || self.gone(row).is_some()
    }

    /// If a row goes: the row that stays, how near it is, and why.
    pub fn gone(&self, row: u32) -> Option<(u32, f64, Reason)> {
        let group = self.group(row)?;
        if let Some(gone) = self.gone.get(self.gone_at[group as usize] as usize) {
            let kept = self.first_row[gone.kept as usize];
            return Some((kept, gone.jaccard, Reason::Near));
        }
        let first = self.first_row[group as usize];
        (first != row).then_some((first, 1.0, Reason::Exact))
    }
}
