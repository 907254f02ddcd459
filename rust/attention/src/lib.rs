//! Causal attention of one head over a prefix and what stands behind it, in float32, and its way back.
//!
//! Tokens are rows: of all heads side by side, as a model's linear layers leave and take them. The `Side` of
//! a pair are the rows that ask, each of which sees the rows of the prefix and those of its own side up to
//! itself. Queries and keys are taken some at a time, so no matrix of scores is ever whole: what stands at a
//! time is `BLOCK` rows and `CHUNK` columns of it.
//!
//! All products are one small kernel (`tile`), 16 columns of as many rows as stay in registers: 6 with AVX2, 24
//! with AVX-512. Queries, keys and values are copied before, once for a head: as columns, in
//! panels, where scores are made, and row by row where they are summed up.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod backward;
#[cfg(target_arch = "x86_64")]
mod exp;
#[cfg(target_arch = "x86_64")]
mod forward;
mod heads;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod scores;
#[cfg(target_arch = "x86_64")]
mod tile;

pub use heads::{Given, Gradients, Head, HeadMut, Pass, Side};

/// Queries and keys that are taken at a time: few enough that their scores, and what is read and added up of
/// the keys, stay in a core's own caches.
const BLOCK: usize = 48;
const CHUNK: usize = 160;

/// A set of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// AVX-512 F.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
}

impl Instructions {
    /// Those that this processor has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Avx512, Self::Avx2]
            .into_iter()
            .filter(|x| x.are_here())
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
        }
    }

    fn are_here(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// What is the same for each instruction set: arguments as `forward` and `backward` below have them.
#[cfg(target_arch = "x86_64")]
macro_rules! with {
    ($lanes:ident, $features:literal) => {
        use super::{Given, Gradients, Pass, Side};
        use crate::lanes::$lanes;

        #[target_feature(enable = $features)]
        pub unsafe fn forward(pass: Pass, side: &Side, scale: f32) {
            unsafe { crate::forward::forward::<$lanes>(pass, side, scale) }
        }

        #[target_feature(enable = $features)]
        pub unsafe fn backward(given: Given, side: &Side, scale: f32, gradients: Gradients) {
            unsafe { crate::backward::backward::<$lanes>(given, side, scale, gradients) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    with!(Avx2, "avx2,fma");
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    with!(Avx512, "avx512f");
}

/// Attention of one head over the own rows of `side`. Panics where the processor has no such `instructions`.
///
/// # Safety
/// The rows of `side` must lie behind all of these, and no other thread may touch what is written.
pub unsafe fn forward(instructions: Instructions, pass: Pass, side: &Side, scale: f32) {
    assert!(instructions.are_here());
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match instructions {
            Instructions::Avx512 => avx512::forward(pass, side, scale),
            Instructions::Avx2 => avx2::forward(pass, side, scale),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (pass, side, scale);
}

/// The gradients of queries, keys and values of one head, from what `forward` had and gave. Panics where the
/// processor has no such `instructions`.
///
/// # Safety
/// As `forward`'s.
pub unsafe fn backward(
    instructions: Instructions,
    given: Given,
    side: &Side,
    scale: f32,
    gradients: Gradients,
) {
    assert!(instructions.are_here());
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match instructions {
            Instructions::Avx512 => avx512::backward(given, side, scale, gradients),
            Instructions::Avx2 => avx2::backward(given, side, scale, gradients),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (given, side, scale, gradients);
}
