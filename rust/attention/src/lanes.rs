//! Vectors of float32 numbers. What is computed is written once over `Lanes`; each implementation is a set of
//! instructions.

use std::arch::x86_64::*;

use crate::tile::{self, Left, Right, Target};

/// Operations on a vector of `WIDTH` numbers.
///
/// # Safety
/// Every method may be called only on a machine that has the instructions of the implementing type, and
/// pointers must lead to as many numbers as are read or written.
pub trait Lanes: Copy {
    const WIDTH: usize;
    /// Rows of a tile: as many as leave registers for the right side of a product.
    const ROWS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * by + more`, rounded once.
    unsafe fn mul_add(self, by: Self, more: Self) -> Self;
    /// The larger of each two; `other`'s where one is no number.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn round(self) -> Self;
    /// `self` times 2 to the power of `exponents`, whole numbers from -126 to 127; zero where `below` is less
    /// than `limit`.
    unsafe fn scaled_unless(self, exponents: Self, below: Self, limit: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;

    /// As `tile::tile`, up to `ROWS` rows.
    unsafe fn tile<const DOWN: usize>(
        rows: usize,
        depth: usize,
        left: Left<DOWN>,
        right: Right,
        target: Target,
    );
}

#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// SAFETY of every block below: the trait lets its methods be called only where the machine has AVX2 and FMA.
impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, more: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, by.0, more.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0)) }
    }

    #[inline(always)]
    unsafe fn scaled_unless(self, exponents: Self, below: Self, limit: Self) -> Self {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(exponents.0), _mm256_set1_epi32(127));
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
            let zero = _mm256_cmp_ps::<_CMP_LT_OQ>(below.0, limit.0);
            Self(_mm256_andnot_ps(zero, _mm256_mul_ps(self.0, power)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const DOWN: usize>(
        rows: usize,
        depth: usize,
        left: Left<DOWN>,
        right: Right,
        target: Target,
    ) {
        unsafe { tile::tile::<Self, 2, DOWN>(rows, depth, left, right, target) }
    }
}

#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY of every block below: the trait lets its methods be called only where the machine has AVX-512 F.
impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    const ROWS: usize = 24;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, more: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, by.0, more.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn scaled_unless(self, exponents: Self, below: Self, limit: Self) -> Self {
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(below.0, limit.0);
            Self(_mm512_maskz_scalef_ps(keep, self.0, exponents.0))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const DOWN: usize>(
        rows: usize,
        depth: usize,
        left: Left<DOWN>,
        right: Right,
        target: Target,
    ) {
        unsafe { tile::tile::<Self, 1, DOWN>(rows, depth, left, right, target) }
    }
}
