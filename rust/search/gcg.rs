//! GCG: one prompt, the best of many single swaps (Zou et al., "Universal and transferable adversarial attacks on aligned
//! language models", 2023).
//!
//! | | `code` | `paper` | `default` |
//! | --- | --- | --- | --- |
//! | position of child `c` of `B` | `floor(c n / B)` | uniform | uniform |
//! | children equal to the parent | left out | kept | left out |
//! | next parent | the best child, even if worse | the same | the best of parent and children |
//! | prompt stands still | goes on | goes on | is drawn afresh |
//!
//! The released code divides each worker's summed gradient by its norm at each position; with one model this changes no
//! proposal. It fills up filtered children with copies of the last; these are looked up and change no choice.

use super::run::{Entry, Event, Run, Variant};
use crate::engine::request::Context;
use crate::error::Result;

/// One step: children, their scores, the choice.
pub(super) fn step(run: &mut Run<'_>, context: &mut Context<'_>) -> Result<()> {
    let (n, width, variant) = (run.settings.tokens, run.settings.width, run.settings.variant);
    let parent = run.slots[0].0;
    let even = |c: usize| c * n / width;
    let mut children = match variant {
        Variant::Code => run.children(Some(&even), context)?,
        _ => run.children(None, context)?,
    };
    children.retain(|&(.., at)| run.ledger.valid(at) && (variant == Variant::Paper || at != parent));
    let mut places: Vec<usize> = children.into_iter().map(|(.., at)| at).collect();
    let all: Vec<usize> = run.all_contexts().collect();
    if let Some(some) = run.screened() {
        run.ledger.learn(&places, &some, true, false, context)?;
        let value = |at: usize| run.ledger.value(at, Some(&some)).filter(|value| !value.is_nan());
        let mut better: Vec<(f32, usize)> = Vec::new();
        for &at in &places {
            let promising = value(at).filter(|&value_here| value(parent).is_none_or(|beaten| value_here > beaten));
            if let Some(value) = promising.filter(|_| better.iter().all(|&(_, other)| other != at)) {
                better.push((value, at));
            }
        }
        better.sort_by(|a, b| b.0.total_cmp(&a.0));
        better.truncate((width / 16).max(1));
        places.retain(|at| better.iter().any(|(_, promoted)| promoted == at));
    }
    run.ledger.learn(&places, &all, true, false, context)?;

    let mut best: Option<(usize, f32)> = None;
    let incumbent = (variant == Variant::Default).then_some(parent);
    for at in incumbent.into_iter().chain(places) {
        let value = run.ledger.value(at, None).filter(|value| !value.is_nan());
        if let Some(value) = value.filter(|&value| best.is_none_or(|(_, best)| value > best)) {
            best = Some((at, value));
        }
    }
    let next = best.map_or(parent, |(at, _)| at);
    run.slots = vec![(next, 0.0)];
    run.history.push(Entry { event: Event::Step, members: vec![next] });
    run.settle_change(next != parent, context)
}
