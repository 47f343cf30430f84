//! The search's random draws: Philox4x32-10 (Salmon et al., SC 2011), a counter-based generator. A draw is a pure
//! function of (seed, step, child, stream), so no draw depends on how many came before it, and a resumed search, or one
//! with other threads, sees the same ones.

/// What a draw is for; the third word of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Tokens of the first prompts: counter (attempt, member, stream, token).
    Start = 0,
    /// Position and rank of a child: counter (step, child, stream, 0).
    Child = 1,
    /// The penalty of a restart: counter (step, 0, stream, 0).
    Restart = 2,
    /// Tokens of a fresh prompt: counter (step, member + 65536 * attempt, stream, token).
    Fresh = 3,
    /// Which contexts a step screens on: counter (step, i, stream, 0).
    Contexts = 4,
}

/// A seeded generator.
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    key: [u32; 2],
}

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The four words at a counter.
    pub fn block(self, step: u32, child: u32, stream: Stream, token: u32) -> [u32; 4] {
        philox([step, child, stream as u32, token], self.key)
    }

    /// Two uniform integers below `n` and `m`, from one block.
    pub fn pair(self, step: u32, child: u32, stream: Stream, token: u32, n: usize, m: usize) -> (usize, usize) {
        let [a, b, c, d] = self.block(step, child, stream, token);
        (below(a, b, n), below(c, d, m))
    }

    /// A uniform integer below `n`.
    pub fn below(self, step: u32, child: u32, stream: Stream, token: u32, n: usize) -> usize {
        self.pair(step, child, stream, token, n, 1).0
    }

    /// A uniform number in `[0, 1)`, of 53 bits.
    pub fn unit(self, step: u32, child: u32, stream: Stream) -> f64 {
        let [a, b, ..] = self.block(step, child, stream, 0);
        let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// `floor(n * x / 2^64)` of the 64-bit fraction `x = high * 2^32 + low`; its bias is below `n / 2^64`.
fn below(high: u32, low: u32, n: usize) -> usize {
    let fraction = u128::from(high) << 32 | u128::from(low);
    ((fraction * n as u128) >> 64) as usize
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn draws_are_in_range_and_even() {
        let rng = Rng::new(7);
        let mut counts = [0_usize; 6];
        for child in 0..6000 {
            let (a, b) = rng.pair(3, child, Stream::Child, 0, 6, 1);
            assert_eq!(b, 0);
            counts[a] += 1;
        }
        // Six standard deviations of a binomial with n = 6000, p = 1/6.
        assert!(counts.iter().all(|&count| count.abs_diff(1000) < 174), "{counts:?}");
        let unit = rng.unit(0, 0, Stream::Restart);
        assert!((0.0..1.0).contains(&unit));
    }
}
