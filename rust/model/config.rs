//! A `config.json`, read with every value checked: absent, null, of the wrong type and out of range are told apart.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest dimension a config may name: products of two of them fit in 64 bits, and no model comes near.
const MAX_DIMENSION: u64 = i32::MAX as u64;

/// One JSON object of a config, with the words that messages call it by.
#[derive(Clone)]
pub(crate) struct Config<'a> {
    name: String,
    values: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// The whole config.
    pub fn new(value: &'a Value) -> Result<Self> {
        let name = "config.json".to_owned();
        match value.as_object() {
            Some(values) => Ok(Self { name, values }),
            None => Err(Error::checkpoint(name, format!("expected a JSON object, found {}", short(value)))),
        }
    }

    /// The value under a key, null read as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Result<Option<Config<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Config { name: format!("{}, {key}", self.name), values })),
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// A dimension that the config must name.
    pub fn dimension(&self, key: &str) -> Result<usize> {
        self.dimension_if(key)?
            .ok_or_else(|| Error::checkpoint(&self.name, format!("{key}: expected a whole number, found nothing")))
    }

    /// A dimension that has a default elsewhere.
    pub fn dimension_if(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..=MAX_DIMENSION) => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, "a whole number from 1 to 2147483647", value)),
        }
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(key, "a finite number", value)),
        }
    }

    /// A finite number above zero that the config must name.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.positive_if(key)?
            .ok_or_else(|| Error::checkpoint(&self.name, format!("{key}: expected a number, found nothing")))
    }

    /// A finite number above zero.
    pub fn positive_if(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => {
                Err(Error::checkpoint(&self.name, format!("{key}: expected a number above 0, found {x}")))
            }
            other => Ok(other),
        }
    }

    /// A norm's epsilon, as the f32 that every implementation computes with.
    pub fn epsilon(&self, key: &str, default: f64) -> Result<f32> {
        let eps = self.number(key)?.unwrap_or(default);
        if (0.0..=1.0).contains(&eps) {
            Ok(eps as f32)
        } else {
            Err(Error::checkpoint(&self.name, format!("{key}: expected a number from 0 to 1, found {eps}")))
        }
    }

    /// A list of finite numbers above zero, of a known length.
    pub fn positives(&self, key: &str, len: usize) -> Result<Vec<f64>> {
        let expected = format!("a list of {len} numbers above 0");
        let Some(value) = self.get(key) else { return Err(self.wrong(key, &expected, &Value::Null)) };
        let numbers = value.as_array().into_iter().flatten().map(|x| x.as_f64().filter(|x| x.is_finite() && *x > 0.0));
        match numbers.collect::<Option<Vec<_>>>() {
            Some(numbers) if numbers.len() == len => Ok(numbers),
            _ => Err(self.wrong(key, &expected, value)),
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// A truth value.
    pub fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A word.
    pub fn word(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// Refuses options that would change the forward pass in a way the engine does not build. An option that is absent,
    /// null, false or zero is off.
    pub fn refuse(&self, family: &str, keys: &[&str]) -> Result<()> {
        for key in keys {
            match self.get(key) {
                None | Some(Value::Bool(false)) => {}
                Some(value) if value.as_f64() == Some(0.0) => {}
                Some(value) => {
                    return Err(Error::Unsupported {
                        what: format!("{key} = {} in a {family} model; supported: only without it", short(value)),
                    });
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::checkpoint(&self.name, format!("{key}: expected {expected}, found {}", short(found)))
    }
}

/// A value as messages print it, long ones cut.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
