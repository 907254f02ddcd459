//! The exponential function, a vector of numbers at a time.

use crate::lanes::Lanes;

/// e to the power of each, within 2 units in the last place; 0 below -87.3, for numbers up to 88.
///
/// # Safety
/// As the methods of `L`.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    unsafe {
        let lowest = L::splat(-87.336_54);
        // In this order a NaN stays one.
        let cut = lowest.max(x);
        // x = n ln 2 + r, with ln 2 in two parts so that r is exact.
        let n = cut.mul(L::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(L::splat(-0.693_359_4), cut);
        let r = n.mul_add(L::splat(2.121_944_4e-4), r);
        // The series of e to the r, up to the seventh power: r is at most half of ln 2.
        let mut y = L::splat(1.0 / 5040.0);
        for factor in [
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ] {
            y = y.mul_add(r, L::splat(factor));
        }
        y.scaled_unless(n, x, lowest)
    }
}
