//! Which minima together make one band, and how likely two texts are to meet in one.

/// Minima of one signature.
pub const MINIMA: usize = 128;
/// The share of pairs at the threshold that must become candidates.
pub const RECALL: f64 = 0.99;
/// More rows in a band would only lose pairs: chance meetings are rare enough.
const MOST_ROWS: usize = 32;

/// A signature of `MINIMA` minima as `bands` bands of `rows` minima each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bands {
    pub bands: usize,
    pub rows: usize,
}

impl Bands {
    /// The most selective split that finds pairs of Jaccard `threshold` with at least `RECALL`, if one does.
    pub fn for_threshold(threshold: f64) -> Option<Self> {
        (1..=MOST_ROWS)
            .rev()
            .map(|rows| Self {
                bands: MINIMA / rows,
                rows,
            })
            .find(|split| split.recall(threshold) >= RECALL)
    }

    /// How likely two texts of Jaccard `jaccard` are to share at least one band.
    pub fn recall(&self, jaccard: f64) -> f64 {
        1.0 - (1.0 - jaccard.powi(self.rows as i32)).powi(self.bands as i32)
    }

    /// Appends one key a band; equal keys mean equal minima in the same band.
    pub fn keys(&self, minima: &[u32], out: &mut Vec<u64>) {
        out.extend(minima.chunks_exact(self.rows).enumerate().map(|(i, band)| {
            let mut key = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for &minimum in band {
                key = (key ^ u64::from(minimum)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                key ^= key >> 32;
            }
            key
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_for_thresholds() {
        let split = |t| Bands::for_threshold(t).map(|b| (b.bands, b.rows));
        assert_eq!(split(0.8), Some((21, 6)));
        assert_eq!(split(0.7), Some((32, 4)));
        assert_eq!(split(0.5), Some((42, 3)));
        assert_eq!(split(0.9), Some((12, 10)));
        assert_eq!(split(1.0), Some((4, 32)));
        assert_eq!(split(0.1), Some((128, 1)));
        assert_eq!(split(0.01), None);
        for t in 10..=100 {
            let t = f64::from(t) / 100.0;
            assert!(Bands::for_threshold(t).unwrap().recall(t) >= RECALL, "{t}");
        }
        assert!((Bands { bands: 21, rows: 6 }.recall(0.8) - 0.998).abs() < 1e-3);
    }

    #[test]
    fn a_key_hangs_on_its_band_alone() {
        let mut minima = [7; MINIMA];
        let split = Bands { bands: 21, rows: 6 };
        let keys = |minima: &[u32; MINIMA]| {
            let mut keys = Vec::new();
            split.keys(minima, &mut keys);
            keys
        };
        let before = keys(&minima);
        minima[9] = 8;
        let after = keys(&minima);
        assert_eq!(before.len(), 21);
        let changed: Vec<usize> = (0..21).filter(|&i| before[i] != after[i]).collect();
        assert_eq!(changed, [1]);
        let mut sorted = before;
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 21);
    }
}
