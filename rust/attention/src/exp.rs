//! The exponential function, eight numbers at a time.

use std::arch::x86_64::*;

/// e to the power of each, within 2 units in the last place; 0 below -87.3, for numbers up to 88.
#[target_feature(enable = "avx2,fma")]
pub fn exp(x: __m256) -> __m256 {
    let lowest = _mm256_set1_ps(-87.336_54);
    let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(x, lowest);
    // In this order a NaN stays one.
    let x = _mm256_max_ps(lowest, x);
    // x = n ln 2 + r, with ln 2 in two parts so that r is exact.
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    // The series of e to the r, up to the seventh power: r is at most half of ln 2.
    let mut y = _mm256_set1_ps(1.0 / 5040.0);
    for factor in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(factor));
    }
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(
        _mm256_cvtps_epi32(n),
        _mm256_set1_epi32(127),
    ));
    _mm256_andnot_ps(zero, _mm256_mul_ps(y, _mm256_castsi256_ps(power)))
}

/// The sum of the eight numbers.
#[target_feature(enable = "avx2,fma")]
pub fn sum(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// The largest of the eight numbers.
#[target_feature(enable = "avx2,fma")]
pub fn largest(x: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
}
