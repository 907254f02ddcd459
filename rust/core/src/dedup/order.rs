//! The order in which groups are visited: by the keep rule's number, then by text, then by what else
//! belongs to the row, then by row.

use super::groups::{Firsts, Place};
use super::spill::Records;
use crate::Result;
use crate::stop::Stop;

/// Bytes of each text that are compared at once where not all texts fit into memory.
const STEP: usize = 16;

/// The places in `groups` (which is ascending) in the order of the visit.
pub fn visiting_order(
    groups: &[u32],
    firsts: &Firsts,
    texts: &mut Records,
    memory: usize,
    stop: &Stop,
) -> Result<Vec<u32>> {
    let mut order: Vec<u32> = (0..groups.len() as u32).collect();
    let Some(places) = &firsts.order else {
        // Groups are numbered as their first rows are.
        return Ok(order);
    };
    let place = |at: u32| &places[groups[at as usize] as usize];
    let last = |at: &u32| {
        (
            place(*at).row.rest,
            firsts.row[groups[*at as usize] as usize],
        )
    };
    order.sort_unstable_by_key(|&at| (place(at).row.key, at));
    let mut sorter = Sorter {
        texts,
        memory,
        stop,
        place: &place,
        last: &last,
    };
    for tied in order.chunk_by_mut(|&a, &b| place(a).row.key == place(b).row.key) {
        sorter.sort(tied, 0)?;
    }
    Ok(order)
}

struct Sorter<'a, P, L> {
    texts: &'a mut Records,
    memory: usize,
    stop: &'a Stop,
    place: &'a P,
    last: &'a L,
}

impl<'a, P: Fn(u32) -> &'a Place, L: Fn(&u32) -> (u64, u32)> Sorter<'a, P, L> {
    /// Sorts groups whose texts are equal in their first `from` bytes.
    fn sort(&mut self, tied: &mut [u32], from: usize) -> Result<()> {
        self.stop.check()?;
        if tied.len() < 2 {
            return Ok(());
        }
        let size = |texts: &Records, at: u32| texts.size((self.place)(at).text as usize);
        let bytes: usize = tied.iter().map(|&at| size(self.texts, at) + 64).sum();
        if bytes <= self.memory {
            let mut loaded = Vec::with_capacity(tied.len());
            for &at in &*tied {
                let mut text = Vec::new();
                self.texts.read((self.place)(at).text as usize, &mut text)?;
                loaded.push((text, (self.last)(&at), at));
            }
            loaded.sort_unstable();
            for (slot, (_, _, at)) in tied.iter_mut().zip(loaded) {
                *slot = at;
            }
            return Ok(());
        }
        let from = from + self.common(tied, from)?;
        // A text that ends here comes before one that goes on, even with zeros.
        let mut steps = Vec::with_capacity(tied.len());
        let mut text = Vec::new();
        for &at in &*tied {
            text.clear();
            self.texts.read((self.place)(at).text as usize, &mut text)?;
            let rest = &text[from.min(text.len())..];
            let mut step = [0; STEP];
            let len = rest.len().min(STEP);
            step[..len].copy_from_slice(&rest[..len]);
            steps.push((step, rest.len().min(STEP + 1) as u8, at));
        }
        steps.sort_unstable();
        for (slot, step) in tied.iter_mut().zip(&steps) {
            *slot = step.2;
        }
        let lengths: Vec<(usize, bool)> = steps
            .chunk_by(|a, b| (a.0, a.1) == (b.0, b.1))
            .map(|run| (run.len(), usize::from(run[0].1) <= STEP))
            .collect();
        drop(steps);
        let mut rest = tied;
        for (len, whole) in lengths {
            let (run, others) = rest.split_at_mut(len);
            if whole {
                run.sort_unstable_by_key(self.last);
            } else {
                self.sort(run, from + STEP)?;
            }
            rest = others;
        }
        Ok(())
    }

    /// How many bytes after `from` all these texts have in common.
    fn common(&mut self, tied: &[u32], from: usize) -> Result<usize> {
        let mut first = Vec::new();
        let mut text = Vec::new();
        self.texts
            .read((self.place)(tied[0]).text as usize, &mut first)?;
        let mut common = first.len().saturating_sub(from);
        for &at in tied {
            text.clear();
            self.texts.read((self.place)(at).text as usize, &mut text)?;
            common = first
                .iter()
                .zip(&text)
                .skip(from)
                .take(common)
                .take_while(|(a, b)| a == b)
                .count();
            if common == 0 {
                break;
            }
        }
        Ok(common)
    }
}
