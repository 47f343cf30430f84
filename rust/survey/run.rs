//! The pass over a corpus.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::document::{Document, DocumentHash};
use super::observe::{Observer, Unit};
use super::settings::{Corpus, MAX_DOCUMENTS, Progress, Settings};
use super::store::{self, Survey};
use crate::backend::Check;
use crate::engine::request::{Context, Engine, Parent, Request, Segment};
use crate::engine::site::{Point, Site};
use crate::error::{Error, Result};

/// Hands out documents in corpus order.
pub type Source<'a> = dyn FnMut() -> Result<Option<Document>> + 'a;

/// What a survey is told besides its settings. Nothing here changes the result, but for `max_tokens`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the survey is written; its unfinished state lies beside it, under the same name and `.partial`.
    pub out: Option<PathBuf>,
    /// Stop after so many tokens of documents; the last document is cut there.
    pub max_tokens: Option<u64>,
    /// Tokens a request, at least one context.
    pub batch_tokens: usize,
    /// Shortest time between two writings of the unfinished state.
    pub checkpoint: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { out: None, max_tokens: None, batch_tokens: 1024, checkpoint: Duration::from_secs(20) }
    }
}

/// The sites of a list of names: full names, or names within a block (`mlp.hook_post`) for all layers; the MLP's
/// where the list is `None`. In forward order, each once.
pub fn sites(names: Option<&[String]>, engine: &dyn Engine) -> Result<Vec<Site>> {
    let spec = engine.spec();
    let all = Site::all(spec);
    let Some(names) = names else {
        let default = [Point::Pre, Point::PreLinear, Point::Post];
        return Ok(all.into_iter().filter(|site| default.contains(&site.point)).collect());
    };
    let mut chosen = Vec::new();
    for name in names {
        let in_block = |site: &Site| {
            let full = site.name();
            full.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')).is_some_and(|(_, short)| short == name)
        };
        let within: Vec<Site> = all.iter().copied().filter(in_block).collect();
        if within.is_empty() {
            chosen.push(Site::parse(name, spec)?);
        } else {
            chosen.extend(within);
        }
    }
    if let Some(site) = chosen.iter().find(|site| site.point == Point::Pattern) {
        return Err(Error::Site {
            name: site.name(),
            what: "attention patterns have no fixed number of features, and cannot be surveyed".to_owned(),
        });
    }
    if chosen.is_empty() {
        return Err(Error::argument("sites", "at least one site", "none"));
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Surveys a corpus.
///
/// With [`Options::out`], state is kept beside it as the pass goes on; a call with the same arguments then continues
/// where an earlier one was cut off, and its file is the same, to the byte, as that of one uninterrupted call.
/// `progress` is told the tokens done so far after every request, and may end the survey with an error.
pub fn run(
    engine: &dyn Engine,
    settings: &Settings,
    model_name: &str,
    options: &Options,
    source: &mut Source<'_>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
    check: Check<'_>,
) -> Result<Survey> {
    let piece = piece_length(settings, engine)?;
    let sites = settings.sites.iter().map(|name| Site::parse(name, engine.spec())).collect::<Result<Vec<_>>>()?;
    let mut reader = Reader::new(source, piece, options.max_tokens);
    let partial = options.out.as_deref().map(partial_path);
    if let Some(out) = &options.out {
        store::probe(out)?;
    }
    let mut survey = match partial.as_deref().filter(|partial| partial.exists()) {
        Some(partial) => resume(partial, settings, model_name, &mut reader, options)?,
        None => Survey::new(engine, &sites, settings.clone(), model_name, check)?,
    };
    progress(reader.corpus.n_tokens)?;
    let mut saved = Instant::now();
    let mut pause = options.checkpoint;
    loop {
        let units = reader.batch(options.batch_tokens)?;
        if units.is_empty() {
            break;
        }
        let request = request(&settings.prefix, &units);
        let mut observer = Observer::new(&sites, &mut survey.sites, &units, settings, engine);
        engine.run(&request, &mut Context { check, host: Some(&mut observer) })?;
        observer.finish()?;
        survey.corpus = reader.corpus;
        progress(reader.corpus.n_tokens)?;
        if let Some(partial) = &partial
            && saved.elapsed() >= pause
        {
            let start = Instant::now();
            store::save(&survey, Some(&reader.progress()), partial)?;
            // Writing takes at most about a thirtieth of the time.
            pause = options.checkpoint.max(if options.checkpoint.is_zero() {
                Duration::ZERO
            } else {
                start.elapsed() * 30
            });
            saved = Instant::now();
        }
    }
    survey.corpus = reader.corpus;
    if survey.sites.iter().all(|site| site.tally.n_tokens == 0) {
        let Corpus { n_documents, n_empty, n_tokens, .. } = survey.corpus;
        return Err(Error::Survey(format!(
            "the corpus is empty: expected at least one token to count, found {} documents, {n_empty} of them without \
             tokens, and {n_tokens} tokens that do not count",
            n_documents + n_empty
        )));
    }
    if let (Some(out), Some(partial)) = (&options.out, &partial) {
        store::save(&survey, None, out)?;
        match std::fs::remove_file(partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(partial, error)),
            _ => {}
        }
    }
    Ok(survey)
}

/// Where the unfinished state of a survey lies.
pub fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn piece_length(settings: &Settings, engine: &dyn Engine) -> Result<usize> {
    let (prefix, spec) = (settings.prefix.len(), engine.spec());
    if settings.context <= prefix {
        let expected = format!("more tokens than the prefix's {prefix}");
        return Err(Error::argument("context", expected, settings.context));
    }
    if settings.context > spec.n_ctx {
        return Err(Error::argument("context", format!("at most the model's {}", spec.n_ctx), settings.context));
    }
    if settings.histogram_every == 0 {
        return Err(Error::argument("histogram_every", "at least 1", 0));
    }
    Ok(settings.context - prefix)
}

/// One segment a context; a prefix is one segment that all of them continue.
fn request(prefix: &[u32], units: &[Unit]) -> Request {
    let mut segments = Vec::with_capacity(units.len() + 1);
    let mut parent = Parent::Root;
    if !prefix.is_empty() {
        segments.push(Segment { parent, tokens: prefix.to_vec() });
        parent = Parent::Segment { index: 0, keep: prefix.len() };
    }
    segments.extend(units.iter().map(|unit| Segment { parent, tokens: unit.tokens.clone() }));
    Request { segments, ..Request::default() }
}

/// Takes up an unfinished survey: its settings and the documents it has seen must be those of this call.
fn resume(
    partial: &Path,
    settings: &Settings,
    model_name: &str,
    reader: &mut Reader<'_, '_>,
    options: &Options,
) -> Result<Survey> {
    let (survey, progress) = store::open(partial)?;
    let other = |what: String| {
        Error::Survey(format!(
            "{} is the unfinished state of another survey: {what}; give the arguments it was started with, or delete it",
            partial.display()
        ))
    };
    let Some(progress) = progress else {
        return Err(other("it is a finished one".to_owned()));
    };
    if let Some(difference) = survey.settings.difference(settings)? {
        return Err(other(format!("they differ in {difference}")));
    }
    if progress.max_tokens != options.max_tokens {
        return Err(other(format!("max_tokens was {:?}, and is {:?}", progress.max_tokens, options.max_tokens)));
    }
    if !reader.skip(&progress)? || reader.corpus != survey.corpus {
        return Err(other("its documents are not those of this corpus".to_owned()));
    }
    Ok(Survey { model_name: model_name.to_owned(), ..survey })
}

/// Cuts documents into units and keeps count of them.
struct Reader<'a, 'b> {
    source: &'a mut Source<'b>,
    piece: usize,
    max_tokens: Option<u64>,
    /// Tokens of documents begun so far.
    begun: u64,
    corpus: Corpus,
    chain: DocumentHash,
    documents: u64,
    /// The document in progress, its hash, and how many of its units are handed out.
    current: Option<(Document, DocumentHash, usize)>,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn new(source: &'a mut Source<'b>, piece: usize, max_tokens: Option<u64>) -> Self {
        let (corpus, chain) = (Corpus::default(), DocumentHash::default());
        Self { source, piece, max_tokens, begun: 0, corpus, chain, documents: 0, current: None }
    }

    /// Begins the next document; `false` at the end of the corpus.
    fn begin(&mut self) -> Result<bool> {
        let left = self.max_tokens.map(|limit| limit.saturating_sub(self.begun));
        if left == Some(0) {
            return Ok(false);
        }
        let Some(mut document) = (self.source)()? else {
            return Ok(false);
        };
        if let Some(left) = left {
            document.ids.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let hash = DocumentHash::of(&document.ids);
        self.chain = self.chain.then(hash);
        self.documents += 1;
        self.begun += document.ids.len() as u64;
        if u32::try_from(document.ids.len()).is_err() {
            let found = document.ids.len();
            return Err(Error::Survey(format!("expected at most {} tokens a document, found {found}", u32::MAX)));
        }
        if document.ids.is_empty() {
            self.corpus.n_empty += 1;
        } else {
            self.current = Some((document, hash, 0));
        }
        Ok(true)
    }

    fn next(&mut self) -> Result<Option<Unit>> {
        while self.current.is_none() {
            if !self.begin()? {
                return Ok(None);
            }
        }
        let Some((document, hash, index)) = &mut self.current else {
            return Ok(None);
        };
        let start = *index * self.piece;
        let end = document.ids.len().min(start + self.piece);
        let unit = Unit {
            document: *hash,
            index: *index as u32,
            start: start as u32,
            n_bos: (document.n_bos as usize).saturating_sub(start).min(end - start) as u32,
            tokens: document.ids[start..end].to_vec(),
            last: end == document.ids.len(),
        };
        *index += 1;
        self.corpus.n_units += 1;
        self.corpus.n_tokens += unit.tokens.len() as u64;
        if unit.last {
            self.corpus.hash = self.corpus.hash.plus(unit.document);
            self.corpus.n_documents += 1;
            if self.corpus.n_documents > MAX_DOCUMENTS {
                return Err(Error::Survey(format!("expected at most {MAX_DOCUMENTS} documents, found more")));
            }
            self.current = None;
        }
        Ok(Some(unit))
    }

    fn batch(&mut self, tokens: usize) -> Result<Vec<Unit>> {
        let (mut units, mut found) = (Vec::new(), 0);
        while found < tokens.max(1) {
            let Some(unit) = self.next()? else {
                break;
            };
            found += unit.tokens.len();
            units.push(unit);
        }
        Ok(units)
    }

    fn progress(&self) -> Progress {
        let units = self.current.as_ref().map_or(0, |(_, _, index)| *index as u32);
        Progress { chain: self.chain.hex(), documents: self.documents, max_tokens: self.max_tokens, units }
    }

    /// Passes over what is counted already; `false` if the corpus is not the one it was counted from.
    fn skip(&mut self, to: &Progress) -> Result<bool> {
        while self.documents < to.documents {
            while self.current.is_some() {
                self.next()?;
            }
            if !self.begin()? {
                return Ok(false);
            }
        }
        let units = if to.units == 0 { u32::MAX } else { to.units };
        for _ in 0..units {
            if self.current.is_none() {
                break;
            }
            self.next()?;
        }
        Ok(self.chain.hex() == to.chain && self.progress().units == to.units)
    }
}
