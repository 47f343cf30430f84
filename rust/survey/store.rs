//! A survey, and the file it is kept in: safetensors, with one canonical JSON text as metadata.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::document::DocumentHash;
use super::fixed::Fixed;
use super::histogram::Histogram;
use super::reach::Reach;
use super::settings::{Corpus, FORMAT, Progress, Settings, canonical, to_value};
use super::stats::{Feature, SiteStats, Tally};
use super::topk::{End, Occurrence};
use super::validate;
use crate::backend::Check;
use crate::engine::request::Engine;
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};

/// The metadata's one key.
const KEY: &str = "signflip.survey";

/// Statistics of a corpus.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What it rests on.
    pub settings: Settings,
    /// What the model was called (not part of what must be equal: the hash is).
    pub model_name: String,
    /// What was read.
    pub corpus: Corpus,
    /// One entry a site, in forward order.
    pub sites: Vec<SiteStats>,
}

impl Survey {
    /// Of nothing; `sites` are those that `settings` names.
    pub fn new(
        engine: &dyn Engine,
        sites: &[Site],
        settings: Settings,
        model_name: &str,
        check: Check<'_>,
    ) -> Result<Self> {
        let mut reach = Reach::new(engine, check);
        let mut stats = Vec::with_capacity(sites.len());
        for &site in sites {
            let mut one = SiteStats::new(site.name(), site.width(engine.spec(), 0), settings.top, gated(site));
            one.reach = reach.of(site)?;
            stats.push(one);
        }
        Ok(Self { settings, model_name: model_name.to_owned(), corpus: Corpus::default(), sites: stats })
    }

    /// Takes in another survey, which must have been made in the same way. Associative and commutative, to the bit.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if let Some(difference) = self.settings.difference(&other.settings)? {
            return Err(Error::Survey(format!("cannot merge surveys that differ in {difference}")));
        }
        self.corpus.merge(&other.corpus)?;
        if other.model_name < self.model_name {
            self.model_name.clone_from(&other.model_name);
        }
        for (mine, others) in self.sites.iter_mut().zip(&other.sites) {
            mine.merge(others);
        }
        Ok(())
    }

    /// The canonical JSON text that the file carries.
    pub fn metadata(&self, progress: Option<&Progress>) -> Result<String> {
        let sites = self.sites.iter().map(|site| (site.name.clone(), SiteMeta::of(site))).collect();
        let meta = Meta {
            corpus: CorpusMeta {
                hash: self.corpus.hash.hex(),
                n_documents: self.corpus.n_documents,
                n_empty: self.corpus.n_empty,
                n_tokens: self.corpus.n_tokens,
                n_units: self.corpus.n_units,
            },
            model_name: self.model_name.clone(),
            progress: progress.cloned(),
            settings: self.settings.clone(),
            sites,
        };
        Ok(canonical(&to_value(&meta)?))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    corpus: CorpusMeta,
    model_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    settings: Settings,
    sites: BTreeMap<String, SiteMeta>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CorpusMeta {
    hash: String,
    n_documents: u64,
    n_empty: u64,
    n_tokens: u64,
    n_units: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteMeta {
    gated: bool,
    n_bos: u64,
    n_histogram: u64,
    n_prefix: u64,
    n_sink: u64,
    n_tokens: u64,
    n_units: u64,
    reach: bool,
    width: usize,
}

impl SiteMeta {
    fn of(site: &SiteStats) -> Self {
        let Tally { n_tokens, n_units, n_sink, n_bos, n_prefix, n_histogram } = site.tally;
        let (reach, gated, width) = (site.reach.is_some(), site.gated, site.width);
        Self { gated, n_bos, n_histogram, n_prefix, n_sink, n_tokens, n_units, reach, width }
    }

    fn tally(&self) -> Tally {
        Tally {
            n_tokens: self.n_tokens,
            n_units: self.n_units,
            n_sink: self.n_sink,
            n_bos: self.n_bos,
            n_prefix: self.n_prefix,
            n_histogram: self.n_histogram,
        }
    }
}

/// A tensor to be written.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Numbers as they lie in the file.
trait Element: Sized + Copy {
    const DTYPE: Dtype;
    const SIZE: usize;
    fn put(self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Option<Self>;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            const SIZE: usize = size_of::<$type>();
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_le_bytes)
            }
        }
    )*};
}
element!(u8 => U8, u16 => U16, u32 => U32, u64 => U64, f32 => F32, f64 => F64);

