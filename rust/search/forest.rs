//! Sequences that share prefixes, as a forest of segments in which each shared prefix is computed once.

use crate::engine::request::{Parent, RowRef, Segment};

/// Where sequences begin: after the first `cut` tokens, which are all of a cached chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// How many leading tokens are not computed again.
    pub cut: usize,
    /// The cached segment that ends there, and how many of its own tokens lie before.
    pub cached: Option<(usize, usize)>,
}

impl Root {
    /// Nothing is known: sequences begin at their first token.
    pub const EMPTY: Self = Self { cut: 0, cached: None };

    fn parent(self) -> Parent {
        self.cached.map_or(Parent::Root, |(index, keep)| Parent::Cached { index, keep })
    }
}

/// One sequence of a forest.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Index of its root.
    pub root: usize,
    /// All its tokens, those in front of the root's cut included; longer than the cut.
    pub tokens: &'a [u32],
}

/// Which segments hold a sequence: `(segment, position of its first token)`, from the front.
pub type Path = Vec<(usize, usize)>;

/// The row that holds the token at a position, which must not lie in front of the root's cut.
pub fn row(path: &Path, position: usize) -> RowRef {
    let at = path.partition_point(|&(_, start)| start <= position).saturating_sub(1);
    let (segment, start) = path[at];
    RowRef::clean(segment, position - start)
}

/// Segments of many sequences, and where each sequence lies.
#[derive(Debug)]
pub struct Forest {
    /// The segments, parents first.
    pub segments: Vec<Segment>,
    /// One path a sequence, in the caller's order.
    pub paths: Vec<Path>,
}

/// Order in which neighbours share the most.
pub fn order(sequences: &[Sequence<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&sequences[a], &sequences[b]);
        a.root.cmp(&b.root).then_with(|| a.tokens.cmp(b.tokens))
    });
    order
}

/// Builds the forest. In sorted order, a sequence shares with the one before it all that it shares with any other.
pub fn build(roots: &[Root], sequences: &[Sequence<'_>]) -> Forest {
    let mut segments = Vec::new();
    let mut paths = vec![Path::new(); sequences.len()];
    let mut previous: Option<usize> = None;
    for at in order(sequences) {
        let Sequence { root, tokens } = sequences[at];
        let cut = roots[root].cut;
        let (mut path, shared) = match previous.filter(|&p| sequences[p].root == root) {
            Some(p) => {
                let other = &sequences[p].tokens[cut..];
                let shared = tokens[cut..].iter().zip(other).take_while(|(a, b)| a == b).count();
                (paths[p].clone(), cut + shared)
            }
            None => (Path::new(), cut),
        };
        path.retain(|&(_, start)| start < shared);
        if shared < tokens.len() {
            let parent = path.last().map_or_else(
                || roots[root].parent(),
                |&(index, start)| Parent::Segment { index, keep: shared - start },
            );
            path.push((segments.len(), shared));
            segments.push(Segment { parent, tokens: tokens[shared..].to_vec() });
        }
        paths[at] = path;
        previous = Some(at);
    }
    Forest { segments, paths }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Tokens of a row's whole path, by walking up.
    fn spelled(forest: &Forest, mut at: RowRef) -> Vec<u32> {
        let mut tokens = Vec::new();
        loop {
            let segment = &forest.segments[at.segment];
            let mut own = segment.tokens[..=at.offset].to_vec();
            own.append(&mut tokens);
            tokens = own;
            match segment.parent {
                Parent::Segment { index, keep } => at = RowRef::clean(index, keep - 1),
                Parent::Root | Parent::Cached { .. } => return tokens,
            }
        }
    }

    proptest! {
        #[test]
        fn every_prefix_is_spelled_and_computed_once(
            sequences in prop::collection::vec((0_usize..2, prop::collection::vec(0_u32..3, 3..7)), 1..30),
        ) {
            // Sequences of a root agree in front of its cut.
            let roots = [Root::EMPTY, Root { cut: 2, cached: Some((0, 2)) }];
            let sequences: Vec<(usize, Vec<u32>)> = sequences.into_iter().map(|(root, mut tokens)| {
                if root == 1 { tokens[..2].copy_from_slice(&[9, 9]); }
                (root, tokens)
            }).collect();
            let views: Vec<Sequence<'_>> =
                sequences.iter().map(|(root, tokens)| Sequence { root: *root, tokens }).collect();
            let forest = build(&roots, &views);
            let mut distinct = HashSet::new();
            for ((root, tokens), path) in sequences.iter().zip(&forest.paths) {
                let cut = roots[*root].cut;
                for position in cut..tokens.len() {
                    prop_assert_eq!(spelled(&forest, row(path, position)), &tokens[cut..=position]);
                    distinct.insert((*root, &tokens[..=position]));
                }
            }
            prop_assert_eq!(forest.segments.iter().map(|s| s.tokens.len()).sum::<usize>(), distinct.len());
        }
    }
}
