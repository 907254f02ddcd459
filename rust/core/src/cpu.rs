//! Which of the vector kernels this machine runs.

use std::sync::OnceLock;

use crate::{Error, Result};

/// The environment variable that names a kernel, for tests and for measuring.
pub const VARIABLE: &str = "CLAIR_APO_KERNEL";

/// A set of vector instructions. `Portable` is plain Rust, one pair at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// AVX-512 with VBMI2 and GFNI: Ice Lake, Zen 4 and later.
    Avx512Vbmi2,
    /// AVX-512 as Skylake-X has it.
    Avx512,
    Avx2,
    Neon,
    Portable,
}

impl Kernel {
    pub const ALL: [Self; 5] = [
        Self::Avx512Vbmi2,
        Self::Avx512,
        Self::Avx2,
        Self::Neon,
        Self::Portable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Vbmi2 => "avx512vbmi2",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vbmi2 => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
                    && is_x86_feature_detected!("gfni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
            _ => false,
        }
    }

    /// Those that this machine has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|k| k.is_available())
    }

    /// The one that `CLAIR_APO_KERNEL` names, else the fastest; read once.
    pub fn chosen() -> Result<Self> {
        static CHOSEN: OnceLock<std::result::Result<Kernel, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name).ok_or(name),
            _ => Ok(Self::available().next().unwrap_or(Self::Portable)),
        });
        chosen.clone().map_err(|name| Error::UnknownKernel {
            name,
            known: Self::available()
                .map(Self::name)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    fn named(name: &str) -> Option<Self> {
        Self::available().find(|kernel| kernel.name() == name)
    }
}
