//! The pass over a corpus against a plain recomputation, on an engine that is nothing but a function of tokens.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::document::{Document, DocumentHash};
use super::histogram;
use super::run::{Options, partial_path, run, sites};
use super::settings::{FORMAT, Settings, to_value};
use super::store::{self, Survey};
use super::topk::{End, Occurrence};
use crate::engine::request::{
    Columns, Context, Engine, Gradients, HostRows, Output, Parent, Read, Request, Response, RowRef, TokenScore,
    TopTokens, WeightKind,
};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};
use crate::model::spec::{Activation, Head, ModelSpec, NormKind, Positions};

/// Gives each site of each token a value that is a function of the token's own prefix.
struct Fake {
    spec: ModelSpec,
    pool: rayon::ThreadPool,
    /// A document's token after which values are infinite.
    poison: Option<u32>,
}

impl Fake {
    fn new(threads: usize) -> Self {
        let spec = ModelSpec {
            family: "fake".to_owned(),
            n_layers: 2,
            d_model: 11,
            d_mlp: 70,
            n_heads: 1,
            n_kv_heads: 1,
            d_head: 4,
            d_vocab: 50,
            n_ctx: 64,
            act_fn: "silu".to_owned(),
            activation: Activation::Silu,
            gated: true,
            norm: NormKind::Rms,
            norm_eps: 1e-5,
            positions: Positions::Learned,
            attn_scale: vec![0.5; 2],
            head: Head::Unembed,
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Self { spec, pool, poison: None }
    }

    fn row(&self, site: Site, path: &[u32]) -> Vec<f32> {
        let mut state = 0x9e37_79b9_u32 ^ ((site.layer as u32) << 8) ^ site.point as u32;
        for &token in path {
            state = (state ^ token).wrapping_mul(0x85eb_ca6b).rotate_left(13);
        }
        // A sink, now and then, in some layers; its values would show.
        let sink = path.iter().fold(site.layer as u32, |sum, &t| sum.wrapping_mul(31).wrapping_add(t)) % 11 == 0;
        let scale = if sink && site.point != Point::Embed { 200.0 } else { 1.0 };
        (0..site.width(&self.spec, 0) as u32)
            .map(|j| {
                let bits = (state ^ j.wrapping_mul(0x27d4_eb2f)).wrapping_mul(0x1656_67b1);
                let bits = (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca6b);
                match bits % 7 {
                    _ if self.poison.is_some_and(|t| path.last() == Some(&t)) && j == 69 => f32::INFINITY,
                    0 => -0.0,
                    // Repeated values, so that occurrences tie.
                    1 => scale,
                    2 if j == 3 => 1e4,
                    _ if j == 5 => scale * (bits >> 8) as f32 * 1e-6 + 1e-3,
                    _ => scale * ((bits >> 8) as f32 * 1e-7 - 0.8),
                }
            })
            .collect()
    }
}

impl Engine for Fake {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn run(&self, request: &Request, context: &mut Context<'_>) -> Result<Response> {
        let mut paths: Vec<Vec<u32>> = Vec::new();
        let (mut refs, mut positions, mut prefixes) = (Vec::new(), Vec::new(), Vec::new());
        for (i, segment) in request.segments.iter().enumerate() {
            let mut path = match segment.parent {
                Parent::Segment { index, keep } => {
                    let own = request.segments[index].tokens.len();
                    paths[index][..paths[index].len() - own + keep].to_vec()
                }
                _ => Vec::new(),
            };
            for (offset, &token) in segment.tokens.iter().enumerate() {
                positions.push(path.len() as u32);
                path.push(token);
                refs.push(RowRef::clean(i, offset));
                prefixes.push(path.clone());
            }
            assert!(path.len() <= self.spec.n_ctx);
            paths.push(path);
        }
        let mut outputs = Vec::new();
        for read in &request.reads {
            if let Read::Values { site, rows, columns: Columns::All } = read {
                let data = rows.iter().flat_map(|row| self.row(*site, &paths[row.segment][..=row.offset])).collect();
                outputs.push(Output { n_rows: rows.len(), n_cols: site.width(&self.spec, 0), data });
            }
        }
        let Some(host) = context.host.as_mut() else {
            return Ok(Response { outputs, cache: None });
        };
        for site in Site::all(&self.spec) {
            if host.wants(site) {
                let mut data: Vec<f32> = prefixes.iter().flat_map(|path| self.row(site, path)).collect();
                let rows = HostRows { rows: &refs, positions: &positions };
                host.step(site, &rows, site.width(&self.spec, 0), &mut data)?;
            }
        }
        Ok(Response { outputs, cache: None })
    }

