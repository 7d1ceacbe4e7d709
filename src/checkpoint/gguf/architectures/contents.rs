//! Reads numbers and tensors of a GGUF file by their names, with errors of one sentence.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::super::metadata::{Metadata, Value};
use crate::{Error, Result};

/// What of a GGUF file tells which model it holds.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// Name of the file in messages.
    pub subject: &'a str,
    /// The key-value pairs.
    pub metadata: &'a Metadata,
    /// Shape of every tensor, `[outputs, inputs]` for a matrix.
    pub shapes: &'a BTreeMap<String, Vec<usize>>,
    /// Values of those tensors of [`super::VALUES_READ`] that the file has.
    pub values: &'a BTreeMap<String, Vec<f32>>,
}

impl<'a> Contents<'a> {
    /// Name of the architecture. Errors: `Error::Input` if the file does not name one.
    pub fn architecture(&self) -> Result<&'a str> {
        match self.metadata.get("general.architecture") {
            Some(Value::Text(name)) => Ok(name),
            _ => Err(self.refuse("general.architecture", "the name of an architecture")),
        }
    }

    /// The value of `key` below the name of the architecture.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture().ok()?))
    }

    /// The error for a key with a value that cannot be used.
    pub(super) fn refuse(&self, key: &str, expected: &str) -> Error {
        let found = format!("\"{key}\" that is missing or cannot be used");
        Error::input(self.subject, found, expected, "download the file again, or convert the model again")
    }

    /// A whole number, as a number of at least 0. `None` if the key is absent.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = whole(value).and_then(|number| usize::try_from(number).ok());
        count.map(Some).ok_or_else(|| self.refuse(key, "a whole number"))
    }

    /// As [`Contents::count`], for a key that must be present.
    pub(super) fn required_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.refuse(key, "a whole number"))
    }

    /// A finite number. `None` if the key is absent.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match *value {
            Value::F32(number) => Some(f64::from(number)),
            Value::F64(number) => Some(number),
            _ => whole(value).map(|number| number as f64),
        };
        number.filter(|number| number.is_finite()).map(Some).ok_or_else(|| self.refuse(key, "a finite number"))
    }

    /// A text. `None` if the key is absent.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "a text")),
        }
    }

    /// A whole number for each of `layers` layers. One number counts for all of them. `None` if the key is absent.
    pub(super) fn counts(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        let Some(Value::List(list)) = self.get(key) else {
            return Ok(self.count(key)?.map(|count| vec![count; layers]));
        };
        let count = |value: &Value| whole(value).and_then(|number| usize::try_from(number).ok());
        let counts: Option<Vec<usize>> = list.iter().map(count).collect();
        let counts = counts.filter(|counts| counts.len() == layers);
        counts.map(Some).ok_or_else(|| self.refuse(key, "a whole number for every layer"))
    }

    /// A truth value for each of `layers` layers. `None` if the key is absent or not a list.
    pub(super) fn flags(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(Value::List(list)) = self.get(key) else { return Ok(None) };
        let flag = |value: &Value| match value {
            Value::Bool(flag) => Some(*flag),
            other => whole(other).map(|number| number != 0),
        };
        let flags: Option<Vec<bool>> = list.iter().map(flag).collect();
        let flags = flags.filter(|flags| flags.len() == layers);
        flags.map(Some).ok_or_else(|| self.refuse(key, "true or false for every layer"))
    }

    /// A number or a truth value as JSON. `None` if the key is absent, or a list of different numbers.
    pub(super) fn json(&self, key: &str) -> Option<Json> {
        match self.get(key)? {
            Value::Bool(flag) => Some((*flag).into()),
            Value::F32(number) => Some(f64::from(*number).into()),
            Value::F64(number) => Some((*number).into()),
            Value::List(list) => {
                let first = whole(list.first()?)?;
                list.iter().all(|other| whole(other) == Some(first)).then(|| first.into())
            }
            other => whole(other).map(Json::from),
        }
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    /// The values of a tensor that was read for this purpose.
    pub(super) fn values(&self, name: &str) -> Option<&'a [f32]> {
        self.values.get(name).map(Vec::as_slice)
    }
}

/// A whole number of any type.
fn whole(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::I8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::I16(number) => Some(number.into()),
        Value::U32(number) => Some(number.into()),
        Value::I32(number) => Some(number.into()),
        Value::U64(number) => i64::try_from(number).ok(),
        Value::I64(number) => Some(number),
        Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
    }
}
