//! Errors as the page receives them: a kind, which the page acts on, and a sentence in the page's words, which it shows. The
//! conversions between Rust values and plain JavaScript objects are here too.

use aquatint::Error;
use serde::Serialize;
use wasm_bindgen::JsValue;

use crate::names::PageNames;

/// The object that a rejected promise of the worker carries.
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
    /// Returns the sentence without the kind.
    pub fn into_message(self) -> String {
        self.message
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        to_js(&failure)
    }
}

/// Converts a value to a plain JavaScript object.
pub fn to_js(value: &impl Serialize) -> JsValue {
    let serializer = serde_wasm_bindgen::Serializer::json_compatible();
    value.serialize(&serializer).unwrap_or_else(|error| JsValue::from_str(&error.to_string()))
}

/// Converts a plain JavaScript object to a value. `what` names the call for the message.
///
/// Errors: an object of another shape. The page made the object, so this is a bug and not a user's mistake.
pub fn from_js<T: serde::de::DeserializeOwned>(value: JsValue, what: &'static str) -> Result<T, Failure> {
    serde_wasm_bindgen::from_value(value)
        .map_err(|error| Failure { kind: "internal", message: format!("{what}: {error}; please report this") })
}
