//! Phrases, the parts of messages. A phrase holds settings as values, so that every front end can put in its own names.

use std::fmt;

use super::setting::{Advice, LibraryNames, Names, Setting};

/// A part of a sentence: text, settings and advice in any order. `Display` uses the names of the library.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Phrase(Vec<Part>);

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Setting(Setting),
    /// A setting together with a value.
    Value(Setting, String),
    Advice(Advice),
}

/// Concatenates its arguments to a phrase. Each may be text, a setting, advice or another phrase.
macro_rules! phrase {
    ($($part:expr),+ $(,)?) => { $crate::error::Phrase::default()$(.then($part))+ };
}
pub(crate) use phrase;

impl Phrase {
    /// This phrase with `next` appended.
    pub fn then(mut self, next: impl Into<Self>) -> Self {
        self.0.append(&mut next.into().0);
        self
    }

    /// The phrase as text, with the names that a front end gives to settings.
    pub fn with_names(&self, names: &dyn Names) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(words) => text += words,
                Part::Setting(setting) if text.is_empty() => text += &names.subject(*setting),
                Part::Setting(setting) => text += names.name(*setting),
                Part::Value(setting, value) => text += &names.value(*setting, value),
                Part::Advice(advice) => text += names.advice(*advice),
            }
        }
        text
    }
}

impl Setting {
    /// A phrase that names the setting together with a value, such as "bits 4".
    pub fn set_to(self, value: impl fmt::Display) -> Phrase {
        Phrase(vec![Part::Value(self, value.to_string())])
    }
}

impl fmt::Display for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_names(&LibraryNames))
    }
}

impl fmt::Debug for Phrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl From<String> for Phrase {
    fn from(text: String) -> Self {
        Self(vec![Part::Text(text)])
    }
}

impl From<&String> for Phrase {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<&str> for Phrase {
    fn from(text: &str) -> Self {
        text.to_string().into()
    }
}

impl From<&Phrase> for Phrase {
    fn from(phrase: &Phrase) -> Self {
        phrase.clone()
    }
}

impl From<Setting> for Phrase {
    fn from(setting: Setting) -> Self {
        Self(vec![Part::Setting(setting)])
    }
}

impl From<Advice> for Phrase {
    fn from(advice: Advice) -> Self {
        Self(vec![Part::Advice(advice)])
    }
}
