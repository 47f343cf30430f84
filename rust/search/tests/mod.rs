//! Whole searches on the made-up model.

mod fake;

use std::sync::atomic::Ordering;

use fake::Fake;
use proptest::prelude::*;

use super::contexts::ContextTokens;
use super::ledger::RoundTrip;
use super::objective::{Objective, ObjectiveSpec, Objectives, Position, PositionRule, TermSpec};
use super::run::{Aggregate, Ended, Event, Method, Progress, SearchResult, Settings, Variant, search};
use super::score::{gradient, score};
use crate::engine::request::{Context, Engine};
use crate::engine::site::Site;
use crate::error::{Error, Result};

const SITE: &str = "blocks.0.mlp.hook_pre";

fn neuron(index: usize, position: Position) -> (f64, TermSpec) {
    (1.0, TermSpec::Neuron { site: SITE.to_owned(), index, position })
}

fn checked(engine: &Fake, terms: Vec<(f64, TermSpec)>) -> Objective {
    Objective::new(&ObjectiveSpec { terms, offset: 0.0 }, engine.spec()).unwrap()
}

fn objective(engine: &Fake, terms: Vec<(f64, TermSpec)>) -> Objectives {
    Objectives::one(checked(engine, terms))
}

/// Several that read at different places, with continuations of different lengths.
fn different(engine: &Fake) -> Vec<Objective> {
    let logprob = |target| vec![(0.5, TermSpec::LogProb { target })];
    let last = vec![neuron(4, Position::At(-1)), (0.3, TermSpec::LogitDiff { a: 1, b: 2, position: Position::At(-1) })];
    let best = vec![neuron(2, Position::Rule(PositionRule::Best))];
    [last, best, logprob(vec![3, 1, 2]), logprob(vec![4]), everything()].map(|terms| checked(engine, terms)).to_vec()
}

fn everything() -> Vec<(f64, TermSpec)> {
    let site = SITE.to_owned();
    let vector = (0..10).map(|i| i as f32 / 10.0 - 0.4).collect();
    vec![
        neuron(1, Position::At(-1)),
        (-0.5, TermSpec::Direction { site, vector, position: Position::At(1) }),
        (0.3, TermSpec::LogitDiff { a: 1, b: 2, position: Position::At(-1) }),
        (0.7, TermSpec::LogProb { target: vec![3, 1, 2] }),
        (0.2, TermSpec::LogProb { target: vec![3, 0] }),
        (0.1, TermSpec::LogProb { target: vec![4] }),
        (2.0, neuron(2, Position::Rule(PositionRule::Best)).1),
    ]
}

fn settings(method: Method, variant: Variant, vocabulary: usize) -> Settings {
    Settings {
        method,
        variant,
        tokens: 4,
        steps: 25,
        width: 24,
        topk: 5,
        population: 4,
        aggregate: Aggregate::Mean,
        seed: 3,
        stop_at: None,
        prune: true,
        screen: 0,
        patience: 1,
        start: Vec::new(),
        start_required: false,
        allowed: vec![true; vocabulary],
        checkpoint: None,
        identity: "test".to_owned(),
        checkpoint_every: 0.0,
    }
}

fn contexts() -> Vec<ContextTokens> {
    let context = |before: &[u32], after: &[u32]| ContextTokens { before: before.to_vec(), after: after.to_vec() };
    vec![
        context(&[1, 2, 3], &[4, 5]),
        context(&[1, 2, 3], &[6]),
        context(&[1, 2], &[0, 1, 2]),
        context(&[], &[3]),
        context(&[7], &[3]),
        context(&[5, 5, 5, 5], &[1]),
    ]
}

fn go(engine: &Fake, objective: &Objectives, contexts: &[ContextTokens], settings: &Settings) -> Result<SearchResult> {
    search(engine, objective, contexts, settings, None, &mut |_| Ok(()), &mut Context::default())
}

