//! Vectors of 64-bit lanes, one pair of texts in each lane.
//!
//! The kernel in `batch` is written once over `Lanes`; each implementation is a set of instructions.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;

/// Operations on a vector of `WIDTH` lanes of 64 bits.
///
/// # Safety
/// Every method may be called only on a machine that has the instructions of the implementing type, and
/// pointers must lead to as many lanes as are read or written, aligned to the vector's size.
pub trait Lanes: Copy {
    const WIDTH: usize;

    unsafe fn splat(value: u64) -> Self;
    unsafe fn load(from: *const u64) -> Self;
    unsafe fn store(self, to: *mut u64);

    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The lowest bit of each lane is the highest one of before.
    unsafe fn top_bit(self) -> Self;
    unsafe fn shift_left(self) -> Self;
    /// `self << 1 | before >> 63`
    unsafe fn shift_in(self, before: Self) -> Self;
    /// `!(self ^ other)`
    unsafe fn same(self, other: Self) -> Self;
    /// `self & !(a ^ b)`
    unsafe fn and_same(self, a: Self, b: Self) -> Self;
    /// `self | !(a | b)`
    unsafe fn or_nor(self, a: Self, b: Self) -> Self;
    /// `self ^ a | b`
    unsafe fn xor_or(self, a: Self, b: Self) -> Self;
    /// What `mask` wants of byte `BYTE` of each lane.
    unsafe fn spread<const BYTE: usize>(self) -> Self;
    /// All ones in each lane whose byte that was spread has bit `bit` of it set (`bit` below 8).
    unsafe fn mask<const BYTE: usize>(spread: Self, bit: usize) -> Self;
    /// `self` with bit 62 from the highest bit of `up` and bit 63 from that of `down`.
    unsafe fn with_steps(self, up: Self, down: Self) -> Self;
    /// For each of the lowest `bits` bits of 64 bytes: that bit of all bytes, the first byte lowest.
    unsafe fn planes(bytes: &[u8; 64], bits: usize) -> [u64; 8];
}
