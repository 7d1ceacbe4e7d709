//! What the files of a model say about its tokenizer.

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// What the files of a model say about its tokenizer.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// Name of tokenizer.json in messages.
    pub subject: String,
    /// The content of tokenizer.json.
    pub tokenizer: Value,
    /// The content of tokenizer_config.json, and what only special_tokens_map.json has. Empty without these files.
    pub settings: Map<String, Value>,
    /// The content of chat_template.jinja, which replaces a template in tokenizer_config.json.
    pub chat_template: Option<String>,
    /// The token that begins a text, in generation_config.json or config.json.
    pub begin: Option<u32>,
    /// The tokens that end a text, in generation_config.json or config.json.
    pub ends: Vec<u32>,
    /// `model_type` in config.json.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
}

impl TokenizerFiles {
    /// Reads the files of `checkpoint`. Errors: `Error::Input` if tokenizer.json is missing, or if one of the files is
    /// no JSON object.
    pub async fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let subject = format!("{}/tokenizer.json", checkpoint.name());
        let Some(tokenizer) = object(checkpoint, "tokenizer.json").await? else {
            return Err(Error::input(
                subject,
                "no such file",
                "the model's tokenizer in the format of Hugging Face tokenizers",
                "download it, or save it with transformers",
            ));
        };
        let mut settings = object(checkpoint, "tokenizer_config.json").await?.unwrap_or_default();
        for (key, value) in object(checkpoint, "special_tokens_map.json").await?.unwrap_or_default() {
            settings.entry(key).or_insert(value);
        }
        let chat_template = match content(checkpoint, "chat_template.jinja").await? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| {
                let remedy = "download the file again";
                Error::input(format!("{}/chat_template.jinja", checkpoint.name()), "bytes", "text in UTF-8", remedy)
            })?),
            None => None,
        };
        let model_type = checkpoint.raw_config().get("model_type").and_then(Value::as_str).unwrap_or_default();
        Ok(Self {
            subject,
            tokenizer: Value::Object(tokenizer),
            settings,
            chat_template,
            begin: checkpoint.token_ids("bos_token_id").await?.first().copied(),
            ends: checkpoint.token_ids("eos_token_id").await?,
            model_type: model_type.to_owned(),
            vocab_size: checkpoint.config().vocab_size,
        })
    }
}

/// The bytes of the file `name` beside the weights.
async fn content(checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<u8>>> {
    match checkpoint.sidecars().find(|source| source.name() == name) {
        Some(source) => Ok(Some(source.read(0..source.len()).await?.into_owned())),
        None => Ok(None),
    }
}

/// The JSON object in the file `name` beside the weights.
async fn object(checkpoint: &Checkpoint, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = content(checkpoint, name).await? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let subject = format!("{}/{name}", checkpoint.name());
        Error::input(subject, format!("no JSON object ({error})"), "a JSON object", "download the file again")
    })
}