fn tensor<T: Element>(name: String, shape: Vec<usize>, values: impl Iterator<Item = T>) -> Tensor {
    let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * T::SIZE);
    for value in values {
        value.put(&mut bytes);
    }
    Tensor { name, dtype: T::DTYPE, shape, bytes }
}

/// The survey as the bytes of a file.
pub fn to_bytes(survey: &Survey, progress: Option<&Progress>) -> Result<Vec<u8>> {
    let documents = referenced(survey);
    let index: HashMap<DocumentHash, u32> =
        documents.iter().enumerate().map(|(i, &document)| (document, i as u32)).collect();
    let mut tensors =
        vec![tensor("documents".to_owned(), vec![documents.len(), 16], documents.iter().flat_map(|d| d.0))];
    for site in &survey.sites {
        write_site(site, progress.is_some(), survey.settings.top, &index, &mut tensors);
    }
    let metadata = HashMap::from([(KEY.to_owned(), survey.metadata(progress)?)]);
    let internal = |error| Error::Internal(format!("cannot write a survey: {error}"));
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).map_err(internal)?;
        views.push((tensor.name.as_str(), view));
    }
    safetensors::serialize(views, Some(metadata)).map_err(internal)
}

/// The documents that an occurrence names, in order of their hashes.
fn referenced(survey: &Survey) -> Vec<DocumentHash> {
    let mut documents: Vec<DocumentHash> = survey
        .sites
        .iter()
        .flat_map(|site| (0..site.width).map(move |j| (site, j)))
        .flat_map(|(site, j)| site.extremes(End::Top, j).iter().chain(site.extremes(End::Bottom, j)))
        .map(|occurrence| occurrence.document)
        .collect();
    documents.sort_unstable();
    documents.dedup();
    documents
}

fn write_site(
    site: &SiteStats,
    open: bool,
    top: usize,
    documents: &HashMap<DocumentHash, u32>,
    tensors: &mut Vec<Tensor>,
) {
    let (width, name) = (site.width, |what: &str| format!("{}/{what}", site.name));
    tensors.push(tensor(name("min"), vec![width], site.features().map(|f| f.min)));
    tensors.push(tensor(name("max"), vec![width], site.features().map(|f| f.max)));
    tensors.push(tensor(name("sum"), vec![width, 3], site.features().flat_map(|f| f.sum.0)));
    tensors.push(tensor(name("squares"), vec![width, 3], site.features().flat_map(|f| f.squares.0)));
    tensors.push(tensor(name("positive"), vec![width], site.features().map(|f| f.positive)));
    tensors.push(tensor(name("negative"), vec![width], site.features().map(|f| f.negative)));
    tensors.push(tensor(name("units_positive"), vec![width], site.features().map(|f| f.units_positive)));
    tensors.push(tensor(name("units_negative"), vec![width], site.features().map(|f| f.units_negative)));
    if site.gated {
        tensors.push(tensor(name("acting_min"), vec![width], site.features().map(|f| f.acting_min)));
        tensors.push(tensor(name("acting_max"), vec![width], site.features().map(|f| f.acting_max)));
    }
    let kept = kept(top, site.tally.n_tokens);
    for (end, label) in [(End::Top, "top"), (End::Bottom, "bottom")] {
        let all = || (0..width).flat_map(|j| site.extremes(end, j));
        let shape = || vec![width, kept];
        tensors.push(tensor(name(&format!("{label}_value")), shape(), all().map(|o| o.value)));
        let document = all().map(|o| documents.get(&o.document).copied().unwrap_or(u32::MAX));
        tensors.push(tensor(name(&format!("{label}_document")), shape(), document));
        tensors.push(tensor(name(&format!("{label}_position")), shape(), all().map(|o| o.position)));
    }
    let mut starts = vec![0_u64];
    for histogram in site.histograms() {
        starts.push(starts.last().copied().unwrap_or(0) + histogram.entries().len() as u64);
    }
    let n_entries = starts.last().map_or(0, |&n| n as usize);
    let entries = || site.histograms().flat_map(Histogram::entries);
    tensors.push(tensor(name("histogram_start"), vec![width + 1], starts.into_iter()));
    tensors.push(tensor(name("histogram_bucket"), vec![n_entries], entries().map(|(bucket, _)| bucket)));
    // Which width the counts have depends on them alone, so that the file stays a function of the survey.
    if u32::try_from(site.tally.n_histogram).is_ok() {
        tensors.push(tensor(name("histogram_count"), vec![n_entries], entries().map(|(_, count)| count as u32)));
    } else {
        tensors.push(tensor(name("histogram_count"), vec![n_entries], entries().map(|(_, count)| count)));
    }
    if let Some(reach) = &site.reach {
        tensors.push(tensor(name("reach"), vec![width, 2], reach.iter().flat_map(|&(low, high)| [low, high])));
    }
    if open {
        let sums = site.open_sums().flat_map(|(sum, squares)| [sum, squares]);
        tensors.push(tensor(name("open"), vec![width, 2], sums));
    }
}

