use std::arch::aarch64::*;

use super::Lanes;

/// Two lanes.
#[derive(Clone, Copy)]
pub struct Neon(uint64x2_t);

// SAFETY of every block below: the trait lets its methods be called only where the machine has NEON;
// pointers lead to two lanes.
impl Lanes for Neon {
    const WIDTH: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        unsafe { Self(vdupq_n_u64(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        unsafe { Self(vld1q_u64(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        unsafe { vst1q_u64(to, self.0) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        unsafe { Self(vandq_u64(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        unsafe { Self(vorrq_u64(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(vaddq_u64(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn top_bit(self) -> Self {
        unsafe { Self(vshrq_n_u64::<63>(self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_left(self) -> Self {
        unsafe { Self(vaddq_u64(self.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_in(self, before: Self) -> Self {
        // Shift and insert: the upper 63 bits stay.
        unsafe { Self(vsliq_n_u64::<1>(before.top_bit().0, self.0)) }
    }

    #[inline(always)]
    unsafe fn same(self, other: Self) -> Self {
        unsafe { Self::splat(u64::MAX).and_same(self, other) }
    }

    #[inline(always)]
    unsafe fn and_same(self, a: Self, b: Self) -> Self {
        unsafe { Self(vbicq_u64(self.0, veorq_u64(a.0, b.0))) }
    }

    #[inline(always)]
    unsafe fn or_nor(self, a: Self, b: Self) -> Self {
        unsafe { Self(vornq_u64(self.0, vorrq_u64(a.0, b.0))) }
    }

    #[inline(always)]
    unsafe fn xor_or(self, a: Self, b: Self) -> Self {
        unsafe { Self(veorq_u64(self.0, a.0)).or(b) }
    }

    #[inline(always)]
    unsafe fn spread<const BYTE: usize>(self) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn mask<const BYTE: usize>(spread: Self, bit: usize) -> Self {
        unsafe { Self(vtstq_u64(spread.0, vdupq_n_u64(1 << (8 * BYTE + bit)))) }
    }

    #[inline(always)]
    unsafe fn with_steps(self, up: Self, down: Self) -> Self {
        unsafe {
            let both = vsriq_n_u64::<1>(down.0, up.0);
            Self(vbslq_u64(vdupq_n_u64(3 << 62), both, self.0))
        }
    }

    #[inline(always)]
    unsafe fn planes(bytes: &[u8; 64], bits: usize) -> [u64; 8] {
        let mut planes = [0; 8];
        for (bit, plane) in planes.iter_mut().enumerate().take(bits) {
            for (row, byte) in bytes.iter().enumerate() {
                *plane |= u64::from(byte >> bit & 1) << row;
            }
        }
        planes
    }
}
