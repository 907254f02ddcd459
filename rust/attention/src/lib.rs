//! Causal attention of one head over a prefix and what stands behind it, in float32, and its way back.
//!
//! Tokens are rows: of all heads side by side, as a model's linear layers leave and take them. The `Side` of
//! a pair are the rows that ask, each of which sees the rows of the prefix and those of its own side up to
//! itself. Queries are taken a few rows at a time, so no matrix of scores is ever whole: what stands at a
//! time is `BLOCK` rows of it.
//!
//! All products are one small kernel (`tile`), 6 rows by 16 columns that stay in registers. Keys and values
//! are copied before, once for a head: transposed in panels of 16 where scores are made, row by row where
//! they are summed up.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod backward;
#[cfg(target_arch = "x86_64")]
mod exp;
#[cfg(target_arch = "x86_64")]
mod forward;
mod heads;
#[cfg(target_arch = "x86_64")]
mod scores;
#[cfg(target_arch = "x86_64")]
mod tile;

pub use heads::{Given, Gradients, Head, HeadMut, Side};

/// Whether this processor can run it: AVX2 and FMA.
pub fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Attention of one head over the own rows of `side`: `out`, and in `lse` for each row the logarithm of the
/// sum of the exponentials of its scaled scores. Panics where it is not `supported`.
///
/// # Safety
/// The rows of `side` must lie behind all of these, and no other thread may touch what is written.
pub unsafe fn forward(
    query: Head,
    key: Head,
    value: Head,
    side: &Side,
    scale: f32,
    out: HeadMut,
    lse: *mut f32,
) {
    assert!(supported());
    #[cfg(target_arch = "x86_64")]
    unsafe {
        forward::forward(query, key, value, side, scale, out, lse);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (query, key, value, side, scale, out, lse);
}

/// The gradients of queries, keys and values of one head, from what `forward` had and gave. Panics where it
/// is not `supported`.
///
/// # Safety
/// As `forward`'s.
pub unsafe fn backward(given: Given, side: &Side, scale: f32, gradients: Gradients) {
    assert!(supported());
    #[cfg(target_arch = "x86_64")]
    unsafe {
        backward::backward(given, side, scale, gradients);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (given, side, scale, gradients);
}
