//! The most extreme occurrences of each feature.

use std::cmp::Ordering;

use super::document::DocumentHash;

/// One value, and where it was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Occurrence {
    /// The value (never -0).
    pub value: f32,
    /// Index of the token in its document.
    pub position: u32,
    /// The document.
    pub document: DocumentHash,
}

/// Which end of the values is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The largest.
    Top,
    /// The smallest.
    Bottom,
}

impl End {
    /// The total order in which occurrences are kept: most extreme value, then smallest document hash, then smallest
    /// position.
    pub fn order(self, a: &Occurrence, b: &Occurrence) -> Ordering {
        let values = match self {
            Self::Top => b.value.total_cmp(&a.value),
            Self::Bottom => a.value.total_cmp(&b.value),
        };
        values.then_with(|| a.document.cmp(&b.document)).then_with(|| a.position.cmp(&b.position))
    }

    /// A value that any other replaces.
    pub fn worst(self) -> f32 {
        match self {
            Self::Top => f32::NEG_INFINITY,
            Self::Bottom => f32::INFINITY,
        }
    }
}

/// The `capacity` first occurrences of each of some columns, in [`End::order`].
#[derive(Clone, Debug, PartialEq)]
pub struct Extremes {
    end: End,
    columns: Vec<Vec<Occurrence>>,
    /// A column's last kept value, once it is full: what a value has to reach.
    bar: Vec<f32>,
    capacity: usize,
}

impl Extremes {
    /// Nothing seen yet.
    pub fn new(end: End, columns: usize, capacity: usize) -> Self {
        Self {
            end,
            columns: vec![Vec::new(); columns],
            bar: vec![if capacity == 0 { -end.worst() } else { end.worst() }; columns],
            capacity,
        }
    }

    /// A column's occurrences, most extreme first.
    pub fn column(&self, column: usize) -> &[Occurrence] {
        &self.columns[column]
    }

    /// Whether an occurrence of this value in this document could be kept.
    #[inline]
    pub fn admits(&self, column: usize, value: f32, document: &DocumentHash) -> bool {
        let bar = self.bar[column];
        let beyond = match self.end {
            End::Top => value > bar,
            End::Bottom => value < bar,
        };
        beyond || (value == bar && self.columns[column].last().is_some_and(|last| *document <= last.document))
    }

    /// Which of all columns' values reach their bar, a bit each (of at most 64): no other is admitted.
    #[inline]
    pub fn reaching(&self, values: &[f32]) -> u64 {
        let bars = &self.bar[..values.len()];
        let mut mask = 0;
        let mut start = 0;
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            (mask, start) = unsafe { x86::reaching(values, bars, self.end) };
        }
        for (j, (value, bar)) in values.iter().zip(bars).enumerate().skip(start) {
            let reaches = match self.end {
                End::Top => value >= bar,
                End::Bottom => value <= bar,
            };
            mask |= u64::from(reaches) << j;
        }
        mask
    }

    /// Keeps an occurrence if it is among the first of its column.
    pub fn insert(&mut self, column: usize, occurrence: Occurrence) {
        let kept = &mut self.columns[column];
        let at = kept.partition_point(|other| self.end.order(other, &occurrence) != Ordering::Greater);
        if at >= self.capacity {
            return;
        }
        if kept.len() == self.capacity {
            kept.pop();
        } else if kept.capacity() == 0 {
            kept.reserve_exact(self.capacity);
        }
        kept.insert(at, occurrence);
        if kept.len() == self.capacity {
            self.bar[column] = kept[self.capacity - 1].value;
        }
    }

    /// Takes in the occurrences of another set of the same shape.
    pub fn merge(&mut self, other: &Self) {
        for (column, occurrences) in other.columns.iter().enumerate() {
            for &occurrence in occurrences {
                self.insert(column, occurrence);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_CMP_GE_OQ, _CMP_LE_OQ, _mm256_cmp_ps, _mm256_loadu_ps, _mm256_movemask_ps};

    use super::End;

    /// The bits of the leading columns, and how many those are: whole groups of eight.
    #[target_feature(enable = "avx2")]
    pub fn reaching(values: &[f32], bars: &[f32], end: End) -> (u64, usize) {
        let mut mask = 0;
        let (groups, bars) = (values.as_chunks::<8>().0, bars.as_chunks::<8>().0);
        for (i, (values, bars)) in groups.iter().zip(bars).enumerate() {
            // SAFETY: both are eight values.
            let (x, bar) = unsafe { (_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(bars.as_ptr())) };
            let reaches = match end {
                End::Top => _mm256_cmp_ps::<_CMP_GE_OQ>(x, bar),
                End::Bottom => _mm256_cmp_ps::<_CMP_LE_OQ>(x, bar),
            };
            mask |= u64::from(_mm256_movemask_ps(reaches) as u32) << (8 * i);
        }
        (mask, 8 * groups.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn occurrences() -> impl Strategy<Value = Vec<Occurrence>> {
        let one = (-3_i8..3, 0_u8..3, 0_u32..4).prop_map(|(value, document, position)| Occurrence {
            value: f32::from(value),
            position,
            document: DocumentHash([document; 16]),
        });
        prop::collection::vec(one, 0..40)
    }

    fn of(end: End, capacity: usize, all: &[Occurrence]) -> Extremes {
        let mut extremes = Extremes::new(end, 1, capacity);
        for &occurrence in all {
            if extremes.admits(0, occurrence.value, &occurrence.document) {
                extremes.insert(0, occurrence);
            }
        }
        extremes
    }

    proptest! {
        #[test]
        fn a_bit_for_each_value_that_reaches_its_bar(
            values in prop::collection::vec(-2_i8..3, 1..65),
            first in prop::collection::vec(-2_i8..3, 64),
        ) {
            for end in [End::Top, End::Bottom] {
                let mut extremes = Extremes::new(end, values.len(), 1);
                let document = DocumentHash([1; 16]);
                for (j, &value) in first.iter().take(values.len()).enumerate().filter(|&(j, _)| j % 3 > 0) {
                    extremes.insert(j, Occurrence { value: f32::from(value), position: 0, document });
                }
                let row: Vec<f32> = values.iter().map(|&value| f32::from(value)).collect();
                let mask = extremes.reaching(&row);
                for (j, &value) in row.iter().enumerate() {
                    let bar = f32::from(first[j]);
                    let wanted = j % 3 == 0 || if end == End::Top { value >= bar } else { value <= bar };
                    prop_assert_eq!(mask >> j & 1 == 1, wanted);
                }
                prop_assert_eq!(mask.checked_shr(row.len() as u32).unwrap_or(0), 0);
            }
        }

        #[test]
        fn keeps_the_first_of_a_full_sort(mut all in occurrences(), capacity in 0_usize..6, cut in 0_usize..40) {
            for end in [End::Top, End::Bottom] {
                let whole = of(end, capacity, &all);
                let cut = cut.min(all.len());
                let (mut left, mut right) = (of(end, capacity, &all[..cut]), of(end, capacity, &all[cut..]));
                let copy = left.clone();
                left.merge(&right);
                right.merge(&copy);
                prop_assert_eq!(&left, &whole);
                prop_assert_eq!(&right, &whole);
                all.sort_by(|a, b| end.order(a, b));
                prop_assert_eq!(whole.column(0), &all[..capacity.min(all.len())]);
            }
        }
    }
}
