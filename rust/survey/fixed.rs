//! Wide fixed-point numbers: sums that do not depend on the order of their addends.
//!
//! A document's float64 sum is rounded once to a multiple of 2⁻⁹⁶; from then on only integers are added, which is
//! associative and commutative to the bit. An addend is below 2⁶⁴ in magnitude and a survey holds fewer than 2³¹
//! documents, so that 192 bits never overflow.

/// A multiple of 2⁻⁹⁶, in two's complement, least significant limb first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed(pub [u64; 3]);

/// Bits after the binary point.
const FRACTION: i32 = 96;

impl Fixed {
    /// Addends must be smaller than this in magnitude.
    pub const LIMIT: f64 = 18_446_744_073_709_551_616.0;

    /// The nearest multiple of 2⁻⁹⁶ (ties to even); `None` for a value that is not finite or reaches [`Self::LIMIT`].
    pub fn from_f64(value: f64) -> Option<Self> {
        if value.is_nan() || value.abs() >= Self::LIMIT {
            return None;
        }
        let bits = value.to_bits();
        let biased = ((bits >> 52) & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        // value = mantissa * 2^(exponent), and shift brings it to units of 2^-96.
        let (mantissa, exponent) = if biased == 0 { (fraction, -1074) } else { (fraction | (1 << 52), biased - 1075) };
        let shift = exponent + FRACTION;
        let limbs = if shift >= 0 {
            let (limb, offset) = ((shift / 64) as usize, shift % 64);
            let wide = u128::from(mantissa) << offset;
            let mut limbs = [0; 3];
            limbs[limb] = wide as u64;
            if limb < 2 {
                limbs[limb + 1] = (wide >> 64) as u64;
            }
            limbs
        } else if shift < -54 {
            [0; 3]
        } else {
            let down = -shift;
            let (quotient, rest, half) = (mantissa >> down, mantissa & ((1 << down) - 1), 1_u64 << (down - 1));
            let up = rest > half || (rest == half && quotient & 1 == 1);
            [quotient + u64::from(up), 0, 0]
        };
        let positive = Self(limbs);
        Some(if value.is_sign_negative() { positive.negated() } else { positive })
    }

    /// Adds, modulo 2¹⁹².
    #[inline]
    pub fn add(&mut self, other: Self) {
        let (low, carry) = self.0[0].overflowing_add(other.0[0]);
        let (middle, carry_a) = self.0[1].overflowing_add(other.0[1]);
        let (middle, carry_b) = middle.overflowing_add(u64::from(carry));
        let high = self.0[2].wrapping_add(other.0[2]).wrapping_add(u64::from(carry_a | carry_b));
        self.0 = [low, middle, high];
    }

    /// Whether the value is below zero.
    pub fn is_negative(self) -> bool {
        self.0[2] >> 63 == 1
    }

    fn negated(self) -> Self {
        let mut out = Self(self.0.map(|limb| !limb));
        out.add(Self([1, 0, 0]));
        out
    }

    /// The value as a sum of two float64, exact to about 106 bits.
    pub fn to_double(self) -> Double {
        let magnitude = if self.is_negative() { self.negated() } else { self };
        let mut sum = Double::default();
        for (i, limb) in magnitude.0.iter().enumerate().rev() {
            for (half, part) in [(32, limb >> 32), (0, limb & 0xffff_ffff)] {
                let exponent = 64 * i as i32 + half - FRACTION;
                sum = sum.plus(Double { high: part as f64 * 2_f64.powi(exponent), low: 0.0 });
            }
        }
        if self.is_negative() { sum.negated() } else { sum }
    }
}

/// An unevaluated sum of two float64, `|low|` at most half a unit in the last place of `high`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Double {
    /// The value, rounded to float64.
    pub high: f64,
    /// What rounding left.
    pub low: f64,
}

impl Double {
    /// From an integer below 2⁵³.
    fn from_count(count: u64) -> Self {
        Self { high: count as f64, low: 0.0 }
    }

    fn negated(self) -> Self {
        Self { high: -self.high, low: -self.low }
    }

    fn plus(self, other: Self) -> Self {
        // Knuth's two-sum of the high parts and of the low parts, renormalised twice.
        let (high, low) = two_sum(self.high, other.high);
        let (high_low, low_low) = two_sum(self.low, other.low);
        let (high, low) = quick_two_sum(high, low + high_low);
        let (high, low) = quick_two_sum(high, low + low_low);
        Self { high, low }
    }

    fn times(self, other: Self) -> Self {
        let high = self.high * other.high;
        let low = self.high.mul_add(other.high, -high) + (self.high * other.low + self.low * other.high);
        let (high, low) = quick_two_sum(high, low);
        Self { high, low }
    }

    fn over(self, other: Self) -> Self {
        let first = self.high / other.high;
        let rest = self.plus(other.times(Self { high: first, low: 0.0 }).negated());
        let (high, low) = quick_two_sum(first, rest.high / other.high);
        Self { high, low }
    }
}

fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let rest = sum - a;
    (sum, (a - (sum - rest)) + (b - rest))
}

fn quick_two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    (sum, b - (sum - a))
}