/// A result without its counts of work.
fn found(result: &SearchResult) -> String {
    let mut result = result.clone();
    result.work = super::ledger::Work::default();
    serde_json::to_string(&result).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_score_is_the_same_whatever_it_is_computed_with(
        sequences in prop::collection::vec(prop::collection::vec(0_u32..4, 2..9), 1..40),
    ) {
        let engine = Fake::new(1, 8);
        let objective = objective(&engine, everything());
        let together = score(&engine, &sequences, None, &objective, &mut Context::default()).unwrap();
        for (sequence, together) in sequences.iter().zip(together) {
            let one = std::slice::from_ref(sequence);
            let alone = score(&engine, one, None, &objective, &mut Context::default()).unwrap();
            prop_assert_eq!(alone[0].to_bits(), together.to_bits());
            let (value, _) =
                gradient(&engine, sequence, None, objective.of(0), &[Site::EMBED], &mut Context::default()).unwrap();
            prop_assert_eq!(value.to_bits(), together.to_bits());
        }
    }

    #[test]
    fn a_score_by_an_objective_of_its_own_is_that_of_the_objective(
        sequences in prop::collection::vec((prop::collection::vec(0_u32..4, 2..9), 0_usize..5), 1..40),
    ) {
        let engine = Fake::new(1, 8);
        let all = different(&engine);
        let (tokens, of): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        let each = Objectives::each(all.clone(), of.clone()).unwrap();
        let values = score(&engine, &tokens, None, &each, &mut Context::default()).unwrap();
        for ((tokens, own), value) in tokens.iter().zip(of).zip(values) {
            let one = Objectives::one(all[own].clone());
            let alone = score(&engine, std::slice::from_ref(tokens), None, &one, &mut Context::default()).unwrap();
            prop_assert_eq!(alone[0].to_bits(), value.to_bits());
        }
    }
}

#[test]
fn shared_prefixes_are_computed_once() {
    let engine = Fake::new(1, 8);
    let objective = objective(&engine, vec![neuron(0, Position::At(-1))]);
    let sequences: Vec<Vec<u32>> = (0..8).map(|last| vec![1, 2, 3, last]).collect();
    score(&engine, &sequences, None, &objective, &mut Context::default()).unwrap();
    assert_eq!(engine.tokens.load(Ordering::Relaxed), 3 + 8);
}

#[test]
fn many_sequences_are_split_and_each_is_scored() {
    let engine = Fake::new(1, 8);
    let objective = objective(&engine, vec![neuron(0, Position::At(-1))]);
    let digit = |i: u32, place: u32| i / 8_u32.pow(place) % 8;
    let sequences: Vec<Vec<u32>> = (0..4096).map(|i| (0..4).map(|place| digit(i, place)).collect()).collect();
    let values = score(&engine, &sequences, None, &objective, &mut Context::default()).unwrap();
    for at in [0, 1, 777, 4095] {
        let alone = score(&engine, &sequences[at..=at], None, &objective, &mut Context::default()).unwrap();
        assert_eq!(alone[0].to_bits(), values[at].to_bits());
    }
}

#[test]
fn published_and_own_steps_choose_the_same_with_and_without_pruning() {
    let engine = Fake::new(5, 9);
    let terms = vec![neuron(4, Position::At(-1)), (0.3, TermSpec::LogProb { target: vec![3, 1] })];
    let one = objective(&engine, terms);
    let each = Objectives::each(different(&engine), vec![0, 1, 2, 3, 4, 0]).unwrap();
    let mut pruned = 0;
    for (contexts, objective) in [(vec![ContextTokens::default()], &one), (contexts(), &one), (contexts(), &each)] {
        for variant in [Variant::Default, Variant::Code, Variant::Paper] {
            for aggregate in [Aggregate::Mean, Aggregate::Worst] {
                for screen in if variant == Variant::Default && contexts.len() > 1 { vec![0, 2] } else { vec![0] } {
                    let mut settings = settings(Method::Epo, variant, 9);
                    (settings.aggregate, settings.screen, settings.steps) = (aggregate, screen, 60);
                    let with = go(&engine, objective, &contexts, &settings).unwrap();
                    settings.prune = false;
                    let without = go(&engine, objective, &contexts, &settings).unwrap();
                    assert_eq!(found(&with), found(&without), "{variant:?} {aggregate:?} {screen}");
                    assert_eq!(without.work.pruned, 0);
                    pruned += with.work.pruned;
                }
            }
        }
    }
    assert!(pruned > 100, "{pruned}");
}

