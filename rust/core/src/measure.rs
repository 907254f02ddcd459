//! The distribution of one number over any count of pairs, in bounded memory.
//!
//! Up to `EXACT` values all are kept, and every figure is exact. Beyond, each full buffer is sorted and
//! every sixteenth value kept for it, and two such runs of the same weight are merged and halved again and
//! again. Whatever the order of the input, a collapse moves a rank by less than the weight of one kept
//! value, so for n values all ranks together move by less than n x (16 + 8 log2(n / EXACT)) / EXACT:
//! below 0.01% of rank for a billion values.

use std::collections::BTreeMap;

/// Values that are kept as they are.
pub const EXACT: usize = 1 << 20;
const THIN: usize = 16;

/// What is known of the values that are no longer kept one by one.
#[derive(Debug, Clone, Default)]
pub struct Past {
    moments: Moments,
    ends: Option<(f64, f64)>,
    /// Weight to sorted values that stand for so many each.
    runs: BTreeMap<u64, Vec<f64>>,
    collapses: usize,
}

impl Past {
    /// Takes in a full buffer: `values` as they came, `whole` where they are whole numbers.
    pub fn collapse(&mut self, mut values: Vec<f64>, whole: bool) {
        if values.is_empty() {
            return;
        }
        self.moments = self.moments.and(Moments::of(&values, whole));
        self.ends = ends(&values, self.ends);
        values.sort_unstable_by(f64::total_cmp);
        let (mut run, mut weight) = (self.thinned(&values, THIN), THIN as u64);
        while let Some(other) = self.runs.remove(&weight) {
            run.extend(other);
            run.sort_unstable_by(f64::total_cmp);
            run = self.thinned(&run, 2);
            weight *= 2;
        }
        self.runs.insert(weight, run);
    }

    /// Each kept value stands for `step` around it; of an even step the middle alternates.
    fn thinned(&mut self, values: &[f64], step: usize) -> Vec<f64> {
        self.collapses += 1;
        let first = (step - self.collapses % 2) / 2;
        values.iter().skip(first).step_by(step).copied().collect()
    }

    /// Everything so far, together with the `values` that are still kept one by one.
    pub fn with(&self, mut values: Vec<f64>, whole: bool) -> Distribution {
        let moments = self.moments.and(Moments::of(&values, whole));
        let ends = ends(&values, self.ends);
        let mut upto = None;
        if self.runs.is_empty() {
            values.sort_unstable_by(f64::total_cmp);
        } else {
            let mut weighted: Vec<(f64, u64)> = values.into_iter().map(|v| (v, 1)).collect();
            for (&weight, run) in &self.runs {
                weighted.extend(run.iter().map(|&v| (v, weight)));
            }
            weighted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            let ranks = weighted.iter().scan(0, |rank, &(_, weight)| {
                *rank += weight;
                Some(*rank)
            });
            upto = Some(ranks.collect());
            values = weighted.into_iter().map(|(v, _)| v).collect();
        }
        Distribution {
            values,
            upto,
            moments,
            ends,
        }
    }
}

fn ends(values: &[f64], before: Option<(f64, f64)>) -> Option<(f64, f64)> {
    values.iter().fold(before, |ends, &v| match ends {
        Some((low, high)) => Some((low.min(v), high.max(v))),
        None => Some((v, v)),
    })
}

/// Count, mean, and sum of squared differences from the mean.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn of(values: &[f64], whole: bool) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let count = values.len() as u64;
        if !whole {
            let mean = sum(values, |v| v) / count as f64;
            let squares = sum(values, |v| (v - mean) * (v - mean));
            return Self {
                count,
                mean,
                squares,
            };
        }
        // Whole numbers without rounding: of values below 2^32 the squares of 2^32 fit.
        let (mut total, mut squared) = (0_u128, 0_u128);
        for &value in values {
            let value = value as u128;
            total += value;
            squared += value * value;
        }
        let count_wide = u128::from(count);
        let (whole, rest) = (total * total / count_wide, total * total % count_wide);
        Self {
            count,
            mean: total as f64 / count as f64,
            squares: (squared - whole) as f64 - rest as f64 / count as f64,
        }
    }

    fn and(self, new: Self) -> Self {
        if self.count == 0 || new.count == 0 {
            return if self.count == 0 { new } else { self };
        }
        let (n, m) = (self.count as f64, new.count as f64);
        let (delta, total) = (new.mean - self.mean, n + m);
        Self {
            count: self.count + new.count,
            mean: self.mean + delta * m / total,
            squares: self.squares + new.squares + delta * delta * n * m / total,
        }
    }
}

/// A sum whose error hardly grows: blocks of sixteen, and their sums two by two.
fn sum(values: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    let mut levels: Vec<Option<f64>> = Vec::new();
    for block in values.chunks(16) {
        let mut carried = block.iter().map(|&v| of(v)).sum::<f64>();
        let mut level = 0;
        while let Some(waiting) = levels.get_mut(level).and_then(Option::take) {
            carried += waiting;
            level += 1;
        }
        if level == levels.len() {
            levels.push(None);
        }
        levels[level] = Some(carried);
    }
    levels.into_iter().flatten().sum()
}

