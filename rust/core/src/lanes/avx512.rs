use std::arch::x86_64::*;

use super::Lanes;

/// Eight lanes. `VBMI2` says whether the instructions of Ice Lake (VBMI, VBMI2, GFNI) may be used.
#[derive(Clone, Copy)]
pub struct Avx512<const VBMI2: bool>(__m512i);

// SAFETY of every block below: the trait lets its methods be called only where the machine has AVX-512 F,
// BW, DQ and VL, and with `VBMI2` also VBMI, VBMI2 and GFNI; pointers lead to eight aligned lanes.
impl<const VBMI2: bool> Lanes for Avx512<VBMI2> {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: u64) -> Self {
        unsafe { Self(_mm512_set1_epi64(value as i64)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u64) -> Self {
        unsafe { Self(_mm512_load_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u64) {
        unsafe { _mm512_store_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        unsafe { Self(_mm512_and_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        unsafe { Self(_mm512_or_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_epi64(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn top_bit(self) -> Self {
        unsafe { Self(_mm512_srli_epi64::<63>(self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_left(self) -> Self {
        unsafe { Self(_mm512_slli_epi64::<1>(self.0)) }
    }

    #[inline(always)]
    unsafe fn shift_in(self, before: Self) -> Self {
        unsafe {
            if VBMI2 {
                Self(_mm512_shldi_epi64::<1>(self.0, before.0))
            } else {
                self.shift_left().or(before.top_bit())
            }
        }
    }

    #[inline(always)]
    unsafe fn same(self, other: Self) -> Self {
        unsafe { Self(_mm512_ternarylogic_epi64::<0xC3>(self.0, other.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn and_same(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_ternarylogic_epi64::<0x90>(self.0, a.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn or_nor(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_ternarylogic_epi64::<0xF1>(self.0, a.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn xor_or(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_ternarylogic_epi64::<0xBE>(self.0, a.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn spread<const BYTE: usize>(self) -> Self {
        unsafe {
            if VBMI2 {
                let low = BYTE as i64 * 0x0101_0101_0101_0101;
                let each = _mm512_set4_epi64(
                    low + 0x0808_0808_0808_0808,
                    low,
                    low + 0x0808_0808_0808_0808,
                    low,
                );
                Self(_mm512_shuffle_epi8(self.0, each))
            } else {
                self
            }
        }
    }

    #[inline(always)]
    unsafe fn mask<const BYTE: usize>(spread: Self, bit: usize) -> Self {
        unsafe {
            if VBMI2 {
                // Every bit of the product is the parity of the byte's one bit that is asked for.
                Self(_mm512_gf2p8affine_epi64_epi8::<0>(
                    spread.0,
                    _mm512_set1_epi8(1 << bit),
                ))
            } else {
                let left = _mm_cvtsi64_si128((63 - 8 * BYTE - bit) as i64);
                Self(_mm512_srai_epi64::<63>(_mm512_sll_epi64(spread.0, left)))
            }
        }
    }

    #[inline(always)]
    unsafe fn with_steps(self, up: Self, down: Self) -> Self {
        unsafe {
            let up = _mm512_srli_epi64::<1>(up.0);
            let bit_62 = _mm512_set1_epi64(1 << 62);
            let bit_63 = _mm512_set1_epi64(i64::MIN);
            let with_up = _mm512_ternarylogic_epi64::<0xCA>(bit_62, up, self.0);
            Self(_mm512_ternarylogic_epi64::<0xCA>(bit_63, down.0, with_up))
        }
    }

    #[inline(always)]
    unsafe fn planes(bytes: &[u8; 64], bits: usize) -> [u64; 8] {
        unsafe {
            let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
            let mut planes = [0; 8];
            for (bit, plane) in planes.iter_mut().enumerate().take(bits) {
                *plane = _mm512_test_epi8_mask(bytes, _mm512_set1_epi8(1 << bit));
            }
            planes
        }
    }
}
