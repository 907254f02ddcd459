//! Which columns of a group's table are run, strip by strip.

/// Lanes of the widest vector.
const MOST_LANES: usize = 8;

/// The columns that are run, and the costs at both ends of the row above them. A cell counts as long as a
/// script of the bound may lead through it: its cost and its distance from the diagonal that ends in the
/// last cell are no more. So the band becomes narrower as costs grow. Cells outside of it are entered as in
/// `kernel`.
pub struct Band {
    lanes: usize,
    /// For each lane the bound, and how far the last cell lies right of the main diagonal.
    bounds: [i64; MOST_LANES],
    apart: [i64; MOST_LANES],
    pub left: usize,
    pub last: usize,
    left_costs: [i64; MOST_LANES],
    last_costs: [i64; MOST_LANES],
}

impl Band {
    pub fn new(lanes: usize, rows: usize, ends: &[usize], bounds: &[usize]) -> Self {
        let mut band = Self {
            lanes,
            // In a lane without a pair no cell counts.
            bounds: [i64::from(i32::MIN); MOST_LANES],
            apart: [0; MOST_LANES],
            left: 0,
            last: 0,
            left_costs: [0; MOST_LANES],
            last_costs: [0; MOST_LANES],
        };
        for (lane, (&end, &bound)) in ends.iter().zip(bounds).enumerate() {
            band.bounds[lane] = bound as i64;
            band.apart[lane] = end as i64 - rows as i64;
        }
        band
    }

    /// Takes the columns for the rows after `top` up to `bottom`; `columns` has the steps of row `top`.
    #[inline(always)]
    pub fn go_on<const N: usize>(
        &mut self,
        columns: &[u64],
        top: usize,
        bottom: usize,
        cols: usize,
    ) {
        let (columns, _) = columns.as_chunks::<N>();
        let bounds: [i64; N] = std::array::from_fn(|lane| self.bounds[lane]);
        let apart: [i64; N] = std::array::from_fn(|lane| self.apart[lane]);
        let counts = |costs: &[i64; N], column: usize| {
            let off = column as i64 - top as i64;
            let spare = |lane| bounds[lane] - costs[lane] - i64::abs(off - apart[lane]);
            (0..N).fold(false, |counts, lane| counts | (spare(lane) >= 0))
        };
        let mut costs: [i64; N] = std::array::from_fn(|lane| self.left_costs[lane]);
        while self.left < self.last && !counts(&costs, self.left) {
            for (cost, &column) in costs.iter_mut().zip(&columns[self.left]) {
                *cost += step(column);
            }
            self.left += 1;
        }
        self.left_costs[..N].copy_from_slice(&costs);
        let mut column = self.last;
        costs = std::array::from_fn(|lane| self.last_costs[lane]);
        while column > self.left && !counts(&costs, column) {
            column -= 1;
            for (cost, &column) in costs.iter_mut().zip(&columns[column]) {
                *cost -= step(column);
            }
        }
        // From there down the diagonal, and as far to the right as leaves enough for the way back.
        let off = column as i64 - top as i64;
        let right = (0..N).map(|lane| (bounds[lane] - costs[lane] + apart[lane] - off) / 2);
        let reach = column + bottom - top + right.fold(0, i64::max) as usize;
        let last = reach.min(cols).max(self.last);
        for cost in &mut self.last_costs {
            *cost += (last - self.last) as i64;
        }
        self.last = last;
    }

    /// Goes down over a strip, whose last column has the steps `edge`.
    pub fn descend(&mut self, height: usize, edge: &[u64]) {
        for cost in &mut self.left_costs {
            *cost += height as i64;
        }
        let (up, down) = edge.split_at(edge.len() / 2);
        let words = up
            .chunks_exact(self.lanes)
            .zip(down.chunks_exact(self.lanes));
        for (up, down) in words {
            for ((cost, up), down) in self.last_costs.iter_mut().zip(up).zip(down) {
                *cost += i64::from(up.count_ones()) - i64::from(down.count_ones());
            }
        }
    }

    /// The cost at each lane's end in the last row.
    pub fn into_costs(self, columns: &[u64], ends: &[usize], costs: &mut Vec<i64>) {
        costs.clear();
        costs.extend_from_slice(&self.left_costs[..self.lanes]);
        let first_end = ends.iter().copied().min().unwrap_or(0).max(self.left);
        for column in self.left..first_end {
            for (cost, &column) in costs.iter_mut().zip(&columns[column * self.lanes..]) {
                *cost += step(column);
            }
        }
        for (lane, &end) in ends.iter().enumerate() {
            for column in first_end..end {
                costs[lane] += step(columns[column * self.lanes + lane]);
            }
        }
    }
}

/// The step of -1, 0 or +1 that a column's word holds.
fn step(column: u64) -> i64 {
    (column >> 62 & 1) as i64 - (column >> 63) as i64
}