/// Occurrences that every feature of a site has at either end.
fn kept(top: usize, n_tokens: u64) -> usize {
    top.min(usize::try_from(n_tokens).unwrap_or(usize::MAX))
}

/// Whether a gate multiplies what a site holds.
fn gated(site: Site) -> bool {
    site.point == Point::PreLinear
}

/// Writes a file that is either the old one or the new one at every moment.
pub fn save(survey: &Survey, progress: Option<&Progress>, path: &Path) -> Result<()> {
    let bytes = to_bytes(survey, progress)?;
    let temporary = beside(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        // The rename itself lasts once the folder is written; not every system can open one.
        if let Ok(folder) = File::open(folder(path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, error)
    })
}

/// Finds out, before anything is computed, whether a file can be written.
pub fn probe(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io(path, std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    let temporary = beside(path);
    File::create(&temporary).and_then(|_| fs::remove_file(&temporary)).map_err(|error| Error::io(path, error))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Reads a survey file, and checks all that it says.
pub fn open(path: &Path) -> Result<(Survey, Option<Progress>)> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    from_bytes(&bytes).map_err(|what| Error::Survey(format!("{}: {what}", path.display())))
}

/// Why a file is not a survey.
type Malformed = String;

/// Reads the bytes of a file.
pub fn from_bytes(bytes: &[u8]) -> Result<(Survey, Option<Progress>), Malformed> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a survey file: {error}"))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("not a survey file: {error}"))?;
    let text = header
        .metadata()
        .as_ref()
        .and_then(|map| map.get(KEY))
        .ok_or_else(|| format!("not a survey file: expected metadata under {KEY:?}, found none"))?;
    let meta: Meta = parse(text)?;
    let settings = meta.settings;
    let corpus = Corpus {
        hash: DocumentHash::from_hex(&meta.corpus.hash).ok_or("the corpus hash is not 32 hexadecimal digits")?,
        n_documents: meta.corpus.n_documents,
        n_empty: meta.corpus.n_empty,
        n_tokens: meta.corpus.n_tokens,
        n_units: meta.corpus.n_units,
    };
    if settings.sites.len() != meta.sites.len() || !settings.sites.iter().all(|name| meta.sites.contains_key(name)) {
        return Err("the list of sites and their statistics differ".to_owned());
    }
    validate::corpus(&corpus, &settings)?;
    let file = Reading { tensors: &tensors };
    let documents = file.documents()?;
    let mut expected = 1;
    let mut sites = Vec::with_capacity(settings.sites.len());
    for name in &settings.sites {
        let site = &meta.sites[name];
        let open = meta.progress.is_some();
        expected += 17 + 2 * usize::from(site.gated) + usize::from(site.reach) + usize::from(open);
        let stats = file.site(name, site, &settings, open, &documents)?;
        validate::site(&stats, &corpus, &settings, open)?;
        sites.push(stats);
    }
    if tensors.len() != expected {
        return Err(format!("expected {expected} tensors, found {}", tensors.len()));
    }
    let survey = Survey { settings, model_name: meta.model_name, corpus, sites };
    if referenced(&survey) != documents {
        return Err("the list of documents is not that of the occurrences".to_owned());
    }
    Ok((survey, meta.progress))
}

