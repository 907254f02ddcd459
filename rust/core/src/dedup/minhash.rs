//! MinHash: for each of many random orders of all shingles, the first one of a text.
//!
//! An order is that of `multiplier * x mod 2^32`, where x is the upper half of a shingle's hash; each
//! multiplier serves two orders, from the bottom and from the top. The share of equal minima of two
//! texts estimates the Jaccard similarity of their sets of shingles.

use super::splitmix;
use crate::Result;
use crate::cpu::Kernel;

/// Multipliers that one block of minima comes from; from each come two minima.
const LANES: usize = 16;
const BLOCK: usize = 2 * LANES;
/// Blocks that are computed in one pass over the shingles: their minima stay in registers.
const TOGETHER: usize = 4;

/// The random orders of one signature.
#[derive(Debug, Clone)]
pub struct MinHash {
    multipliers: Vec<[u32; LANES]>,
    minima: usize,
    kernel: Kernel,
}

impl MinHash {
    pub fn new(minima: usize, seed: u64) -> Result<Self> {
        let mut state = seed;
        let lane = |state: &mut u64| (splitmix(state) >> 32) as u32 | 1;
        // Whole passes: what is too much is left out in the end.
        let blocks = minima.div_ceil(BLOCK).next_multiple_of(TOGETHER);
        Ok(Self {
            multipliers: (0..blocks)
                .map(|_| std::array::from_fn(|_| lane(&mut state)))
                .collect(),
            minima,
            kernel: Kernel::chosen()?,
        })
    }

    /// The minima of the shingles with these hashes, of which there is at least one. `halves` is a buffer.
    pub fn minima(&self, hashes: &[u64], halves: &mut Vec<u32>, out: &mut Vec<u32>) {
        halves.clear();
        halves.extend(hashes.iter().map(|hash| (hash >> 32) as u32));
        out.resize(self.minima, 0);
        let (groups, _) = self.multipliers.as_chunks::<TOGETHER>();
        for (group, out) in groups.iter().zip(out.chunks_mut(BLOCK * TOGETHER)) {
            let minima = match self.kernel {
                // SAFETY: a kernel is chosen only where the machine has its instructions.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512Vbmi2 | Kernel::Avx512 => unsafe { avx512(group, halves) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => unsafe { avx2(group, halves) },
                // NEON is part of every aarch64, so the compiler uses it by itself.
                _ => lanes(group, halves),
            };
            for (out, minima) in out.chunks_mut(BLOCK).zip(&minima) {
                out.copy_from_slice(&minima[..out.len()]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(group: &[[u32; LANES]; TOGETHER], halves: &[u32]) -> [[u32; BLOCK]; TOGETHER] {
    lanes(group, halves)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(group: &[[u32; LANES]; TOGETHER], halves: &[u32]) -> [[u32; BLOCK]; TOGETHER] {
    lanes(group, halves)
}

/// Written so that the compiler makes vectors of it, of whatever width its caller allows.
#[inline(always)]
fn lanes(group: &[[u32; LANES]; TOGETHER], halves: &[u32]) -> [[u32; BLOCK]; TOGETHER] {
    let mut low = [[u32::MAX; LANES]; TOGETHER];
    let mut high = [[0_u32; LANES]; TOGETHER];
    for &x in halves {
        for i in 0..TOGETHER {
            for lane in 0..LANES {
                let value = x.wrapping_mul(group[i][lane]);
                low[i][lane] = low[i][lane].min(value);
                high[i][lane] = high[i][lane].max(value);
            }
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| match lane.checked_sub(LANES) {
            None => low[i][lane],
            Some(lane) => !high[i][lane],
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signature(minhash: &MinHash, hashes: &[u64]) -> Vec<u32> {
        let mut out = Vec::new();
        minhash.minima(hashes, &mut Vec::new(), &mut out);
        out
    }

    /// The plain twin.
    fn plain(minhash: &MinHash, hashes: &[u64]) -> Vec<u32> {
        (0..minhash.minima)
            .map(|i| {
                let (block, lane) = (i / BLOCK, i % BLOCK);
                let multiplier = minhash.multipliers[block][lane % LANES];
                let of = |hash: &u64| ((hash >> 32) as u32).wrapping_mul(multiplier);
                if lane < LANES {
                    hashes.iter().map(of).min().unwrap()
                } else {
                    hashes.iter().map(|hash| !of(hash)).min().unwrap()
                }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_path_gives_the_same_minima(
            hashes in prop::collection::vec(any::<u64>(), 1..300),
            minima in 1_usize..400,
            seed in any::<u64>(),
        ) {
            let mut minhash = MinHash::new(minima, seed).unwrap();
            let expected = plain(&minhash, &hashes);
            for kernel in Kernel::available() {
                minhash.kernel = kernel;
                prop_assert_eq!(&signature(&minhash, &hashes), &expected, "{}", kernel.name());
            }
        }
    }

    /// Pairs of sets of `size` numbers with `shared` in common: mean and variance of their estimates.
    fn estimates(size: usize, shared: usize, pairs: usize) -> (f64, f64) {
        let minhash = MinHash::new(256, 1).unwrap();
        let mut state = 99;
        let mut draw = |n: usize| -> Vec<u64> { (0..n).map(|_| splitmix(&mut state)).collect() };
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..pairs {
            let common = draw(shared);
            let mut side = || [common.clone(), draw(size - shared)].concat();
            let (a, b) = (signature(&minhash, &side()), signature(&minhash, &side()));
            let equal = a.iter().zip(&b).filter(|(x, y)| x == y).count() as f64 / 256.0;
            sum += equal;
            squares += equal * equal;
        }
        let n = pairs as f64;
        (sum / n, squares / n - (sum / n) * (sum / n))
    }

    #[test]
    fn the_share_of_equal_minima_estimates_jaccard() {
        for (size, shared) in [
            (180, 160),
            (180, 120),
            (180, 30),
            (10, 8),
            (3, 1),
            (2000, 1700),
        ] {
            let jaccard = shared as f64 / (2 * size - shared) as f64;
            let (mean, variance) = estimates(size, shared, 4000);
            let ideal = jaccard * (1.0 - jaccard) / 256.0;
            let error = (ideal / 4000.0).sqrt();
            assert!(
                (mean - jaccard).abs() < 5.0 * error,
                "{size} {shared}: {mean} {jaccard}"
            );
            // Independent orders would give the ideal; so must these, but for chance.
            assert!(
                variance < 1.15 * ideal,
                "{size} {shared}: {variance} {ideal}"
            );
        }
    }
}
