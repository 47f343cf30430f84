//! Log-bucketed histograms: eight buckets an octave over the whole range of float32, stored sparse.
//!
//! A bucket is a value's sign, exponent and three leading bits of mantissa, so that counts of the same bucket add and
//! a value is known to [`RELATIVE_ERROR`]. This is the DDSketch (Masson, Rim & Lee 2019, arXiv:1908.10693) with bucket
//! bounds that are linear within an octave.

/// Largest relative error of a bucket's representative, for values that are not subnormal (those are known to 2⁻¹²⁶).
pub const RELATIVE_ERROR: f64 = 1.0 / 17.0;

/// Number of buckets.
pub const BUCKETS: usize = 1 << 12;

/// Bits of a packed entry that hold its count.
const COUNT_BITS: u32 = 48;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The bucket of a finite value. Buckets are ordered as values are; -0 belongs to the bucket of +0.
#[inline]
pub fn bucket(value: f32) -> u16 {
    let bits = (value + 0.0).to_bits();
    // All bits of a negative number are turned, the sign of a positive one: integer order becomes value order.
    let mask = (((bits as i32) >> 31) as u32) | 0x8000_0000;
    ((bits ^ mask) >> 20) as u16
}

/// Bounds of a bucket, by magnitude: `(sign, smaller, larger)`.
fn bounds(bucket: u16) -> (f64, f64, f64) {
    let ordered = u32::from(bucket) << 20;
    let negative = ordered & 0x8000_0000 == 0;
    let magnitude = if negative { !ordered & 0x7ff0_0000 } else { ordered & 0x7ff0_0000 };
    let at = |bits: u32| {
        // The upper bound of the last bucket would be infinity: 2^128 in float64 is right.
        let (exponent, mantissa) = (bits >> 23, f64::from((bits >> 20) & 7) / 8.0);
        if exponent == 0 { mantissa * 2_f64.powi(-126) } else { (1.0 + mantissa) * 2_f64.powi(exponent as i32 - 127) }
    };
    (if negative { -1.0 } else { 1.0 }, at(magnitude), at(magnitude + (1 << 20)))
}

/// The value that stands for a bucket: the one with the smallest worst relative error.
pub fn representative(bucket: u16) -> f64 {
    let (sign, small, large) = bounds(bucket);
    sign * 2.0 * small * large / (small + large)
}

/// Lower and upper bound of a bucket's values.
pub fn interval(bucket: u16) -> [f64; 2] {
    let (sign, small, large) = bounds(bucket);
    if sign > 0.0 { [small, large] } else { [-large, -small] }
}

/// Counts of one feature: sorted entries, bucket in the upper 16 bits and count in the lower 48.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(Vec<u64>);

impl Histogram {
    /// From sorted buckets and their counts; `None` if they are not strictly increasing, or a count is 0 or too large.
    pub fn from_parts(buckets: &[u16], counts: &[u64]) -> Option<Self> {
        let sorted = buckets.windows(2).all(|pair| pair[0] < pair[1]);
        let valid = buckets.iter().all(|&b| usize::from(b) < BUCKETS)
            && buckets.len() == counts.len()
            && counts.iter().all(|&count| (1..=COUNT_MASK).contains(&count));
        (sorted && valid)
            .then(|| Self(buckets.iter().zip(counts).map(|(&b, &c)| (u64::from(b) << COUNT_BITS) | c).collect()))
    }

    /// `(bucket, count)` in order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (u16, u64)> + '_ {
        self.0.iter().map(|&entry| ((entry >> COUNT_BITS) as u16, entry & COUNT_MASK))
    }

    /// Number of values counted.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|entry| entry & COUNT_MASK).sum()
    }

    /// Adds every count of another histogram.
    pub fn merge(&mut self, other: &Self) {
        let mut merged = Vec::with_capacity(self.0.len().max(other.0.len()));
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&&a), Some(&&b)) = (left.peek(), right.peek()) {
            let (key_a, key_b) = (a >> COUNT_BITS, b >> COUNT_BITS);
            if key_a == key_b {
                merged.push(a + (b & COUNT_MASK));
            } else {
                merged.push(if key_a < key_b { a } else { b });
            }
            if key_a <= key_b {
                left.next();
            }
            if key_b <= key_a {
                right.next();
            }
        }
        merged.extend(left);
        merged.extend(right);
        self.0 = merged;
    }

    /// The value at a quantile, to [`RELATIVE_ERROR`]: of `total` values in order, that of index
    /// `q (total - 1)`, rounded half to even. NaN if nothing was counted.
    pub fn quantile(&self, q: f64) -> f64 {
        let total = self.total();
        if total == 0 {
            return f64::NAN;
        }
        let rank = (q * (total - 1) as f64).round_ties_even() as u64;
        let mut seen = 0;
        for (bucket, count) in self.entries() {
            seen += count;
            if seen > rank {
                return representative(bucket);
            }
        }
        f64::NAN
    }
}