fn parse(text: &str) -> Result<Meta, Malformed> {
    let json = |error: serde_json::Error| format!("metadata: {error}");
    let value: serde_json::Value = serde_json::from_str(text).map_err(json)?;
    let format = value.pointer("/settings/format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        let found = format.map_or_else(|| "none".to_owned(), |found| found.to_string());
        return Err(format!("expected format version {FORMAT}, found {found}"));
    }
    serde_json::from_value(value).map_err(json)
}

/// The tensors of a file that is being read.
struct Reading<'a> {
    tensors: &'a SafeTensors<'a>,
}

impl Reading<'_> {
    fn values<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>, Malformed> {
        let view = self.tensors.tensor(name).map_err(|_| format!("tensor {name:?} is missing"))?;
        if view.dtype() != T::DTYPE || view.shape() != shape {
            return Err(format!(
                "tensor {name:?}: expected {:?} {shape:?}, found {:?} {:?}",
                T::DTYPE,
                view.dtype(),
                view.shape()
            ));
        }
        Ok(view.data().chunks_exact(T::SIZE).filter_map(T::get).collect())
    }

    fn documents(&self) -> Result<Vec<DocumentHash>, Malformed> {
        let n = self.tensors.tensor("documents").ok().and_then(|view| view.shape().first().copied()).unwrap_or(0);
        let bytes: Vec<u8> = self.values("documents", &[n, 16])?;
        Ok(bytes.chunks_exact(16).filter_map(|chunk| chunk.try_into().ok().map(DocumentHash)).collect())
    }

    fn site(
        &self,
        name: &str,
        meta: &SiteMeta,
        settings: &Settings,
        open: bool,
        documents: &[DocumentHash],
    ) -> Result<SiteStats, Malformed> {
        let (width, full) = (meta.width, |what: &str| format!("{name}/{what}"));
        // Read first: its shape is backed by the file's length, so that a lying width allocates nothing.
        let min: Vec<f32> = self.values(&full("min"), &[width])?;
        let max: Vec<f32> = self.values(&full("max"), &[width])?;
        let sum: Vec<u64> = self.values(&full("sum"), &[width, 3])?;
        let squares: Vec<u64> = self.values(&full("squares"), &[width, 3])?;
        let positive: Vec<u64> = self.values(&full("positive"), &[width])?;
        let negative: Vec<u64> = self.values(&full("negative"), &[width])?;
        let units_positive: Vec<u64> = self.values(&full("units_positive"), &[width])?;
        let units_negative: Vec<u64> = self.values(&full("units_negative"), &[width])?;
        let acting = |what: &str, nowhere: f32| {
            if meta.gated { self.values(&full(what), &[width]) } else { Ok(vec![nowhere; width]) }
        };
        let acting_min = acting("acting_min", Feature::EMPTY.acting_min)?;
        let acting_max = acting("acting_max", Feature::EMPTY.acting_max)?;
        let histograms = self.histograms(name, meta)?;
        let kept = kept(settings.top, meta.n_tokens);
        let top = self.occurrences(name, End::Top, width, kept, documents)?;
        let bottom = self.occurrences(name, End::Bottom, width, kept, documents)?;
        let sums: Vec<f64> = if open { self.values(&full("open"), &[width, 2])? } else { vec![0.0; 2 * width] };
        let mut stats = SiteStats::new(name.to_owned(), width, settings.top, meta.gated);
        stats.tally = meta.tally();
        if meta.reach {
            let reach: Vec<f64> = self.values(&full("reach"), &[width, 2])?;
            stats.reach = Some(reach.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
        }
        let limbs = |all: &[u64], j: usize| Fixed([all[3 * j], all[3 * j + 1], all[3 * j + 2]]);
        for (j, histogram) in histograms.into_iter().enumerate() {
            let feature = Feature {
                min: min[j],
                max: max[j],
                sum: limbs(&sum, j),
                squares: limbs(&squares, j),
                positive: positive[j],
                negative: negative[j],
                units_positive: units_positive[j],
                units_negative: units_negative[j],
                acting_min: acting_min[j],
                acting_max: acting_max[j],
            };
            let of = |all: &'_ [Occurrence], end: End| {
                all[j * kept..(j + 1) * kept].iter().map(move |&occurrence| (end, occurrence)).collect::<Vec<_>>()
            };
            let occurrences = of(&top, End::Top).into_iter().chain(of(&bottom, End::Bottom));
            stats.restore(j, feature, histogram, occurrences, (sums[2 * j], sums[2 * j + 1]));
        }
        Ok(stats)
    }

    fn occurrences(
        &self,
        name: &str,
        end: End,
        width: usize,
        kept: usize,
        documents: &[DocumentHash],
    ) -> Result<Vec<Occurrence>, Malformed> {
        let label = if end == End::Top { "top" } else { "bottom" };
        let full = |what: &str| format!("{name}/{label}_{what}");
        let value: Vec<f32> = self.values(&full("value"), &[width, kept])?;
        let document: Vec<u32> = self.values(&full("document"), &[width, kept])?;
        let position: Vec<u32> = self.values(&full("position"), &[width, kept])?;
        let mut all = Vec::with_capacity(value.len());
        for ((&value, &document), &position) in value.iter().zip(&document).zip(&position) {
            let document = *documents
                .get(document as usize)
                .ok_or_else(|| format!("{}: there is no document {document}", full("document")))?;
            if !value.is_finite() {
                return Err(format!("{}: expected finite values, found {value}", full("value")));
            }
            all.push(Occurrence { value, position, document });
        }
        let sorted = kept == 0
            || all.chunks_exact(kept).all(|one| one.windows(2).all(|pair| end.order(&pair[0], &pair[1]).is_le()));
        if sorted { Ok(all) } else { Err(format!("{} is not in order", full("value"))) }
    }

    fn histograms(&self, name: &str, meta: &SiteMeta) -> Result<Vec<Histogram>, Malformed> {
        let full = |what: &str| format!("{name}/histogram_{what}");
        let width = meta.width.checked_add(1).ok_or("a site's width is too large")?;
        let starts: Vec<u64> = self.values(&full("start"), &[width])?;
        let n = usize::try_from(starts.last().copied().unwrap_or(0)).map_err(|_| "a histogram is too long")?;
        let buckets: Vec<u16> = self.values(&full("bucket"), &[n])?;
        let counts: Vec<u64> = if u32::try_from(meta.n_histogram).is_ok() {
            self.values::<u32>(&full("count"), &[n])?.into_iter().map(u64::from).collect()
        } else {
            self.values(&full("count"), &[n])?
        };
        if starts.first() != Some(&0) {
            return Err(format!("{} does not begin at 0", full("start")));
        }
        starts
            .windows(2)
            .map(|pair| {
                let range = pair[0] as usize..pair[1] as usize;
                let part = buckets.get(range.clone()).zip(counts.get(range));
                part.and_then(|(buckets, counts)| Histogram::from_parts(buckets, counts))
                    .ok_or_else(|| format!("{} is not a list of histograms", full("start")))
            })
            .collect()
    }
}