    fn gradient(
        &self,
        _: &Request,
        _: &[Site],
        _: Option<&[usize]>,
        _: &mut dyn FnMut(&[Output]) -> Result<Vec<Vec<f32>>>,
        _: &mut Context<'_>,
    ) -> Result<(Response, Gradients)> {
        unreachable!()
    }

    fn top_tokens(&self, _: &[TokenScore<'_>], _: usize, _: &[bool], _: usize) -> Result<TopTokens> {
        unreachable!()
    }

    fn weight_row(&self, kind: WeightKind, _: usize, row: usize) -> Result<Vec<f32>> {
        let width = match kind {
            WeightKind::InBias | WeightKind::InLinearBias => self.spec.d_mlp,
            _ => self.spec.d_model,
        };
        Ok((0..width).map(|i| ((row * 7 + i) % 5) as f32 * 0.25 - 0.5).collect())
    }

    fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }
}

fn names() -> Vec<String> {
    [
        "mlp.hook_pre",
        "blocks.0.mlp.hook_pre_linear",
        "hook_embed",
        "blocks.1.hook_resid_post",
        "ln_final.hook_normalized",
        "blocks.1.hook_resid_pre",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn settings(engine: &Fake, context: usize, prefix: &[u32]) -> Settings {
    let sites = sites(Some(&names()), engine).unwrap();
    Settings {
        bos: "tokenizer".to_owned(),
        context,
        dtype: "float32".to_owned(),
        format: FORMAT,
        histogram_every: 2,
        model_hash: "00".to_owned(),
        prefix: prefix.to_vec(),
        signflip: "test".to_owned(),
        sites: sites.into_iter().map(Site::name).collect(),
        spec: to_value(engine.spec()).unwrap(),
        top: 3,
    }
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    let one = (prop::collection::vec(0_u32..50, 0..30), any::<bool>());
    prop::collection::vec(one, 1..9).prop_map(|all| {
        let mut documents: Vec<Document> =
            all.into_iter().map(|(ids, bos)| Document { n_bos: u32::from(bos && ids.len() > 1), ids }).collect();
        // Even the shortest piece of a corpus holds a token that counts.
        documents[0].n_bos = 0;
        documents[0].ids.push(1);
        documents
    })
}

/// A survey of some documents; `stop` ends it after so many requests.
fn survey(
    engine: &Fake,
    settings: &Settings,
    options: &Options,
    documents: &[Document],
    mut stop: Option<usize>,
) -> Result<Survey> {
    let mut left = documents.iter().cloned();
    let mut progress = |_| match &mut stop {
        Some(0) => Err(Error::Interrupted),
        Some(n) => {
            *n -= 1;
            Ok(())
        }
        None => Ok(()),
    };
    run(engine, settings, "fake", options, &mut || Ok(left.next()), &mut progress, None)
}

fn bytes(survey: &Survey) -> Vec<u8> {
    store::to_bytes(survey, None).unwrap()
}

/// One counted value.
struct Value {
    occurrence: Occurrence,
    /// Whether the gate beside it is open.
    acts: bool,
    unit: usize,
    sampled: bool,
}

/// What a site should hold: values a feature, and tokens apart (sinks, BOS, prefix).
fn expected(engine: &Fake, settings: &Settings, documents: &[Document], site: Site) -> (Vec<Vec<Value>>, [u64; 3]) {
    let mut values: Vec<Vec<Value>> = (0..site.width(engine.spec(), 0)).map(|_| Vec::new()).collect();
    let mut apart = [0; 3];
    let (mut unit, piece) = (0, settings.context - settings.prefix.len());
    for document in documents {
        let hash = DocumentHash::of(&document.ids);
        for (index, part) in document.ids.chunks(piece).enumerate() {
            let path = |i: usize| [&settings.prefix[..], &part[..=i]].concat();
            let enters = match site.point {
                Point::Normalized => Site { layer: 1, point: Point::ResidPost },
                _ => Site { layer: site.layer, point: Point::ResidPre },
            };
            let norm =
                |i: usize| engine.row(enters, &path(i)).iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let bos = if index == 0 { (document.n_bos as usize).min(part.len()) } else { 0 };
            let mut norms: Vec<f64> = (bos..part.len()).map(norm).collect();
            norms.sort_by(f64::total_cmp);
            let n = norms.len();
            let median = if n == 0 { 0.0 } else { f64::midpoint(norms[(n - 1) / 2], norms[n / 2]) };
            apart[1] += bos as u64;
            apart[2] += settings.prefix.len() as u64;
            for i in bos..part.len() {
                if site.point != Point::Embed && norm(i) > 10.0 * median {
                    apart[0] += 1;
                    continue;
                }
                let gate = engine.row(Site { point: Point::Pre, ..site }, &path(i));
                for (j, &value) in engine.row(site, &path(i)).iter().enumerate() {
                    let acts = site.point == Point::PreLinear && gate[j] > 0.0;
                    let position = (index * piece + i) as u32;
                    let occurrence = Occurrence { value: value + 0.0, position, document: hash };
                    let sampled = hash.sampled(index as u32, settings.histogram_every);
                    values[j].push(Value { occurrence, acts, unit, sampled });
                }
            }
            unit += 1;
        }
    }
    (values, apart)
}

fn agrees(survey: &Survey, engine: &Fake, documents: &[Document]) {
    let parsed: Vec<Site> =
        survey.settings.sites.iter().map(|name| Site::parse(name, engine.spec()).unwrap()).collect();
    for (stats, &site) in survey.sites.iter().zip(&parsed) {
        let (values, apart) = expected(engine, &survey.settings, documents, site);
        let tally = stats.tally;
        assert_eq!([tally.n_sink, tally.n_bos, tally.n_prefix], apart, "{}", stats.name);
        assert_eq!(tally.n_tokens, values[0].len() as u64);
        let moments: Vec<(f64, f64)> = stats.moments().collect();
        for (j, (feature, histogram)) in stats.features().zip(stats.histograms()).enumerate() {
            let all: Vec<f64> = values[j].iter().map(|v| f64::from(v.occurrence.value)).collect();
            let units = |sign: f64| {
                let mut units: Vec<usize> =
                    values[j].iter().filter(|v| sign * f64::from(v.occurrence.value) > 0.0).map(|v| v.unit).collect();
                units.dedup();
                units.len() as u64
            };
            assert_eq!(feature.positive, all.iter().filter(|&&x| x > 0.0).count() as u64);
            assert_eq!(feature.negative, all.iter().filter(|&&x| x < 0.0).count() as u64);
            assert_eq!((feature.units_positive, feature.units_negative), (units(1.0), units(-1.0)));
            assert_eq!(f64::from(feature.min), all.iter().copied().fold(f64::INFINITY, f64::min));
            assert_eq!(f64::from(feature.max), all.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            let acting = || values[j].iter().filter(|v| v.acts).map(|v| v.occurrence.value);
            assert_eq!(feature.acting_min, acting().fold(f32::INFINITY, f32::min));
            assert_eq!(feature.acting_max, acting().fold(f32::NEG_INFINITY, f32::max));
            if !all.is_empty() {
                let n = all.len() as f64;
                let mean = all.iter().sum::<f64>() / n;
                let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let scale = all.iter().map(|x| x.abs()).fold(0.0, f64::max);
                assert!((moments[j].0 - mean).abs() <= 1e-13 * scale);
                assert!((moments[j].1 - variance).abs() <= 1e-13 * scale * scale);
            }
            for end in [End::Top, End::Bottom] {
                let mut occurrences: Vec<Occurrence> = values[j].iter().map(|v| v.occurrence).collect();
                occurrences.sort_by(|a, b| end.order(a, b));
                occurrences.truncate(survey.settings.top);
                assert_eq!(stats.extremes(end, j), occurrences);
            }
            let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
            for value in values[j].iter().filter(|v| v.sampled) {
                *counts.entry(histogram::bucket(value.occurrence.value)).or_default() += 1;
            }
            assert_eq!(histogram.entries().collect::<Vec<_>>(), counts.into_iter().collect::<Vec<_>>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn numbers_are_those_of_a_plain_recomputation(documents in documents(), piece in 1_usize..20, n_prefix in 0_usize..3) {
        let engine = Fake::new(2);
        let settings = settings(&engine, piece + n_prefix, &[7, 8][..n_prefix]);
        let found = survey(&engine, &settings, &Options::default(), &documents, None).unwrap();
        agrees(&found, &engine, &documents);
        let (again, progress) = store::from_bytes(&bytes(&found)).unwrap();
        prop_assert!(progress.is_none());
        prop_assert_eq!(bytes(&again), bytes(&found));
    }

    #[test]
    fn batches_threads_shards_and_interruptions_do_not_show(
        documents in documents(),
        piece in 1_usize..20,
        batch in 1_usize..60,
        threads in 1_usize..4,
        cuts in prop::collection::vec(0_usize..9, 2),
        stop in 0_usize..6,
        max_tokens in prop::option::of(1_u64..80),
    ) {
        let engine = Fake::new(2);
        let settings = settings(&engine, piece + 1, &[9]);
        let whole = bytes(&survey(&engine, &settings, &Options::default(), &documents, None).unwrap());

        let other = Fake::new(threads);
        let options = Options { batch_tokens: batch, ..Options::default() };
        prop_assert_eq!(&bytes(&survey(&other, &settings, &options, &documents, None).unwrap()), &whole);

        // Three shards, merged in every order and grouping.
        let (low, high) = (cuts[0].min(cuts[1]).min(documents.len()), cuts[0].max(cuts[1]).min(documents.len()));
        let shards: Vec<Survey> = [&documents[..low], &documents[low..high], &documents[high..]]
            .into_iter()
            .map(|shard| {
                if let Ok(survey) = survey(&engine, &settings, &options, shard, None) {
                    return survey;
                }
                // A shard without tokens is an error of its own; it adds nothing but its empty documents.
                let parsed: Vec<Site> =
                    settings.sites.iter().map(|name| Site::parse(name, engine.spec()).unwrap()).collect();
                let mut none = Survey::new(&engine, &parsed, settings.clone(), "fake", None).unwrap();
                none.corpus.n_empty = shard.len() as u64;
                none
            })
            .collect();
        for [a, b, c] in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut left = shards[a].clone();
            left.merge(&shards[b]).unwrap();
            left.merge(&shards[c]).unwrap();
            let mut right = shards[b].clone();
            right.merge(&shards[c]).unwrap();
            let mut outer = shards[a].clone();
            outer.merge(&right).unwrap();
            prop_assert_eq!(&bytes(&left), &whole);
            prop_assert_eq!(&bytes(&outer), &whole);
        }

        // Cut off after some requests, and resumed.
        let folder = tempfile();
        let out = folder.join("a.survey");
        let options =
            Options { out: Some(out.clone()), batch_tokens: batch, checkpoint: Duration::ZERO, max_tokens };
        let limited = Options { out: None, ..options.clone() };
        let limited = bytes(&survey(&engine, &settings, &limited, &documents, None).unwrap());
        let cut = survey(&engine, &settings, &options, &documents, Some(stop));
        prop_assert_eq!(cut.is_err(), !out.exists());
        let options = Options { batch_tokens: 17, ..options };
        survey(&other, &settings, &options, &documents, None).unwrap();
        prop_assert_eq!(&std::fs::read(&out).unwrap(), &limited);
        prop_assert!(!partial_path(&out).exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn tempfile() -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("signflip-survey-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn some_documents() -> Vec<Document> {
    (0..6).map(|i| Document { ids: (0..20 + i).map(|t| (t * 7 + i) % 50).collect(), n_bos: 0 }).collect()
}

fn message<T>(result: Result<T>) -> String {
    result.err().map(|error| format!("{}: {error}", error.class())).unwrap_or_default()
}

#[test]
fn infinite_values_name_their_feature() {
    let mut engine = Fake::new(2);
    engine.poison = Some(3);
    let settings = settings(&engine, 32, &[]);
    let document = Document { ids: vec![1, 2, 3], n_bos: 0 };
    let found = message(survey(&engine, &settings, &Options::default(), &[document], None));
    assert!(found.starts_with("SurveyError") && found.contains("blocks.0.mlp.hook_pre feature 69"), "{found}");
}

#[test]
fn an_empty_corpus_and_a_full_context_are_refused() {
    let engine = Fake::new(1);
    let empty = vec![Document::default(); 3];
    let found = message(survey(&engine, &settings(&engine, 32, &[]), &Options::default(), &empty, None));
    assert!(found.contains("empty"), "{found}");
    for context in [1, 65] {
        let settings = Settings { context, prefix: vec![1], ..settings(&engine, 32, &[]) };
        let found = message(survey(&engine, &settings, &Options::default(), &some_documents(), None));
        assert!(found.starts_with("ArgumentError: context"), "{found}");
    }
}

#[test]
fn surveys_made_otherwise_neither_merge_nor_resume() {
    let engine = Fake::new(1);
    let here = settings(&engine, 32, &[]);
    let there = Settings { context: 16, ..here.clone() };
    let mut a = survey(&engine, &here, &Options::default(), &some_documents(), None).unwrap();
    let b = survey(&engine, &there, &Options::default(), &some_documents(), None).unwrap();
    assert_eq!(message(a.merge(&b)), "SurveyError: survey: cannot merge surveys that differ in context (32 and 16)");

    let folder = tempfile();
    let options = Options {
        out: Some(folder.join("x.survey")),
        batch_tokens: 8,
        checkpoint: Duration::ZERO,
        ..Options::default()
    };
    assert!(matches!(survey(&engine, &here, &options, &some_documents(), Some(3)), Err(Error::Interrupted)));
    let found = message(survey(&engine, &there, &options, &some_documents(), None));
    assert!(found.contains("differ in context (32 and 16)"), "{found}");
    let mut others = some_documents();
    others[0].ids[0] += 1;
    let found = message(survey(&engine, &here, &options, &others, None));
    assert!(found.contains("not those of this corpus"), "{found}");
    let found = message(survey(&engine, &here, &options, &some_documents()[..1], None));
    assert!(found.contains("not those of this corpus"), "{found}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_unwritable_file_is_found_out_first() {
    let engine = Fake::new(1);
    let options = Options { out: Some("/nonexistent-folder/x.survey".into()), ..Options::default() };
    let mut untouched = || -> Result<Option<Document>> { unreachable!("nothing may be read before the probe") };
    let settings = settings(&engine, 32, &[]);
    let found = message(run(&engine, &settings, "fake", &options, &mut untouched, &mut |_| Ok(()), None));
    assert!(found.starts_with("FileError") && found.contains("x.survey"), "{found}");
}

#[test]
fn unknown_sites_name_the_nearest() {
    let engine = Fake::new(1);
    let find = |name: &str| message(sites(Some(&[name.to_owned()]), &engine));
    assert!(find("mlp.hook_prelinear").contains("blocks.0.mlp.hook_pre"), "{}", find("mlp.hook_prelinear"));
    assert!(find("blocks.2.mlp.hook_pre").starts_with("SiteError"));
    assert!(find("attn.hook_pattern").contains("no fixed number"));
    assert!(message(sites(Some(&[]), &engine)).starts_with("ArgumentError"));
    assert_eq!(sites(None, &engine).unwrap().len(), 6);
}

proptest! {
    /// Whatever happens to a file, reading it gives a survey or an error.
    #[test]
    fn damaged_files_are_refused_or_read(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<bool>()) {
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let engine = Fake::new(1);
            bytes(&survey(&engine, &settings(&engine, 8, &[]), &Options::default(), &some_documents(), None).unwrap())
        });
        let mut damaged = GOOD.clone();
        let at = at.index(damaged.len());
        if cut {
            damaged.truncate(at);
            prop_assert!(store::from_bytes(&damaged).is_err());
        } else {
            damaged[at] = value;
            let _ = store::from_bytes(&damaged);
        }
    }
}
