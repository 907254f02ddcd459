use std::arch::x86_64::*;

use super::Lanes;

/// Four lanes.
#[derive(Clone, Copy)]
pub struct Avx2(__m256i);

// SAFETY of every block below: the trait lets its methods be called only where the machine has AVX2;
// pointers lead to four aligned lanes.
impl Lanes for Avx2 {
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        unsafe { Self(_mm256_set1_epi64x(value as i64)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        unsafe { Self(_mm256_load_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        unsafe { _mm256_store_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        unsafe { Self(_mm256_and_si256(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        unsafe { Self(_mm256_or_si256(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_epi64(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn top_bit(self) -> Self {
        unsafe { Self(_mm256_srli_epi64::<63>(self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_left(self) -> Self {
        unsafe { Self(_mm256_add_epi64(self.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_in(self, before: Self) -> Self {
        unsafe { self.shift_left().or(before.top_bit()) }
    }

    #[inline(always)]
    unsafe fn same(self, other: Self) -> Self {
        unsafe { Self::splat(u64::MAX).and_same(self, other) }
    }

    #[inline(always)]
    unsafe fn and_same(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_andnot_si256(_mm256_xor_si256(a.0, b.0), self.0)) }
    }

    #[inline(always)]
    unsafe fn or_nor(self, a: Self, b: Self) -> Self {
        unsafe {
            let all = _mm256_set1_epi64x(-1);
            self.or(Self(_mm256_andnot_si256(a.or(b).0, all)))
        }
    }

    #[inline(always)]
    unsafe fn xor_or(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_xor_si256(self.0, a.0)).or(b) }
    }

    #[inline(always)]
    unsafe fn spread<const BYTE: usize>(self) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn mask<const BYTE: usize>(spread: Self, bit: usize) -> Self {
        unsafe {
            // A sign can be spread over 32 bits only, so the lower half is then copied to the upper one.
            let left = _mm_cvtsi64_si128((31 - 8 * BYTE - bit) as i64);
            let half = _mm256_srai_epi32::<31>(_mm256_sll_epi32(spread.0, left));
            Self(_mm256_shuffle_epi32::<0b10_10_00_00>(half))
        }
    }

    #[inline(always)]
    unsafe fn with_steps(self, up: Self, down: Self) -> Self {
        unsafe {
            let bit_62 = Self::splat(1 << 62);
            let bit_63 = Self::splat(1 << 63);
            let rest = Self::splat(u64::MAX >> 2);
            let up = Self(_mm256_srli_epi64::<1>(up.0)).and(bit_62);
            self.and(rest).or(up).or(down.and(bit_63))
        }
    }

    #[inline(always)]
    unsafe fn planes(bytes: &[u8; 64], bits: usize) -> [u64; 8] {
        unsafe {
            let low = _mm256_loadu_si256(bytes.as_ptr().cast());
            let high = _mm256_loadu_si256(bytes.as_ptr().add(32).cast());
            let mut planes = [0; 8];
            for (bit, plane) in planes.iter_mut().enumerate().take(bits) {
                let left = _mm_cvtsi64_si128(7 - bit as i64);
                let signs = |half| _mm256_movemask_epi8(_mm256_sll_epi64(half, left)) as u32;
                *plane = u64::from(signs(low)) | u64::from(signs(high)) << 32;
            }
            planes
        }
    }
}