/// All values of a measure in order, or those that stand for them.
#[derive(Debug)]
pub struct Distribution {
    values: Vec<f64>,
    /// For each value the number of values up to and with it; none while all are kept.
    upto: Option<Vec<u64>>,
    moments: Moments,
    ends: Option<(f64, f64)>,
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.moments.count
    }

    pub fn mean(&self) -> f64 {
        self.moments.mean
    }

    /// The standard deviation, over n.
    pub fn std(&self) -> f64 {
        (self.moments.squares / self.count() as f64).sqrt()
    }

    pub fn ends(&self) -> Option<(f64, f64)> {
        self.ends
    }

    /// The q-quantile as numpy's default gives it; beyond `EXACT` values the nearest one kept.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.values.len().checked_sub(1)?;
        let at = q.clamp(0.0, 1.0) * (self.count() - 1) as f64;
        if let Some(upto) = &self.upto {
            let index = upto.partition_point(|&rank| rank as f64 <= at);
            return Some(self.values[index.min(last)]);
        }
        let low = (at as usize).min(last);
        let (a, b) = (self.values[low], self.values[(low + 1).min(last)]);
        let t = at - low as f64;
        // The form numpy uses: exact at both ends.
        Some(if t >= 0.5 {
            b - (b - a) * (1.0 - t)
        } else {
            a + (b - a) * t
        })
    }

    /// How many values are less than `bound`.
    pub fn below(&self, bound: f64) -> u64 {
        let index = self.values.partition_point(|&v| v < bound);
        match &self.upto {
            Some(upto) if index > 0 => upto[index - 1],
            _ => index as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantile(sorted: &[f64], q: f64) -> f64 {
        let at = q * (sorted.len() - 1) as f64;
        let (low, t) = (at as usize, at.fract());
        let high = sorted[(low + 1).min(sorted.len() - 1)];
        sorted[low] + (high - sorted[low]) * t
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn what_is_kept_is_exact(values in prop::collection::vec(-1e6..1e6, 1..200), q in 0.0..=1.0) {
            let found = Past::default().with(values.clone(), false);
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            prop_assert!(close(found.mean(), mean));
            prop_assert!(close(found.std(), variance.sqrt()));
            prop_assert_eq!(found.ends(), Some((sorted[0], sorted[sorted.len() - 1])));
            prop_assert!(close(found.quantile(q).unwrap(), quantile(&sorted, q)));
            let bound = values[0];
            prop_assert_eq!(found.below(bound), values.iter().filter(|v| **v < bound).count() as u64);
        }

        #[test]
        fn whole_numbers_and_others_agree(values in prop::collection::vec(any::<u32>(), 1..100), cut in any::<prop::sample::Index>()) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let (a, b) = values.split_at(cut.index(values.len()));
            let mut past = Past::default();
            past.collapse(a.to_vec(), true);
            let (whole, all) = (past.with(b.to_vec(), true), Past::default().with(values.clone(), false));
            prop_assert_eq!(whole.count(), values.len() as u64);
            prop_assert!(close(whole.mean(), all.mean()));
            prop_assert!((whole.std() - all.std()).abs() <= 1e-6 * (1.0 + all.std()));
        }
    }

    /// A 64th of the real buffer, filled as often as it is by 128 million values.
    #[test]
    fn beyond_it_ranks_stay_within_a_thousandth() {
        let (n, exact) = (2_000_000_u64, 1 << 14);
        // A multiplicative walk through all residues of a prime: every value once, in no order.
        let scattered = |i: u64| (i * 1_234_577) % 2_000_003;
        for order in [
            scattered as fn(u64) -> u64,
            |i| i,
            |i| 2_000_000 - i,
            |i| i % 5,
        ] {
            let values: Vec<f64> = (0..n).map(|i| order(i) as f64).collect();
            let mut past = Past::default();
            let chunks: Vec<&[f64]> = values.chunks(exact).collect();
            let (last, full) = chunks.split_last().unwrap();
            full.iter()
                .for_each(|chunk| past.collapse(chunk.to_vec(), true));
            let found = past.with(last.to_vec(), true);
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            for q in [0.05, 0.25, 0.5, 0.75, 0.95] {
                let value = found.quantile(q).unwrap();
                let at = q * (n - 1) as f64;
                let low = sorted.partition_point(|&v| v < value) as f64;
                let high = sorted.partition_point(|&v| v <= value) as f64;
                let off = (low - at).max(at - high).max(0.0) / n as f64;
                let levels = (n as f64 / exact as f64).log2();
                assert!(off <= (16.0 + 8.0 * levels) / exact as f64, "{q}: {off}");
                assert!(off <= 0.001, "{q}: {off}");
            }
            assert_eq!(found.count(), n);
            assert_eq!(found.ends(), Some((sorted[0], sorted[sorted.len() - 1])));
            assert!(close(found.mean(), sorted.iter().sum::<f64>() / n as f64));
            assert!(past.runs.len() < 12);
        }
    }
}