#[test]
fn best_is_what_scoring_its_sequences_gives() {
    let engine = Fake::new(6, 9);
    let terms = vec![neuron(4, Position::Rule(PositionRule::Best)), neuron(5, Position::Rule(PositionRule::After))];
    let one = objective(&engine, terms);
    let each = Objectives::each(different(&engine), vec![4, 0, 2, 1, 3, 0]).unwrap();
    for (method, objective) in [(Method::Epo, &one), (Method::Gcg, &one), (Method::Epo, &each), (Method::Gcg, &each)] {
        for screen in [0, 3] {
            let mut settings = settings(method, Variant::Default, 9);
            settings.screen = screen;
            let result = go(&engine, objective, &contexts(), &settings).unwrap();
            let free: Vec<_> = result.spans.iter().map(|&(start, end)| start..end).collect();
            let values = score(&engine, &result.sequences, Some(&free), objective, &mut Context::default()).unwrap();
            let mean = Aggregate::Mean.of(values.into_iter().map(Some));
            assert_eq!(mean.map(f32::to_bits), result.best.value.map(f32::to_bits));
            assert!(result.prompts.iter().all(|prompt| prompt.value <= result.best.value));
        }
    }
}

#[test]
fn ends_when_all_prompts_were_met_with_the_highest_of_all() {
    let engine = Fake::new(2, 5);
    let objective = objective(&engine, vec![neuron(3, Position::At(-1))]);
    let all: Vec<Vec<u32>> = (0..25).map(|i| vec![i / 5, i % 5]).collect();
    let highest =
        score(&engine, &all, None, &objective, &mut Context::default()).unwrap().into_iter().fold(f32::MIN, f32::max);
    for method in [Method::Epo, Method::Gcg] {
        let mut settings = settings(method, Variant::Default, 5);
        (settings.tokens, settings.steps) = (2, 300);
        let result = go(&engine, &objective, &[ContextTokens::default()], &settings).unwrap();
        assert_eq!((result.ended, result.best.value), (Ended::Exhausted, Some(highest)), "{method:?}");
        assert_eq!(result.work.values, 25);
        settings.stop_at = Some(highest);
        let stopped = go(&engine, &objective, &[ContextTokens::default()], &settings).unwrap();
        assert_eq!((stopped.ended, stopped.best.value), (Ended::Reached, Some(highest)));
        assert!(stopped.work.steps <= result.work.steps);
    }
}

#[test]
fn an_objective_a_context_is_raised_to_the_highest_of_all_prompts() {
    let engine = Fake::new(2, 5);
    let contexts: Vec<ContextTokens> = contexts()[..4]
        .iter()
        .map(|one| ContextTokens { before: one.before.iter().map(|id| id % 5).collect(), after: vec![3] })
        .collect();
    let each = Objectives::each(different(&engine)[..3].to_vec(), vec![2, 0, 1, 0]).unwrap();
    for (aggregate, method) in [(Aggregate::Mean, Method::Epo), (Aggregate::Worst, Method::Gcg)] {
        let value = |free: [u32; 2]| {
            let own = contexts.iter().enumerate().map(|(c, ContextTokens { before, after })| {
                let whole = [before.as_slice(), &free, after].concat();
                let span = before.len()..before.len() + 2;
                // One by one, through an objective that is alone.
                gradient(&engine, &whole, Some(&span), each.of(c), &[Site::EMBED], &mut Context::default()).unwrap().0
            });
            aggregate.of(own.map(Some)).unwrap()
        };
        let highest = (0..25).map(|i| value([i / 5, i % 5])).fold(f32::MIN, f32::max);
        let mut settings = settings(method, Variant::Default, 5);
        (settings.tokens, settings.steps, settings.aggregate) = (2, 300, aggregate);
        let result = go(&engine, &each, &contexts, &settings).unwrap();
        assert_eq!((result.ended, result.best.value), (Ended::Exhausted, Some(highest)), "{method:?}");
    }
}

