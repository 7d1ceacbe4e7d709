//! Typed access to the fields of a JSON object. A field that does not fit gives an error of one clear sentence.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The values that were read. A value is known by its address, which stays the same while a configuration is borrowed.
#[derive(Default)]
pub(crate) struct Reads(RefCell<HashSet<*const Value>>);

impl Reads {
    fn insert(&self, value: &Value) {
        self.0.borrow_mut().insert(value);
    }

    /// Inserts `value` and, if it is an object, the values inside it.
    fn insert_all(&self, value: &Value) {
        self.insert(value);
        value.as_object().into_iter().flat_map(Map::values).for_each(|inner| self.insert_all(inner));
    }

    /// Whether `value` was read.
    pub fn contains(&self, value: &Value) -> bool {
        self.0.borrow().contains(&std::ptr::from_ref(value))
    }
}

/// A JSON object, and its name in messages, such as `model/config.json`.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub subject: &'a str,
    pub object: &'a Map<String, Value>,
    reads: Option<&'a Reads>,
}

impl<'a> Fields<'a> {
    /// The fields of `object`.
    pub fn new(subject: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { subject, object, reads: None }
    }

    /// These fields, with everything that is read from now on recorded in `reads`.
    pub fn recorded(self, reads: &'a Reads) -> Self {
        Self { reads: Some(reads), ..self }
    }

    /// The value under `key`; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let value = self.object.get(key)?;
        if let Some(reads) = self.reads {
            reads.insert(value);
        }
        Some(value).filter(|value| !value.is_null())
    }

    /// Whether the field is there and `null`.
    pub fn is_null(&self, key: &str) -> bool {
        self.object.contains_key(key) && self.get(key).is_none()
    }

    /// Counts fields as read, with all that is inside them. Their values make no difference beside those of other fields.
    pub fn pass_over(&self, keys: &[&str]) {
        if let Some(reads) = self.reads {
            keys.iter().filter_map(|key| self.object.get(*key)).for_each(|value| reads.insert_all(value));
        }
    }

    /// Checks a field that, if it is there, must say what the family computes in any case. Numbers may be written as whole
    /// or with a fraction.
    pub fn only(&self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        match self.get(key) {
            None => Ok(()),
            Some(found) if *found == value => Ok(()),
            Some(found) if found.is_number() && found.as_f64() == value.as_f64() => Ok(()),
            Some(_) => Err(self.refuse(key, &format!("{value}, the only value that this family computes"))),
        }
    }

    /// The error for a field with a value that cannot be used.
    pub fn refuse(&self, key: &str, expected: &str) -> Error {
        Error::input(self.subject, self.shown(key), expected, "correct the file or download it again")
    }

    /// The field as a sentence shows it.
    pub fn shown(&self, key: &str) -> String {
        match self.object.get(key) {
            Some(value) => format!("\"{key}\": {}", abridged(value)),
            None => format!("no \"{key}\""),
        }
    }

    /// Reads a whole number of at least 1, below 2³². `None` if the field is absent.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Some(n as usize)),
            _ => Err(self.refuse(key, "a whole number of at least 1")),
        }
    }

    /// As [`Fields::count`], for a field that must be present.
    pub fn required_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.refuse(key, &format!("\"{key}\" as a whole number of at least 1")))
    }

    /// Reads a finite number above zero. `None` if the field is absent.
    pub fn positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            _ => Err(self.refuse(key, "a number above zero")),
        }
    }

    /// As [`Fields::positive`], in double precision.
    pub fn precise(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        above_zero(value).map(Some).ok_or_else(|| self.refuse(key, "a number above zero"))
    }

    /// Reads a finite number of at least zero, in double precision. `None` if the field is absent.
    pub fn not_negative(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| *x >= 0.0 && x.is_finite());
        number.map(Some).ok_or_else(|| self.refuse(key, "a number of at least zero"))
    }

    /// As [`Fields::precise`], for a field that must be present.
    pub fn required_precise(&self, key: &str) -> Result<f64> {
        self.precise(key)?.ok_or_else(|| self.refuse(key, &format!("\"{key}\" as a number above zero")))
    }

    /// Reads a list of `count` finite numbers above zero, which must be present.
    pub fn required_list(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let list = self.get(key).and_then(Value::as_array).filter(|list| list.len() == count);
        let numbers = list.and_then(|list| list.iter().map(above_zero).collect());
        numbers.ok_or_else(|| self.refuse(key, &format!("\"{key}\" as a list of {count} numbers above zero")))
    }

    /// Reads `true` or `false`. `None` if the field is absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.refuse(key, "true or false"))
    }

    /// Reads one token id or a list of them. Empty if the field is absent.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.refuse(key, "a token id or a list of token ids"))
    }

    /// Reads a string. `None` if the field is absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refuse(key, "a string"))
    }

    /// Reads a nested object. `None` if the field is absent.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object() {
            Some(object) => Ok(Some(Fields { object, ..*self })),
            None => Err(self.refuse(key, "an object")),
        }
    }
}

/// The value as a finite number above zero, if it is one.
fn above_zero(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| *x > 0.0 && x.is_finite())
}

/// The value as JSON text, shortened to fit into a sentence.
pub(super) fn abridged(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
