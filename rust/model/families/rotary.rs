//! Angular frequencies of rotary position embeddings, from the places and words that configs have used for them.

use std::f64::consts::TAU;

use crate::error::{Error, Result};
use crate::model::config::Config;

/// One frequency for each pair of the `dim` rotated dimensions, radians a position.
///
/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before), kinds `default`, `linear` and
/// `llama3`; and `factors`, a divisor for each frequency, which is how GGUF files store any other kind.
pub(super) fn inverse_frequencies(config: &Config<'_>, dim: usize, n_ctx: usize) -> Result<Vec<f64>> {
    let scaling = match config.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => config.object("rope_parameters")?,
    };
    let mut base = config.positive_if("rope_theta")?;
    let mut kind = "default";
    let mut partial = config.number("partial_rotary_factor")?;
    if let Some(scaling) = &scaling {
        if let Some(own) = scaling.positive_if("rope_theta")? {
            base = Some(own);
        }
        // `type` is the older word; where both stand, transformers reads `rope_type`.
        kind = match scaling.word("rope_type")? {
            Some(word) => word,
            None => scaling.word("type")?.unwrap_or("default"),
        };
        partial = scaling.number("partial_rotary_factor")?.or(partial);
        if scaling.get("full_attention").is_some() || scaling.get("sliding_attention").is_some() {
            return Err(unsupported("rotary parameters for each kind of layer"));
        }
    }
    if partial.is_some_and(|factor| factor != 1.0) {
        return Err(unsupported("partial_rotary_factor other than 1"));
    }
    let base = base.unwrap_or(10_000.0);
    let plain: Vec<f64> = (0..dim / 2).map(|j| base.powf(-((2 * j) as f64) / dim as f64)).collect();
    match (kind, &scaling) {
        ("default", _) | (_, None) => Ok(plain),
        ("linear", Some(scaling)) => {
            let factor = scaling.positive("factor")?;
            Ok(plain.into_iter().map(|f| f / factor).collect())
        }
        ("llama3", Some(scaling)) => llama3(config, scaling, plain, n_ctx),
        ("factors", Some(scaling)) => {
            let factors = scaling.positives("factors", plain.len())?;
            Ok(plain.iter().zip(factors).map(|(f, factor)| f / factor).collect())
        }
        (other, _) => Err(unsupported(&format!("rope type {other:?}"))),
    }
}

/// Long waves are stretched by `factor`, short ones kept, those between interpolated (Llama 3.1).
fn llama3(config: &Config<'_>, scaling: &Config<'_>, plain: Vec<f64>, n_ctx: usize) -> Result<Vec<f64>> {
    let factor = scaling.positive("factor")?;
    let low = scaling.positive("low_freq_factor")?;
    let high = scaling.positive("high_freq_factor")?;
    let key = "original_max_position_embeddings";
    // A value beside the rotary parameters wins, as in transformers.
    let original = match config.positive_if(key)? {
        Some(n) => n,
        None => scaling.positive_if(key)?.unwrap_or(n_ctx as f64),
    };
    if high <= low {
        let what = format!("high_freq_factor: expected more than low_freq_factor = {low}, found {high}");
        return Err(Error::checkpoint("config.json", what));
    }
    let scale = |f: f64| {
        let wavelength = TAU / f;
        if wavelength < original / high {
            f
        } else if wavelength > original / low {
            f / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    Ok(plain.into_iter().map(scale).collect())
}

fn unsupported(found: &str) -> Error {
    Error::Unsupported { what: format!("{found}; supported: rope types default, linear and llama3 on whole heads") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn frequencies(config: &Value) -> Result<Vec<f64>> {
        inverse_frequencies(&Config::new(config).unwrap(), 4, 64)
    }

    #[test]
    fn old_and_new_places_agree() {
        let plain = vec![1.0, 0.1];
        for config in [
            json!({"rope_theta": 100.0}),
            json!({"rope_theta": 100.0, "rope_scaling": null}),
            json!({"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}),
            json!({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 100.0}}),
        ] {
            assert_eq!(frequencies(&config).unwrap(), plain);
        }
        assert_eq!(frequencies(&json!({})).unwrap(), [1.0, 0.01]);
        let scaled = [0.5, 0.05];
        for config in [
            json!({"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_theta": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"rope_theta": 100.0, "rope_type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"rope_theta": 100.0, "rope_type": "factors", "factors": [2.0, 2.0]}}),
        ] {
            assert_eq!(frequencies(&config).unwrap(), scaled);
        }
    }

    #[test]
    fn what_is_not_built_is_refused() {
        for config in [
            json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            json!({"partial_rotary_factor": 0.5}),
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}),
        ] {
            assert_eq!(frequencies(&config).unwrap_err().class(), "UnsupportedModelError");
        }
        for config in [
            json!({"rope_theta": 0.0}),
            json!({"rope_theta": "1"}),
            json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
            json!({"rope_scaling": {"type": "factors", "factors": [1.0]}}),
            json!({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
        ] {
            assert_eq!(frequencies(&config).unwrap_err().class(), "CheckpointError");
        }
    }
}
