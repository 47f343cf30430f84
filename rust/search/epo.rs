//! EPO: one prompt a slot, each slot with its own penalty on cross-entropy (Thompson, Straznickas and Sklar, "Fluent
//! dreaming for language models", 2024).
//!
//! | | `code` | `paper` | `default` |
//! | --- | --- | --- | --- |
//! | pool | parents and children | children | parents and children |
//! | restart | at steps 0, 50, 100, ... with penalty 2 | every 30th step, penalty uniform in 2/3..6 | every 50th step, penalty as in the paper |
//! | proposals of new members | penalty of their place among the new ones | their slot's penalty | their slot's penalty |
//! | penalties | 0.1 to 10, log-spaced | the same | 0, then the same |
//! | population stands still | goes on | goes on | is drawn afresh |

use super::ledger::Ledger;
use super::rng::Stream;
use super::run::{Child, Entry, Event, Run, Settings, Slot, Variant};
use crate::engine::request::Context;
use crate::error::Result;

const LOWEST: f64 = 0.1;
const HIGHEST: f64 = 10.0;
/// The released code's penalty at a restart; the paper's is uniform in a third of it to thrice it.
const RESTART: f64 = 2.0;

/// The slots' penalties.
pub(super) fn penalties(settings: &Settings) -> Vec<f64> {
    let spaced = |count: usize| {
        let step = (HIGHEST.ln() - LOWEST.ln()) / (count.max(2) - 1) as f64;
        (0..count).map(move |i| (LOWEST.ln() + step * i as f64).exp())
    };
    match settings.variant {
        Variant::Code | Variant::Paper => spaced(settings.population).collect(),
        Variant::Default => std::iter::once(0.0).chain(spaced(settings.population - 1)).collect(),
    }
}

fn restart(run: &Run<'_>) -> Option<f64> {
    let drawn = || {
        let (low, high) = (RESTART / 3.0, RESTART * 3.0);
        low + (high - low) * run.rng.unit(run.step, 0, Stream::Restart)
    };
    match run.settings.variant {
        Variant::Code => run.step.is_multiple_of(50).then_some(RESTART),
        Variant::Paper => (run.step + 1).is_multiple_of(30).then(drawn),
        Variant::Default => (run.step + 1).is_multiple_of(50).then(drawn),
    }
}

/// `penalty * cross-entropy - value` over some contexts; infinite for what cannot be chosen.
fn loss(ledger: &Ledger<'_>, at: usize, penalty: f64, contexts: &[usize]) -> f64 {
    let value = ledger.value(at, Some(contexts)).filter(|_| ledger.valid(at));
    let entropy = if penalty == 0.0 { Some(0.0) } else { ledger.entropy(at, Some(contexts)) };
    let loss = value.zip(entropy).map_or(f64::INFINITY, |(value, entropy)| bound(value, penalty, entropy));
    if loss.is_nan() { f64::INFINITY } else { loss }
}

/// The loss, rising with the cross-entropy in floating point too.
fn bound(value: f32, penalty: f64, entropy: f32) -> f64 {
    penalty * f64::from(entropy) - f64::from(value)
}

/// Index of the lowest loss, the first of equals.
fn lowest(ledger: &Ledger<'_>, pool: &[usize], penalty: f64, contexts: &[usize]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, &at) in pool.iter().enumerate() {
        let loss = loss(ledger, at, penalty, contexts);
        if loss < best.map_or(f64::INFINITY, |(_, best)| best) {
            best = Some((i, loss));
        }
    }
    best.map(|(i, _)| i)
}

/// One step: children, their scores, the choice.
pub(super) fn step(run: &mut Run<'_>, context: &mut Context<'_>) -> Result<()> {
    let penalties = run.penalties();
    let restart = restart(run);
    let wanted = restart.map_or_else(|| penalties.clone(), |penalty| vec![penalty]);
    let elitist = run.settings.variant != Variant::Paper;
    let parents: Vec<usize> = run.slots.iter().map(|&(at, _)| at).collect();
    let all: Vec<usize> = run.all_contexts().collect();

    let mut children = run.children(None, context)?;
    children.retain(|&(.., at)| run.ledger.valid(at));
    if let Some(some) = run.screened() {
        compete(run, &children, &parents, &wanted, &some, false, context)?;
        let promoted = promote(run, &children, &parents, &wanted, &some);
        run.ledger.learn(&promoted, &all, true, true, context)?;
        children.retain(|(.., at)| promoted.contains(at));
    } else {
        let incumbents: &[usize] = if elitist { &parents } else { &[] };
        compete(run, &children, incumbents, &wanted, &all, true, context)?;
    }

    let mut pool = if elitist { parents.clone() } else { Vec::new() };
    let survivors = pool.len();
    pool.extend(children.iter().map(|&(.., at)| at));
    let chosen: Vec<Option<usize>> =
        penalties.iter().map(|&penalty| lowest(&run.ledger, &pool, restart.unwrap_or(penalty), &all)).collect();
    let slots = succeed(run, &chosen, &pool, survivors, &penalties);
    let members: Vec<usize> = slots.iter().map(|&(at, _)| at).collect();
    // A slot without penalty chooses without a cross-entropy.
    run.ledger.learn(&members, &all, false, true, context)?;
    let changed = members != parents;
    run.slots = slots;
    let event = if restart.is_some() { Event::Restart } else { Event::Step };
    run.history.push(Entry { event, members });
    run.settle_change(changed, context)
}