/// Dense counts of one feature at a time, so that the sparse entries are walked once a batch instead of once a value.
pub struct Scratch {
    counts: Box<[u32; BUCKETS]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]) }
    }
}

impl Scratch {
    /// Counts buckets into a histogram.
    pub fn count(&mut self, histogram: &mut Histogram, keys: &[u16]) {
        let mut left = keys.len() as u32;
        let (mut first, mut last) = (BUCKETS - 1, 0);
        for key in keys {
            let key = usize::from(*key) & (BUCKETS - 1);
            self.counts[key] += 1;
            (first, last) = (first.min(key), last.max(key));
        }
        for entry in &mut histogram.0 {
            let count = &mut self.counts[(*entry >> COUNT_BITS) as usize & (BUCKETS - 1)];
            *entry += u64::from(*count);
            left -= *count;
            *count = 0;
        }
        if left == 0 {
            return;
        }
        // What is left are buckets new to the histogram, few of them once it has seen some batches.
        let old = histogram.0.len();
        for (key, count) in self.counts[first..=last].iter_mut().enumerate() {
            if *count > 0 {
                histogram.0.push((((first + key) as u64) << COUNT_BITS) | u64::from(*count));
                *count = 0;
            }
        }
        if old > 0 {
            // Two sorted runs, which the stable sort merges.
            #[allow(clippy::stable_sort_primitive)]
            histogram.0.sort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        let keys: Vec<u16> = values.iter().map(|&x| bucket(x)).collect();
        Scratch::default().count(&mut histogram, &keys);
        histogram
    }

    fn finite() -> impl Strategy<Value = f32> {
        prop_oneof![any::<f32>().prop_filter("finite", |x| x.is_finite()), -10_f32..10.0, Just(0.0), Just(-0.0)]
    }

    #[test]
    fn zero_has_one_bucket_which_stands_for_zero() {
        assert_eq!(bucket(0.0), bucket(-0.0));
        assert_eq!(representative(bucket(0.0)), 0.0);
        assert!(representative(bucket(f32::MAX)).is_finite());
    }

    proptest! {
        #[test]
        fn a_bucket_knows_its_values_to_the_stated_error(x in finite()) {
            let (x64, r) = (f64::from(x), representative(bucket(x)));
            if x.abs() >= f32::MIN_POSITIVE {
                prop_assert!((r - x64).abs() <= RELATIVE_ERROR * x64.abs() * (1.0 + 1e-12));
            } else {
                prop_assert!((r - x64).abs() <= 2_f64.powi(-126));
            }
        }

        #[test]
        fn buckets_are_ordered_as_values(a in finite(), b in finite()) {
            if a < b {
                prop_assert!(bucket(a) <= bucket(b));
                prop_assert!(representative(bucket(a)) <= representative(bucket(b)));
            }
        }

        #[test]
        fn splitting_does_not_matter(values in prop::collection::vec(finite(), 0..80), cut in 0_usize..80) {
            let cut = cut.min(values.len());
            let mut left = of(&values[..cut]);
            left.merge(&of(&values[cut..]));
            let mut right = of(&values[cut..]);
            right.merge(&of(&values[..cut]));
            prop_assert_eq!(&left, &right);
            prop_assert_eq!(&left, &of(&values));
            prop_assert_eq!(left.total(), values.len() as u64);
            let (buckets, counts): (Vec<u16>, Vec<u64>) = left.entries().unzip();
            prop_assert_eq!(Histogram::from_parts(&buckets, &counts), Some(left));
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_values(mut values in prop::collection::vec(-1e3_f32..1e3, 1..100), q in 0_f64..=1.0) {
            let found = of(&values).quantile(q);
            values.sort_by(f32::total_cmp);
            let exact = f64::from(values[(q * (values.len() - 1) as f64).round_ties_even() as usize]);
            prop_assert!((found - exact).abs() <= RELATIVE_ERROR * exact.abs() + 2_f64.powi(-126));
        }
    }
}