#[test]
fn objectives_are_one_or_one_a_context() {
    let engine = Fake::new(2, 5);
    let settings = settings(Method::Epo, Variant::Default, 5);
    assert!(matches!(Objectives::each(different(&engine), vec![0, 5]), Err(Error::Argument { .. })));
    let two = Objectives::each(different(&engine), vec![0, 1]).unwrap();
    let found = go(&engine, &two, &[ContextTokens::default()], &settings);
    assert!(matches!(found, Err(Error::Argument { .. })));
    let found = score(&engine, &[vec![1], vec![1], vec![1]], None, &two, &mut Context::default());
    assert!(matches!(found, Err(Error::Argument { .. })));
}

#[test]
fn going_on_after_a_kill_gives_the_same_to_the_last_count() {
    let engine = Fake::new(5, 9);
    let objective = objective(&engine, vec![neuron(4, Position::At(-1))]);
    let folder = std::env::temp_dir().join(format!("signflip-search-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (method, variant, contexts, screen) in [
        (Method::Epo, Variant::Default, contexts(), 2),
        (Method::Epo, Variant::Code, vec![ContextTokens::default()], 0),
        (Method::Epo, Variant::Paper, vec![ContextTokens::default()], 0),
        (Method::Gcg, Variant::Default, vec![ContextTokens::default()], 0),
    ] {
        let mut settings = settings(method, variant, 9);
        settings.screen = screen;
        let whole = go(&engine, &objective, &contexts, &settings).unwrap();
        let path = folder.join("state.json");
        settings.checkpoint = Some(path.clone());
        let mut kills = 0;
        let resumed = loop {
            engine.fail_after.store(11, Ordering::Relaxed);
            match go(&engine, &objective, &contexts, &settings) {
                Err(Error::Interrupted) => kills += 1,
                other => break other.unwrap(),
            }
        };
        engine.fail_after.store(usize::MAX, Ordering::Relaxed);
        assert!(kills > 2);
        assert_eq!(serde_json::to_string(&whole).unwrap(), serde_json::to_string(&resumed).unwrap());
        settings.identity = "another".to_owned();
        assert!(matches!(go(&engine, &objective, &contexts, &settings), Err(Error::Search(_))));
        std::fs::write(&path, b"{").unwrap();
        assert!(matches!(go(&engine, &objective, &contexts, &settings), Err(Error::Search(_))));
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

struct NoPair;

impl RoundTrip for NoPair {
    fn ok(&self, ids: &[u32]) -> bool {
        ids.windows(2).all(|pair| pair[0] != pair[1])
    }
}

struct Never;

impl RoundTrip for Never {
    fn ok(&self, _: &[u32]) -> bool {
        false
    }
}

#[test]
fn what_the_filters_turn_away_is_never_chosen() {
    let engine = Fake::new(5, 9);
    let objective = objective(&engine, vec![neuron(4, Position::At(-1))]);
    let here = [ContextTokens { before: vec![1], after: vec![2] }];
    for (method, variant) in
        [(Method::Epo, Variant::Default), (Method::Epo, Variant::Paper), (Method::Gcg, Variant::Code)]
    {
        let mut settings = settings(method, variant, 9);
        settings.allowed[3] = false;
        let run = |settings: &Settings, filter: &dyn RoundTrip| {
            search(&engine, &objective, &here, settings, Some(filter), &mut |_| Ok(()), &mut Context::default())
        };
        let result = run(&settings, &NoPair).unwrap();
        assert!(result.work.invalid > 0);
        for prompt in &result.prompts {
            let whole = [&[1], prompt.tokens.as_slice(), &[2]].concat();
            assert!(NoPair.ok(&whole) && !prompt.tokens.contains(&3), "{whole:?}");
        }
        assert!(matches!(run(&settings, &Never), Err(Error::Search(_))));
        settings.start = vec![vec![0, 0, 1, 0]];
        assert!(run(&settings, &NoPair).is_ok());
        settings.start_required = true;
        assert!(matches!(run(&settings, &NoPair), Err(Error::Search(_))));
        settings.allowed = vec![false; 9];
        assert!(matches!(run(&settings, &NoPair), Err(Error::Search(_))));
    }
}

#[test]
fn a_population_that_stands_still_is_drawn_afresh() {
    let engine = Fake::new(5, 9);
    let objective = objective(&engine, vec![neuron(4, Position::At(-1))]);
    let settings = settings(Method::Gcg, Variant::Default, 9);
    let result = go(&engine, &objective, &[ContextTokens::default()], &settings).unwrap();
    let mut fresh = 0;
    for pair in result.history.windows(2) {
        if pair[1].event == Event::Fresh {
            fresh += 1;
            assert_eq!(pair[0].event, Event::Step);
        }
    }
    assert!(fresh > 0);
}

#[test]
fn bad_settings_are_named() {
    let engine = Fake::new(5, 9);
    let objective = objective(&engine, vec![neuron(4, Position::At(-1))]);
    let none = [ContextTokens::default()];
    let base = settings(Method::Epo, Variant::Code, 9);
    let bad = |change: &dyn Fn(&mut Settings)| {
        let mut settings = base.clone();
        change(&mut settings);
        go(&engine, &objective, &none, &settings).unwrap_err()
    };
    assert!(matches!(bad(&|s| s.tokens = 0), Error::Argument { name: "tokens", .. }));
    assert!(matches!(bad(&|s| s.width = 0), Error::Argument { name: "width", .. }));
    assert!(matches!(bad(&|s| s.tokens = 65), Error::ContextLength { found: 65, limit: 64 }));
    assert!(matches!(bad(&|s| s.screen = 1), Error::Argument { name: "screen", .. }));
    assert!(matches!(bad(&|s| s.start = vec![vec![1]]), Error::Argument { name: "start", .. }));
    assert!(matches!(bad(&|s| s.start = vec![vec![1, 2, 3, 9]]), Error::Tokens(_)));
    assert!(matches!(bad(&|s| s.stop_at = Some(f32::NAN)), Error::Argument { name: "stop_at", .. }));
    assert!(matches!(bad(&|s| s.allowed = vec![true]), Error::Argument { name: "allowed", .. }));
    let spec = |term| Objective::new(&ObjectiveSpec { terms: vec![(1.0, term)], offset: 0.0 }, engine.spec());
    let site = |name: &str, index| TermSpec::Neuron { site: name.to_owned(), index, position: Position::At(0) };
    assert!(matches!(spec(site("blocks.0.mlp.hook_por", 0)), Err(Error::Site { .. })));
    assert!(matches!(spec(site(SITE, 10)), Err(Error::Site { .. })));
    assert!(matches!(spec(site("blocks.0.attn.hook_pattern", 0)), Err(Error::Site { .. })));
    assert!(matches!(spec(TermSpec::LogProb { target: vec![] }), Err(Error::Tokens(_))));
    assert!(matches!(spec(TermSpec::LogitDiff { a: 9, b: 0, position: Position::At(0) }), Err(Error::Tokens(_))));
    assert!(matches!(spec(TermSpec::Reward { label: 0 }), Err(Error::Argument { .. })));
    let far = Objectives::one(checked(&engine, vec![neuron(0, Position::At(4))]));
    assert!(matches!(go(&engine, &far, &none, &base), Err(Error::Argument { name: "position", .. })));
}

#[test]
fn progress_and_interruption_reach_the_caller() {
    let engine = Fake::new(5, 9);
    let objective = objective(&engine, vec![neuron(4, Position::At(-1))]);
    let settings = settings(Method::Epo, Variant::Code, 9);
    let mut steps = Vec::new();
    let mut progress = |p: Progress| {
        steps.push(p.step);
        if p.step == 3 { Err(Error::Interrupted) } else { Ok(()) }
    };
    let none = [ContextTokens::default()];
    let result = search(&engine, &objective, &none, &settings, None, &mut progress, &mut Context::default());
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(steps, [0, 1, 2, 3]);
}