/// The next population.
fn succeed(run: &Run<'_>, chosen: &[Option<usize>], pool: &[usize], survivors: usize, penalties: &[f64]) -> Vec<Slot> {
    if run.settings.variant == Variant::Code {
        // As released: survivors first, with the proposals they had; then the new, with the first penalties.
        let stays = |(slot, &chosen): (usize, &Option<usize>)| match chosen {
            None => Some(run.slots[slot]),
            Some(chosen) => (chosen < survivors).then(|| run.slots[chosen]),
        };
        let new = chosen.iter().flatten().filter(|&&chosen| chosen >= survivors).map(|&chosen| pool[chosen]);
        return chosen.iter().enumerate().filter_map(stays).chain(new.zip(penalties.iter().copied())).collect();
    }
    let next = chosen.iter().enumerate().map(|(slot, chosen)| chosen.map_or(run.slots[slot].0, |i| pool[i]));
    next.zip(penalties.iter().copied()).collect()
}

/// Whether to learn values before cross-entropies: worth it if little of the model runs for a value and few children
/// survive it. The choice changes the work, never the result.
fn values_first(run: &Run<'_>) -> bool {
    const BOUNDS: f64 = 0.07;
    let work = &run.ledger.work;
    let survive = (work.bounded - work.pruned + 64) as f64 / (work.bounded + 256) as f64;
    run.settings.prune && (run.step.is_multiple_of(16) || run.ledger.prompts.depth() + survive + BOUNDS < 1.0)
}

/// Learns the values of all children, and the cross-entropies of those that a slot may choose: a child whose lower
/// bound is above what some slot already has, for every slot, is left without. `rounds`: whether children compete with
/// each other too, the most promising first.
fn compete(
    run: &mut Run<'_>,
    children: &[Child],
    incumbents: &[usize],
    wanted: &[f64],
    contexts: &[usize],
    rounds: bool,
    context: &mut Context<'_>,
) -> Result<()> {
    let places: Vec<usize> = children.iter().map(|&(.., at)| at).collect();
    let values_first = values_first(run);
    run.ledger.learn(&places, contexts, true, !values_first, context)?;
    if !values_first {
        return Ok(());
    }
    let penalised: Vec<f64> = wanted.iter().copied().filter(|&penalty| penalty != 0.0).collect();
    let mut open: Vec<Child> = Vec::new();
    for child in children {
        if run.ledger.entropy(child.2, Some(contexts)).is_none() && open.iter().all(|other| other.2 != child.2) {
            open.push(*child);
        }
    }
    if open.is_empty() {
        return Ok(());
    }
    let bounds = run.ledger.entropy_bounds(&open, contexts, context)?;
    let least = |run: &Run<'_>, i: usize, penalty: f64| {
        let value = run.ledger.value(open[i].2, Some(contexts)).unwrap_or(f32::NAN);
        let loss = bound(value, penalty, bounds[i]);
        if loss.is_nan() { f64::INFINITY } else { loss }
    };
    let mut rivals: Vec<usize> = incumbents.to_vec();
    if rounds {
        rivals.extend(&places);
    }
    let best = |run: &Run<'_>| -> Vec<f64> {
        let lowest = |&penalty: &f64| {
            let losses = rivals.iter().map(|&at| loss(&run.ledger, at, penalty, contexts));
            losses.fold(f64::INFINITY, f64::min)
        };
        penalised.iter().map(lowest).collect()
    };
    let can_win = |run: &Run<'_>, best: &[f64], i: usize| {
        penalised.iter().zip(best).any(|(&penalty, &best)| least(run, i, penalty) <= best)
    };

    let mut left: Vec<usize> = (0..open.len()).collect();
    if rounds {
        let beaten = best(run);
        let each = (run.settings.width / (8 * penalised.len().max(1))).max(1);
        let mut first: Vec<usize> = Vec::new();
        for (m, &penalty) in penalised.iter().enumerate() {
            let mut order: Vec<(f64, usize)> = left.iter().map(|&i| (least(run, i, penalty), i)).collect();
            order.retain(|(least, _)| *least <= beaten[m]);
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            first.extend(order.into_iter().take(each).map(|(_, i)| i));
        }
        first.sort_unstable();
        first.dedup();
        let places: Vec<usize> = first.iter().map(|&i| open[i].2).collect();
        run.ledger.learn(&places, contexts, false, true, context)?;
        left.retain(|i| first.binary_search(i).is_err());
    }
    let beaten = best(run);
    let before = left.len();
    left.retain(|&i| can_win(run, &beaten, i));
    run.ledger.work.pruned += (before - left.len()) as u64;
    let places: Vec<usize> = left.iter().map(|&i| open[i].2).collect();
    run.ledger.learn(&places, contexts, false, true, context)
}

/// After screening: for each slot the best few of the children that beat every parent in the screened contexts.
fn promote(run: &Run<'_>, children: &[Child], parents: &[usize], wanted: &[f64], contexts: &[usize]) -> Vec<usize> {
    let each = (run.settings.width / (16 * wanted.len())).max(1);
    let mut promoted: Vec<usize> = Vec::new();
    for &penalty in wanted {
        let of = |at: usize| loss(&run.ledger, at, penalty, contexts);
        let beaten = parents.iter().map(|&at| of(at)).fold(f64::INFINITY, f64::min);
        let mut better: Vec<(f64, usize)> = Vec::new();
        for &(.., at) in children {
            if of(at) < beaten && better.iter().all(|&(_, other)| other != at) {
                better.push((of(at), at));
            }
        }
        better.sort_by(|a, b| a.0.total_cmp(&b.0));
        promoted.extend(better.into_iter().take(each).map(|(_, at)| at));
    }
    promoted.sort_unstable();
    promoted.dedup();
    promoted
}
