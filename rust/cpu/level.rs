//! Which instructions the kernels use, found at run time. Each level gives the same bits: the sums' order is written
//! out, and `mul_add` rounds once whether it is an instruction or a library call.

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the target has by default.
    Portable,
    /// AVX2 and FMA. Made only by [`Level::detect`].
    #[cfg(target_arch = "x86_64")]
    Avx2Fma,
}

impl Level {
    /// The best level of this machine.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Self::Avx2Fma;
        }
        Self::Portable
    }

    /// For humans.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => "avx2+fma",
        }
    }
}

/// What of the instruction sets that matter to the kernels this machine has.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        found.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Compiles a plain loop once a level: `fn name(args)` becomes `fn name(level, args)`. The loop must be free of calls that
/// are not inlined, or the compiler cannot use the level's instructions in them.
macro_rules! by_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::cpu::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn fast($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                if level == $crate::cpu::Level::Avx2Fma {
                    // SAFETY: `Level::detect` makes this level only where the CPU has AVX2 and FMA.
                    return unsafe { fast($($arg),*) };
                }
            }
            let _ = level;
            plain($($arg),*)
        }
    };
}
pub(crate) use by_level;
