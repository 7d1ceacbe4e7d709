//! Errors on their way to the page: a kind to act on and a sentence to show, in the page's words.

use aquatint::Error;
use serde::Serialize;
use wasm_bindgen::JsValue;

use crate::names::PageNames;

/// What the worker's promise rejects with.
#[derive(Serialize)]
pub struct Failure {
    kind: &'static str,
    message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Input { .. } | Error::NotFinite { .. } => "input",
            Error::Io { .. } => "storage",
            Error::OutOfMemory { .. } => "memory",
            Error::DeviceLost { .. } => "lost",
            Error::Gpu { .. } => "gpu",
            Error::Cancelled => "cancelled",
            _ => "internal",
        };
        Self { kind, message: error.sentence(&PageNames) }
    }
}

impl Failure {
    /// The sentence alone.
    pub fn into_message(self) -> String {
        self.message
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        to_js(&failure)
    }
}

/// A value of ours as a plain object of JavaScript.
pub fn to_js(value: &impl Serialize) -> JsValue {
    let serializer = serde_wasm_bindgen::Serializer::json_compatible();
    value.serialize(&serializer).unwrap_or_else(|error| JsValue::from_str(&error.to_string()))
}

/// A plain object of JavaScript as a value of ours. The page made it, so a misfit is a bug, not a user's mistake.
pub fn from_js<T: serde::de::DeserializeOwned>(value: JsValue, what: &'static str) -> Result<T, Failure> {
    serde_wasm_bindgen::from_value(value)
        .map_err(|error| Failure { kind: "internal", message: format!("{what}: {error}; please report this") })
}
