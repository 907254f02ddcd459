//! Against attention in float64, written down as it is defined.

use clair_attention::{
    Given, Gradients, Head, HeadMut, Instructions, Pass, Side, backward, forward,
};

const ROOM: f32 = 7.0; // written where nothing may be written

struct Numbers(u64);

impl Numbers {
    /// Between -2 and 2, the same ones each time.
    fn some(&mut self, count: usize) -> Vec<f32> {
        let next = |_| {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (self.0 >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..count).map(next).collect()
    }
}

/// Results of one head: out, and the gradients of queries, keys and values, [rows, size] each.
type Results = [Vec<f64>; 4];

fn plain(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    of_out: &[f32],
    size: usize,
    sides: &[Side],
    scale: f64,
) -> Results {
    let at = |x: &[f32], row: usize, i: usize| f64::from(x[row * size + i]);
    let mut results: Results = std::array::from_fn(|_| vec![0.0; q.len()]);
    for side in sides {
        for row in side.own.clone() {
            let keys: Vec<usize> = side.prefix.clone().chain(side.own.start..row + 1).collect();
            let score = |&key: &usize| {
                (0..size)
                    .map(|i| at(q, row, i) * at(k, key, i))
                    .sum::<f64>()
                    * scale
            };
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp() / total).collect();
            let slope = |&key: &usize| {
                (0..size)
                    .map(|i| at(of_out, row, i) * at(v, key, i))
                    .sum::<f64>()
            };
            let slopes: Vec<f64> = keys.iter().map(slope).collect();
            let delta: f64 = weights.iter().zip(&slopes).map(|(w, s)| w * s).sum();
            for ((&key, weight), slope) in keys.iter().zip(&weights).zip(&slopes) {
                let of_score = weight * (slope - delta) * scale;
                for i in 0..size {
                    results[0][row * size + i] += weight * at(v, key, i);
                    results[1][row * size + i] += of_score * at(k, key, i);
                    results[2][key * size + i] += of_score * at(q, row, i);
                    results[3][key * size + i] += weight * at(of_out, row, i);
                }
            }
        }
    }
    results
}

fn compare(size: usize, sides: &[Side], factor: f32, tolerance: f64) {
    for instructions in Instructions::available() {
        compare_with(instructions, size, sides, factor, tolerance);
    }
}

fn compare_with(
    instructions: Instructions,
    size: usize,
    sides: &[Side],
    factor: f32,
    tolerance: f64,
) {
    let rows = sides.iter().map(|side| side.own.end).max().unwrap();
    let mut numbers = Numbers(rows as u64 + size as u64);
    // The head is the second of three, and its rows hold the others' numbers too.
    let width = 3 * size;
    let spread = |head: &[f32]| -> Vec<f32> {
        let mut all = vec![ROOM; rows * width];
        for (to, from) in all.chunks_mut(width).zip(head.chunks(size)) {
            to[size..2 * size].copy_from_slice(from);
        }
        all
    };
    let gathered = |all: &[f32]| -> Vec<f32> {
        all.chunks(width)
            .flat_map(|row| row[size..2 * size].to_vec())
            .collect()
    };
    let mut some = || -> Vec<f32> {
        numbers
            .some(rows * size)
            .iter()
            .map(|x| x * factor)
            .collect()
    };
    let [q, k, v, of_out] = std::array::from_fn(|_| some());
    let scale = 0.125;
    let expected = plain(&q, &k, &v, &of_out, size, sides, f64::from(scale));

    let [query, key, value, slopes] = [&q, &k, &v, &of_out].map(|x| spread(x));
    let mut out = vec![ROOM; rows * width];
    let mut lse = vec![0.0; rows];
    let mut of_query = vec![ROOM; rows * width];
    let (mut of_key, mut of_value) = (vec![ROOM; rows * size], vec![ROOM; rows * size]);
    unsafe {
        let head = |x: &[f32]| Head::of(x.as_ptr(), width, 1, size);
        for side in sides {
            let pass = Pass {
                query: head(&query),
                key: head(&key),
                value: head(&value),
                out: HeadMut::of(out.as_mut_ptr(), width, 1, size),
                lse: lse.as_mut_ptr(),
            };
            forward(instructions, pass, side, scale);
        }
        let given = Given {
            query: head(&query),
            key: head(&key),
            value: head(&value),
            out: head(&out),
            lse: lse.as_ptr(),
            of_out: head(&slopes),
        };
        let gradients = Gradients {
            query: HeadMut::of(of_query.as_mut_ptr(), width, 1, size),
            key: HeadMut::of(of_key.as_mut_ptr(), size, 0, size),
            value: HeadMut::of(of_value.as_mut_ptr(), size, 0, size),
        };
        for side in sides {
            backward(instructions, given, side, scale, gradients);
        }
    }
    for all in [&out, &of_query] {
        let others = |row: &[f32]| {
            row[..size]
                .iter()
                .chain(&row[2 * size..])
                .all(|&x| x == ROOM)
        };
        assert!(all.chunks(width).all(others), "another head was written");
    }
    let found = [gathered(&out), gathered(&of_query), of_key, of_value];
    for (name, (found, expected)) in ["out", "query", "key", "value"]
        .iter()
        .zip(found.iter().zip(&expected))
    {
        let largest = expected.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        for (place, (x, y)) in found.iter().zip(expected).enumerate() {
            let off = (f64::from(*x) - y).abs();
            assert!(
                off <= tolerance * largest,
                "{name}[{place}] of {sides:?}, {size}, {instructions:?}: {x} and not {y}"
            );
        }
    }
}

#[test]
fn equals_attention_as_it_is_defined() {
    let side = |prefix: std::ops::Range<usize>, own| Side { prefix, own };
    for size in [16, 32, 64, 80, 128] {
        // One row, fewer than a tile, a tile and one, blocks and one; prefixes of none to more than a panel, and
        // to more than a chunk of keys.
        for own in [1, 5, 6, 7, 16, 19, 24, 25, 61, 97, 145] {
            for prefix in [0, 1, 15, 16, 17, 40, 96, 110] {
                let first = side(0..0, 0..prefix + own);
                let second = side(0..prefix, prefix + own..prefix + 2 * own + 3);
                compare(size, &[first, second], 1.0, 3e-6);
            }
        }
    }
}

#[test]
fn scores_that_differ_by_hundreds_are_no_trouble() {
    // A score of some hundreds is known to 3e-5, and so are the weights that it makes.
    let side = Side {
        prefix: 0..0,
        own: 0..70,
    };
    compare(64, &[side], 6.0, 2e-4);
}

#[test]
fn what_is_no_number_is_not_hidden() {
    let size = 16;
    let mut numbers = Numbers(1);
    let [mut q, k, v] = std::array::from_fn(|_| numbers.some(30 * size));
    q[20 * size] = f32::NAN;
    for instructions in Instructions::available() {
        let (mut out, mut lse) = (vec![0.0; 30 * size], vec![0.0; 30]);
        unsafe {
            let head = |x: &[f32]| Head::of(x.as_ptr(), size, 0, size);
            let pass = Pass {
                query: head(&q),
                key: head(&k),
                value: head(&v),
                out: HeadMut::of(out.as_mut_ptr(), size, 0, size),
                lse: lse.as_mut_ptr(),
            };
            let side = Side {
                prefix: 0..0,
                own: 0..30,
            };
            forward(instructions, pass, &side, 0.25);
        }
        for (row, numbers) in out.chunks(size).enumerate() {
            let none = numbers.iter().all(|x| x.is_nan());
            assert_eq!(none, row == 20, "row {row}, {instructions:?}");
        }
    }
}
