//! A search's state on disk: written beside, then renamed, so that a kill leaves the last whole one. The first line names
//! the format and the digest of what follows, so that a changed file is not gone on from.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ledger::{Record, Work};
use super::run::{Entry, Run, Settings};
use crate::engine::request::Context;
use crate::error::{Error, Result};

const FORMAT: &str = "signflip search checkpoint 2";

/// The file's second line. Floats are written as their bits.
#[derive(Serialize, Deserialize)]
struct State {
    identity: String,
    step: u32,
    unchanged: u32,
    slots: Vec<(usize, u64)>,
    proposed: Vec<(usize, u64)>,
    history: Vec<Entry>,
    work: Work,
    ids: Vec<u32>,
    valid: Vec<Option<bool>>,
    values: Vec<Option<u32>>,
    entropies: Vec<Option<u32>>,
}

/// Keeps a search's state now and then.
pub(super) struct Checkpoint {
    path: Option<PathBuf>,
    identity: String,
    every: f64,
    last: Instant,
}

impl Checkpoint {
    /// Where the settings say; nowhere, if they do not.
    pub fn new(settings: &Settings) -> Self {
        let (path, identity) = (settings.checkpoint.clone(), settings.identity.clone());
        Self { path, identity, every: settings.checkpoint_every, last: Instant::now() }
    }

    /// Takes up a state kept before. `false` if there is none.
    pub fn take_up(&mut self, run: &mut Run<'_>, context: &mut Context<'_>) -> Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(path, error)),
        };
        let broken = |what: &str| {
            let path = path.display();
            Error::Search(format!("{path} is not a checkpoint that this search can go on from: {what}"))
        };
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
        let (first, body) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
        if !first.starts_with(FORMAT.as_bytes()) {
            return Err(broken(&format!("expected a first line that begins with {FORMAT:?}")));
        }
        if first != head(body).as_bytes() {
            return Err(broken("it was changed after it was written: its content does not have its digest"));
        }
        let state: State = serde_json::from_slice(body).map_err(|error| broken(&error.to_string()))?;
        if state.identity != self.identity {
            return Err(broken("it is of a search with other settings (remove it, or name another file)"));
        }
        let (n, contexts, count) = (run.settings.tokens, run.ledger.prompts.len(), state.valid.len());
        let of = |bits: &Option<u32>| bits.map(f32::from_bits);
        let fits = state.ids.len() == count * n
            && state.values.len() == count * contexts
            && state.entropies.len() == count * contexts
            && state.slots.len() == run.penalties().len()
            && state.slots.iter().all(|&(at, _)| at < count)
            && state.history.iter().all(|entry| entry.members.iter().all(|&at| at < count));
        if !fits {
            return Err(broken("its parts do not fit together"));
        }
        let record = |i: usize| Record {
            ids: state.ids[i * n..(i + 1) * n].to_vec(),
            valid: state.valid[i],
            values: state.values[i * contexts..(i + 1) * contexts].iter().map(of).collect(),
            entropies: state.entropies[i * contexts..(i + 1) * contexts].iter().map(of).collect(),
        };
        run.ledger.restore((0..count).map(record).collect());
        if run.ledger.records.len() != count {
            return Err(broken("it holds a prompt twice"));
        }
        run.step = state.step;
        run.unchanged = state.unchanged;
        run.slots = state.slots.iter().map(|&(at, bits)| (at, f64::from_bits(bits))).collect();
        run.history = state.history;
        // Proposals are computed again rather than kept; as work they were counted before.
        let kept = |&&(at, penalty): &&(usize, f64)| state.proposed.contains(&(at, penalty.to_bits()));
        let members: Vec<(usize, f64)> = run.slots.iter().filter(kept).copied().collect();
        run.proposals.of(&mut run.ledger, &members, context)?;
        run.ledger.work = state.work;
        Ok(true)
    }

    /// Keeps the state, if it is time.
    pub fn keep(&mut self, run: &Run<'_>, now: bool) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if !now && self.last.elapsed().as_secs_f64() < self.every {
            return Ok(());
        }
        let bits = |value: &Option<f32>| value.map(f32::to_bits);
        let records = &run.ledger.records;
        let state = State {
            identity: self.identity.clone(),
            step: run.step,
            unchanged: run.unchanged,
            slots: run.slots.iter().map(|&(at, penalty)| (at, penalty.to_bits())).collect(),
            proposed: run.proposals.in_hand(),
            history: run.history.clone(),
            work: run.ledger.work,
            ids: records.iter().flat_map(|record| record.ids.iter().copied()).collect(),
            valid: records.iter().map(|record| record.valid).collect(),
            values: records.iter().flat_map(|record| record.values.iter().map(bits)).collect(),
            entropies: records.iter().flat_map(|record| record.entropies.iter().map(bits)).collect(),
        };
        let body = serde_json::to_vec(&state).map_err(|error| Error::Internal(error.to_string()))?;
        write_atomically(path, &[head(&body).as_bytes(), b"\n", &body])?;
        self.last = Instant::now();
        Ok(())
    }
}

/// The first line for a body.
fn head(body: &[u8]) -> String {
    format!("{FORMAT} {:x}", Sha256::digest(body))
}

/// Writes a file beside its place and renames it there.
fn write_atomically(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&beside)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| Error::io(path, error))
}
