//! The files of a checkpoint: tells which belong to it, finds the weight files (shards), reads their headers, and merges
//! them into one table of tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::formats::DESCRIPTION_FILE;
use super::header::{TensorEntry, read_header};
use super::layouts::Packing;
use super::source::Source;
use crate::family::json_object;
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "config.json";
/// The index of a checkpoint with several shards.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The weight file of a checkpoint with a single shard.
pub(super) const SINGLE_FILE: &str = "model.safetensors";

/// The files of a checkpoint, and the name of the checkpoint in messages.
pub(super) struct Files {
    /// Directory, or the name of a bundled model.
    pub place: String,
    /// The files, sorted by name.
    pub sources: Vec<Box<dyn Source>>,
}

/// The place of one tensor in the weight files.
pub(super) struct Tensor {
    /// Index of the file.
    pub file: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Byte range of the elements, from the start of the file.
    pub range: Range<u64>,
}

impl Files {
    /// Index of the file `name`, or `None` if there is no such file.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.sources.iter().position(|source| source.name() == name)
    }

    /// The name of the file `name` in messages.
    pub fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    /// The name of the file at `index` in messages.
    pub fn label_at(&self, index: usize) -> String {
        self.label(self.sources[index].name())
    }

    /// Reads the whole file `name`. Returns `None` if there is no such file.
    pub async fn content(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(index) = self.position(name) else { return Ok(None) };
        let source = &self.sources[index];
        Ok(Some(source.read(0..source.len()).await?.into_owned()))
    }

    /// Reads the JSON object in the file `name`. Returns `None` if there is no such file. Errors: `Error::Input` if the
    /// file holds anything else.
    pub async fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.content(name).await? else { return Ok(None) };
        let label = self.label(name);
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::input(&label, "bytes that are not UTF-8", "a JSON object", "correct the file or download it again")
        })?;
        json_object(text, &label).map(Some)
    }

    /// How the weights are packed, as `config`, the content of config.json, or the file of older checkpoints says. `None` if
    /// neither describes a quantization.
    pub async fn packing(&self, config: &Map<String, Value>) -> Result<Option<Packing>> {
        if let Some(packing) = Packing::of_model(config, &self.label(CONFIG_FILE))? {
            return Ok(Some(packing));
        }
        match self.json(DESCRIPTION_FILE).await? {
            Some(description) => Packing::open(&description, &self.label(DESCRIPTION_FILE)).map(Some),
            None => Ok(None),
        }
    }

    /// The tensors of all weight files by name. The shards are `model.safetensors` alone if it exists, else those that
    /// the index names, else all `.safetensors` files.
    ///
    /// Errors: `Error::Input` if there is no weight file, if one is damaged, if two hold the same tensor, or if the
    /// index contradicts the shards.
    pub async fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let index = if self.position(SINGLE_FILE).is_some() { None } else { self.json(INDEX_FILE).await? };
        match index {
            Some(index) => self.indexed_tensors(&index).await,
            None => self.plain_tensors().await,
        }
    }

    /// The tensors of a checkpoint without an index.
    async fn plain_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let shards = match self.position(SINGLE_FILE) {
            Some(single) => vec![single],
            None => (0..self.sources.len()).filter(|&i| self.sources[i].name().ends_with(".safetensors")).collect(),
        };
        if shards.is_empty() {
            return Err(Error::input(
                &self.place,
                "no .safetensors file",
                "model.safetensors, or shards with model.safetensors.index.json",
                "download the safetensors version of the model, or convert it",
            ));
        }
        self.merge(shards).await
    }

    /// The tensors of the shards that `index` names. Checks that each tensor is in the shard that the index gives.
    async fn indexed_tensors(&self, index: &Value) -> Result<BTreeMap<String, Tensor>> {
        let label = self.label(INDEX_FILE);
        let incomplete = |found: String, expected: &str| {
            Error::input(&label, found, expected, "download the missing files, or the index again")
        };
        let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
            return Err(incomplete("no \"weight_map\"".into(), "an object that names the file of every tensor"));
        };
        let mut homes = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().unwrap_or_default();
            let Some(position) = self.position(file) else {
                return Err(incomplete(
                    format!("tensor {tensor} in \"{file}\", which is not there"),
                    "every shard present",
                ));
            };
            homes.insert(tensor, position);
        }
        let mut shards: Vec<usize> = homes.values().copied().collect();
        shards.sort_unstable();
        shards.dedup();
        let tensors = self.merge(shards).await?;
        for (tensor, home) in homes {
            if tensors.get(tensor).is_none_or(|found| found.file != home) {
                let found = format!("tensor {tensor} placed in {}, which lacks it", self.sources[home].name());
                return Err(incomplete(found, "an index that agrees with the shards"));
            }
        }
        Ok(tensors)
    }

    /// Reads the headers of the files `shards` and collects their tensors by name.
    async fn merge(&self, shards: Vec<usize>) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::<String, Tensor>::new();
        for file in shards {
            let label = self.label_at(file);
            for TensorEntry { name, dtype, shape, range } in read_header(&*self.sources[file], &label).await? {
                if let Some(other) = tensors.get(&name) {
                    let found = format!("tensor {name}, which {} holds too", self.sources[other.file].name());
                    return Err(Error::input(label, found, "every tensor in one file", "remove the stray file"));
                }
                tensors.insert(name, Tensor { file, dtype, shape, range });
            }
        }
        Ok(tensors)
    }
}

/// Whether a file called `name` is part of a checkpoint. A model directory may hold other files.
pub fn belongs(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    name == CONFIG_FILE || weights || is_sidecar(name)
}

/// Whether `name` is a sidecar file: configuration other than `config.json`, tokenizer, templates, remote code,
/// licence.
pub(super) fn is_sidecar(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let known = matches!(extension, "json" | "jinja" | "model" | "tiktoken" | "txt" | "py");
    let described_elsewhere = name == CONFIG_FILE || name.ends_with(".index.json");
    !name.starts_with('.')
        && !described_elsewhere
        && (known || name.starts_with("LICENSE") || name.starts_with("NOTICE"))
}