/// Mean and population variance of `count` values from the sum of them and of their squares.
///
/// Both are functions of the integers alone. The cancellation in `n Σx² − (Σx)²` happens in twice float64's precision.
/// NaN where `count` is 0.
pub fn mean_and_variance(count: u64, sum: Fixed, squares: Fixed) -> (f64, f64) {
    if count == 0 {
        return (f64::NAN, f64::NAN);
    }
    let n = Double::from_count(count);
    let (sum, squares) = (sum.to_double(), squares.to_double());
    let mean = sum.over(n);
    let variance = squares.over(n).plus(mean.times(mean).negated());
    (mean.high, variance.high.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(values: &[f64]) -> Fixed {
        let mut sum = Fixed::default();
        for &value in values {
            sum.add(Fixed::from_f64(value).unwrap());
        }
        sum
    }

    /// The same conversion by i128 arithmetic, where the value fits.
    fn as_i128(fixed: Fixed) -> Option<i128> {
        let low = u128::from(fixed.0[0]) | (u128::from(fixed.0[1]) << 64);
        let sign = (low as i128) >> 127;
        ((fixed.0[2] as i64) as i128 == sign).then_some(low as i128)
    }

    #[test]
    fn known_values() {
        assert_eq!(Fixed::from_f64(0.0).unwrap(), Fixed([0, 0, 0]));
        assert_eq!(Fixed::from_f64(-0.0).unwrap(), Fixed([0, 0, 0]));
        assert_eq!(Fixed::from_f64(1.0).unwrap(), Fixed([0, 1 << 32, 0]));
        assert_eq!(Fixed::from_f64(-1.0).unwrap(), Fixed([0, u64::MAX << 32, u64::MAX]));
        assert_eq!(Fixed::from_f64(2_f64.powi(-96)).unwrap(), Fixed([1, 0, 0]));
        assert_eq!(Fixed::from_f64(2_f64.powi(63)).unwrap(), Fixed([0, 0, 1 << 31]));
        // Ties to even: half a unit goes to 0, one and a half to 2.
        assert_eq!(Fixed::from_f64(2_f64.powi(-97)).unwrap(), Fixed([0, 0, 0]));
        assert_eq!(Fixed::from_f64(1.5 * 2_f64.powi(-96)).unwrap(), Fixed([2, 0, 0]));
        assert_eq!(Fixed::from_f64(f64::MIN_POSITIVE).unwrap(), Fixed([0, 0, 0]));
    }

    #[test]
    fn out_of_range_is_refused() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, Fixed::LIMIT, -Fixed::LIMIT] {
            assert!(Fixed::from_f64(value).is_none(), "{value}");
        }
        assert!(Fixed::from_f64(Fixed::LIMIT.next_down()).is_some());
    }

    #[test]
    fn the_largest_survey_does_not_overflow() {
        // 2^31 - 1 addends just below the limit, by doubling.
        let mut sum = Fixed::from_f64(Fixed::LIMIT.next_down()).unwrap();
        let one = sum;
        for _ in 0..30 {
            let twice = sum;
            sum.add(twice);
            sum.add(one);
        }
        assert!(!sum.is_negative());
        let expected = Fixed::LIMIT.next_down() * (2_f64.powi(31) - 1.0);
        assert!((sum.to_double().high / expected - 1.0).abs() < 1e-15);
    }

    #[test]
    fn variance_survives_cancellation() {
        // Mean 1e4, standard deviation 1e-3: the naive formula in float64 loses all but two digits.
        let values: Vec<f64> = (0..1000).map(|i| 1e4 + f64::from(i % 2) * 2e-3).collect();
        let squares: Vec<f64> = values.iter().map(|x| x * x).collect();
        let mean = values.iter().sum::<f64>() / 1000.0;
        let exact = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1000.0;
        let (_, variance) = mean_and_variance(1000, total(&values), total(&squares));
        // What is left is the rounding of x² itself: 1e8 * 2^-53.
        assert!((variance - exact).abs() < 2e-8, "{variance} {exact}");
    }

    proptest! {
        #[test]
        fn rounds_to_the_nearest_multiple(value in -1e9_f64..1e9, exponent in -120_i32..0) {
            let value = value * 2_f64.powi(exponent);
            let fixed = Fixed::from_f64(value).unwrap();
            let exact = as_i128(fixed).unwrap();
            // value * 2^96 is exact in float64 (a power of two), and rounds to the nearest integer by the standard library.
            let scaled = value * 2_f64.powi(96);
            if scaled.abs() < 2_f64.powi(126) {
                prop_assert_eq!(exact, scaled.round_ties_even() as i128);
            }
        }

        #[test]
        fn order_does_not_matter(mut values in prop::collection::vec(-1e12_f64..1e12, 1..40), seed in any::<u64>()) {
            let forward = total(&values);
            let n = values.len();
            for i in 0..n {
                values.swap(i, (seed.rotate_left(i as u32) as usize) % n);
            }
            let (left, right) = values.split_at(n / 2);
            let mut split = total(right);
            split.add(total(left));
            prop_assert_eq!(forward, split);
            let double = forward.to_double();
            let direct: f64 = values.iter().sum();
            // What float64's own summation loses.
            let size: f64 = values.iter().map(|x| x.abs()).sum();
            prop_assert!((double.high - direct).abs() <= 1e-14 * size);
        }

        #[test]
        fn mean_and_variance_are_those_of_the_values(values in prop::collection::vec(-1e3_f32..1e3, 1..200)) {
            let values: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
            let squares: Vec<f64> = values.iter().map(|x| x * x).collect();
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let (m, v) = mean_and_variance(values.len() as u64, total(&values), total(&squares));
            prop_assert!((m - mean).abs() < 1e-11);
            prop_assert!((v - variance).abs() < 1e-8);
        }
    }
}
