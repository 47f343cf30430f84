//! One file a family: from `config.json` and tensor names to a [`ModelSpec`](super::spec::ModelSpec) and host weights.

mod base;
mod gpt2;
mod llama;
mod rotary;

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::config::{Config, short};
use super::safetensors::Folder;
use super::source::{TensorSource, Weights};
use super::spec::{Activation, Head};
use super::weights::Checkpoint;
use crate::error::{Error, Result};

/// An opened checkpoint that threads may share.
pub type Opened = Box<dyn Checkpoint + Send + Sync>;

/// What a family's architectures begin with, and the function that opens it.
struct Family {
    model_type: &'static str,
    stem: &'static str,
    language_model: &'static str,
    open: fn(&Config<'_>, Top, Weights) -> Result<Opened>,
}

const FAMILIES: [Family; 2] = [
    Family { model_type: "gpt2", stem: "GPT2", language_model: "GPT2LMHeadModel", open: gpt2::open },
    Family { model_type: "llama", stem: "Llama", language_model: "LlamaForCausalLM", open: llama::open },
];

/// What the config puts on top of the base model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Top {
    Unembed,
    Reward,
}

/// Opens a checkpoint from its config and its tensors.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture or option that the engine does not build, [`Error::Checkpoint`] for a
/// config or tensors that cannot be.
pub fn open(config: &Value, tensors: Box<dyn TensorSource>) -> Result<Opened> {
    let config = Config::new(config)?;
    let supported = || {
        let of = |f: &Family| format!("{} ({}, {}ForSequenceClassification)", f.model_type, f.language_model, f.stem);
        FAMILIES.iter().map(of).collect::<Vec<_>>().join("; ")
    };
    let unsupported = |found: String| Error::Unsupported { what: format!("{found}; supported: {}", supported()) };

    let model_type = config.word("model_type")?;
    let architecture = match config.get("architectures") {
        None => None,
        Some(Value::Array(names)) if names.is_empty() => None,
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => names[0].as_str(),
        Some(other) => {
            let what = format!("architectures: expected a list of strings, found {}", short(other));
            return Err(Error::checkpoint("config.json", what));
        }
    };
    let family = match (model_type, architecture) {
        (Some(word), _) => FAMILIES.iter().find(|f| f.model_type == word),
        (None, Some(name)) => FAMILIES.iter().find(|f| name.starts_with(f.stem)),
        (None, None) => {
            return Err(Error::checkpoint("config.json", "expected model_type or architectures, found neither"));
        }
    };
    let Some(family) = family else {
        let named = architecture.map(|name| format!(" ({name})")).unwrap_or_default();
        return Err(unsupported(format!("model_type {:?}{named}", model_type.unwrap_or_default())));
    };
    let top = match architecture {
        None => Top::Unembed,
        Some(name) if name == family.language_model => Top::Unembed,
        Some(name) if name.strip_prefix(family.stem) == Some("Model") => Top::Unembed,
        Some(name) if name.strip_prefix(family.stem) == Some("ForSequenceClassification") => Top::Reward,
        Some(name) => return Err(unsupported(format!("architecture {name:?}"))),
    };
    config.refuse(family.model_type, &["quantization_config", "is_encoder_decoder", "add_cross_attention"])?;
    (family.open)(&config, top, Weights::new(tensors))
}

/// Opens a Hugging Face folder: `config.json` and safetensors files, memory-mapped.
///
/// # Errors
/// As [`open`], and [`Error::Io`] for files that cannot be read.
pub fn open_folder(folder: &Path) -> Result<Opened> {
    let path = folder.join("config.json");
    if !path.exists() && folder.join("adapter_config.json").exists() {
        return Err(Error::Unsupported {
            what: "a PEFT adapter (adapter_config.json without config.json); supported: the model with it merged in"
                .to_owned(),
        });
    }
    let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|e| Error::checkpoint("config.json", format!("expected JSON: {e}")))?;
    open(&config, Box::new(Folder::open(folder)?))
}

/// The engine's name for a nonlinearity.
fn activation(word: &str) -> Result<Activation> {
    match word {
        "relu" => Ok(Activation::Relu),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        // One formula, written three ways; `gelu_fast` has sqrt(2/pi) to ten digits, which f32 cannot tell apart.
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(Error::Unsupported {
            what: format!(
                "activation {other:?}; supported: relu, gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, \
                 silu, swish"
            ),
        }),
    }
}

/// The head that the config asks for; the reward head's tensor is checked.
fn head(config: &Config<'_>, top: Top, weights: &Weights, d_model: usize) -> Result<Head> {
    if top == Top::Unembed {
        return Ok(Head::Unembed);
    }
    let shape = weights.shape("score.weight")?;
    let labels = match (config.dimension_if("num_labels")?, config.object("id2label")?) {
        (Some(labels), _) => labels,
        (None, Some(names)) => names.len(),
        (None, None) => shape.first().copied().unwrap_or(0),
    };
    if labels == 0 {
        return Err(Error::checkpoint("config.json", "expected at least one label, found none"));
    }
    weights.require("score.weight", &[labels, d_model])?;
    let pad = match config.get("pad_token_id") {
        // Some configs write -1 for none.
        Some(value) => u32::try_from(value.as_i64().unwrap_or(-1)).ok(),
        None => None,
    };
    Ok(Head::Reward { labels, pad })
}
