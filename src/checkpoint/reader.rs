//! A checkpoint opened for reading: checked against its configuration first, then read tensor by tensor.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::format::{PackedLayer, Part, PartData};
use super::formats::{DESCRIPTION_FILE, Packing};
use super::shards::{Files, Tensor};
use super::source::{Source, pieces};
use crate::family::ModelConfig;
use crate::family::config::fields::Fields;
use crate::ops::widen::Encoding;
use crate::tensor::recycled;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// A model directory, or the bundled model, or files a browser was given.
///
/// Opening reads headers only and checks the name, type and shape of every tensor. Weights are read when asked for, as f32.
/// Quantized layers read like any other: s·(q − z).
pub struct Checkpoint {
    files: Files,
    directory: Option<PathBuf>,
    config: ModelConfig,
    raw_config: Map<String, Value>,
    /// How quantized layers are stored, of a checkpoint that says that it has some.
    packing: Option<Packing>,
    tensors: BTreeMap<String, Tensor>,
    shapes: HashMap<String, Vec<usize>>,
}

/// A tensor's elements, or those of some rows, in their file.
pub(super) struct Floats<'a> {
    name: &'a str,
    /// Index of the file.
    pub file: usize,
    pub encoding: Encoding,
    /// Bytes from the start of the file.
    range: Range<u64>,
}

/// A layer that is stored quantized.
#[derive(Clone, Copy)]
struct Packed<'a> {
    packing: &'a Packing,
    /// Module path.
    module: &'a str,
}

impl Packed<'_> {
    /// The tensors that stand for its weight, of the shape `shape`.
    fn parts(&self, shape: &[usize]) -> Result<Vec<Part>> {
        Ok(self.packing.layers.parts(self.module, matrix(shape)?))
    }
}

/// `shape` as outputs and inputs.
fn matrix(shape: &[usize]) -> Result<[usize; 2]> {
    let [rows, columns] = *shape else {
        return Err(Error::shape("Checkpoint", format!("a quantized tensor of shape {shape:?}")));
    };
    Ok([rows, columns])
}

impl Floats<'_> {
    /// Pieces of at most `size` bytes, but of one element at least: their place in the file, and which elements they are.
    pub fn pieces(&self, size: u64) -> impl Iterator<Item = (Range<u64>, Range<usize>)> {
        let (start, width) = (self.range.start, self.encoding.size() as u64);
        let element = move |byte: u64| ((byte - start) / width) as usize;
        let pieces = pieces(self.range.clone(), (size / width).max(1) * width);
        pieces.map(move |piece| (piece.clone(), element(piece.start)..element(piece.end)))
    }
}

impl Checkpoint {
    /// Opens the model directory at `path`.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn open(path: &Path) -> Result<Self> {
        let refuse = |source| {
            let remedy = "give the directory of a model, with config.json and safetensors files".into();
            Error::Io { path: path.to_owned(), action: "read", source, remedy }
        };
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for entry in std::fs::read_dir(path).map_err(refuse)? {
            let file = entry.map_err(refuse)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if file.is_file() && belongs(&name) {
                sources.push(Box::new(super::MappedFile::open(&file)?));
            }
        }
        let mut checkpoint = Self::from_sources(&path.display().to_string(), sources).await?;
        checkpoint.directory = Some(path.to_owned());
        Ok(checkpoint)
    }

    /// Opens a checkpoint from its files, which `place` names in messages.
    pub async fn from_sources(place: &str, mut sources: Vec<Box<dyn Source>>) -> Result<Self> {
        sources.sort_by(|a, b| a.name().cmp(b.name()));
        let files = Files { place: place.to_owned(), sources };
        let label = files.label(CONFIG_FILE);
        let Some(Value::Object(raw_config)) = files.json(CONFIG_FILE).await? else {
            return Err(Error::input(
                label,
                "no such file",
                "the model's configuration",
                "give the directory of a model",
            ));
        };
        let config = ModelConfig::from_value(&Value::Object(raw_config.clone()), &label)?;
        let packing = match raw_config.get("quantization_config").filter(|description| !description.is_null()) {
            Some(description) => Some(Packing::open(description, &label)?),
            // Older checkpoints describe themselves in this file alone.
            None => match files.json(DESCRIPTION_FILE).await? {
                Some(description) => Some(Packing::open(&description, &files.label(DESCRIPTION_FILE))?),
                None => None,
            },
        };
        let tensors = files.tensors().await?;
        let shapes = config.expected_tensors().into_iter().collect();
        let checkpoint = Self { files, directory: None, config, raw_config, packing, tensors, shapes };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// How the user knows this checkpoint: its directory, or the name of a bundled model.
    pub fn name(&self) -> &str {
        &self.files.place
    }

    /// The directory it was opened from, if any.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// What `config.json` says, checked.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `config.json` as it stands, keys in their order.
    pub fn raw_config(&self) -> &Map<String, Value> {
        &self.raw_config
    }

    /// Numbers in the model; a quantized layer counts as the weight it stands for.
    pub fn parameters(&self) -> u64 {
        self.shapes.values().map(|shape| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.sources.iter().map(|source| source.len()).sum()
    }

    /// The tokenizer.
    pub async fn tokenizer(&self) -> Result<Tokenizer> {
        let label = self.files.label(TOKENIZER_FILE);
        match self.files.content(TOKENIZER_FILE).await? {
            Some(bytes) => Tokenizer::from_bytes(&label, &bytes),
            None => Err(Error::input(
                label,
                "no such file",
                "the model's tokenizer in the format of Hugging Face tokenizers",
                "download it, or save it with transformers",
            )),
        }
    }

    /// The token ids under `key`, such as `eos_token_id`, in generation_config.json, or else in config.json.
    pub async fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        if let Some(Value::Object(object)) = self.files.json(GENERATION_CONFIG_FILE).await? {
            let ids = Fields { subject: &self.files.label(GENERATION_CONFIG_FILE), object: &object }.token_ids(key)?;
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        Fields { subject: &self.files.label(CONFIG_FILE), object: &self.raw_config }.token_ids(key)
    }

    /// Files beside the weights that belong to the model and go into every copy of it: tokenizer, chat template, licence …
    pub fn sidecars(&self) -> impl Iterator<Item = &dyn Source> {
        let kept = |name: &str| is_sidecar(name) && name != DESCRIPTION_FILE;
        self.files.sources.iter().map(AsRef::as_ref).filter(move |source| kept(source.name()))
    }

    /// Shape of the tensor `name`; of a quantized layer, the shape of the weight it stands for.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        let shape = self.shapes.get(name).or_else(|| self.tensors.get(name).map(|tensor| &tensor.shape));
        shape.map(Vec::as_slice).ok_or_else(|| self.missing(name))
    }

    /// Element type of the tensor `name`; of a quantized layer, that of its scales.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        let scales = match self.packed(name) {
            Some(packed) => packed.parts(self.shape(name)?)?.into_iter().find(Part::is_float),
            None => None,
        };
        Ok(self.tensor(scales.as_ref().map_or(name, |part| &part.name))?.dtype)
    }

    /// Whether the weight `name` is stored quantized.
    pub fn is_quantized(&self, name: &str) -> bool {
        self.packed(name).is_some()
    }

    /// What the layout of its quantized layers is called, such as "GPTQ"; `None` of a model that is not quantized.
    pub fn quantized_layout(&self) -> Option<&'static str> {
        self.packing.as_ref().map(|packing| packing.layout)
    }

    /// The whole tensor `name` as f32, row-major.
    ///
    /// Errors: `Error::NotFinite` if it holds a NaN or an infinity.
    pub async fn read(&self, name: &str) -> Result<Vec<f32>> {
        match self.packed(name) {
            Some(packed) => self.read_packed(packed, self.shape(name)?).await,
            None => self.read_floats(&self.floats(name)?).await,
        }
    }

    /// Rows `rows` of the tensor `name`, along its first dimension, as f32.
    pub async fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        match self.packed(name) {
            Some(packed) => {
                let width = self.row_width(name, &rows)?;
                let weight = self.read_packed(packed, self.shape(name)?).await?;
                Ok(weight[rows.start * width..rows.end * width].to_vec())
            }
            None => self.read_floats(&self.float_rows(name, rows)?).await,
        }
    }

    /// Where the elements of the float tensor `name` lie.
    pub(super) fn floats<'a>(&self, name: &'a str) -> Result<Floats<'a>> {
        let tensor = self.tensor(name)?;
        Ok(Floats { name, file: tensor.file, encoding: self.encoding(name, tensor)?, range: tensor.range.clone() })
    }

    /// Where those of its rows `rows` lie.
    pub(super) fn float_rows<'a>(&self, name: &'a str, rows: Range<usize>) -> Result<Floats<'a>> {
        let floats = self.floats(name)?;
        let stride = (self.row_width(name, &rows)? * floats.encoding.size()) as u64;
        let at = |row: usize| floats.range.start + row as u64 * stride;
        Ok(Floats { range: at(rows.start)..at(rows.end), ..floats })
    }

    /// Elements per row of a tensor that has the rows `rows`.
    fn row_width(&self, name: &str, rows: &Range<usize>) -> Result<usize> {
        match self.shape(name)? {
            [count, width @ ..] if rows.start <= rows.end && rows.end <= *count => Ok(width.iter().product()),
            shape => Err(Error::shape("rows of a tensor", format!("rows {rows:?} of {name} with shape {shape:?}"))),
        }
    }

    /// Says that all tensors below `prefix` will be read soon.
    pub fn prefetch(&self, prefix: &str) {
        let below = self.tensors.range(prefix.to_string()..).take_while(|(name, _)| name.starts_with(prefix));
        below.for_each(|(_, tensor)| self.file(tensor.file).prefetch(tensor.range.clone()));
    }

    /// Names of all stored tensors, sorted.
    pub(super) fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Where a stored tensor lies.
    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The file with the given index, as in [`Tensor::file`].
    pub(super) fn file(&self, index: usize) -> &dyn Source {
        &*self.files.sources[index]
    }

    /// The packed layer that stands for the weight `name`, if it is stored that way.
    fn packed<'a>(&'a self, name: &'a str) -> Option<Packed<'a>> {
        let packing = self.packing.as_ref()?;
        let module = name.strip_suffix(".weight")?;
        let holds = packing.layers.holds(module, &|tensor| self.tensors.contains_key(tensor));
        holds.then_some(Packed { packing, module })
    }

    fn missing(&self, name: &str) -> Error {
        Error::input(
            &self.files.place,
            format!("no tensor {name}"),
            "every tensor of the model that config.json describes",
            "download the checkpoint again, or correct config.json",
        )
    }

    fn check_tensors(&self) -> Result<()> {
        for (name, shape) in self.config.expected_tensors() {
            match self.packed(&name) {
                Some(packed) => self.check_packed(packed, &shape)?,
                None => {
                    self.check_tensor(&name, &shape)?;
                }
            }
        }
        Ok(())
    }

    /// The tensor, if it is there with this shape and of a float type.
    fn check_tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.tensor(name)?;
        self.check_shape(name, tensor, shape)?;
        self.encoding(name, tensor).map(|_| tensor)
    }

    /// How the elements are stored, of a tensor of floats.
    fn encoding(&self, name: &str, tensor: &Tensor) -> Result<Encoding> {
        match tensor.dtype {
            Dtype::F32 => Ok(Encoding::F32),
            Dtype::F16 => Ok(Encoding::F16),
            Dtype::BF16 => Ok(Encoding::Bf16),
            other => Err(Error::input(
                self.files.label_at(tensor.file),
                format!("tensor {name} of type {other}"),
                "F32, F16 or BF16",
                "use a checkpoint with float weights",
            )),
        }
    }

    fn check_shape(&self, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
        if tensor.shape == shape {
            return Ok(());
        }
        Err(Error::input(
            self.files.label_at(tensor.file),
            format!("tensor {name} of shape {:?}", tensor.shape),
            format!("{shape:?}, as config.json says"),
            "use the config.json that belongs to these weights",
        ))
    }

    fn check_packed(&self, packed: Packed<'_>, shape: &[usize]) -> Result<()> {
        for part in packed.parts(shape)? {
            if part.is_float() {
                self.check_tensor(&part.name, &part.shape)?;
                continue;
            }
            let tensor = self.tensor(&part.name)?;
            self.check_shape(&part.name, tensor, &part.shape)?;
            if tensor.dtype != part.dtype {
                let found = format!("tensor {} of type {}", part.name, tensor.dtype);
                let remedy = format!("use a checkpoint in the usual {} layout", packed.packing.layout);
                return Err(Error::input(self.files.label_at(tensor.file), found, part.dtype.to_string(), remedy));
            }
        }
        Ok(())
    }

    async fn read_packed(&self, packed: Packed<'_>, shape: &[usize]) -> Result<Vec<f32>> {
        let mut parts = Vec::new();
        for part in packed.parts(shape)? {
            parts.push(match part.is_float() {
                true => PartData::Floats(self.read_floats(&self.floats(&part.name)?).await?),
                false => PartData::Words(self.read_words(&part.name).await?),
            });
        }
        let (place, module) = (self.name(), packed.module);
        packed.packing.layers.dequantize(&PackedLayer { place, module, shape: matrix(shape)?, parts })
    }

    async fn read_words(&self, name: &str) -> Result<Vec<u32>> {
        let tensor = self.tensor(name)?;
        let bytes = self.file(tensor.file).read(tensor.range.clone()).await?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
    }

    async fn read_floats(&self, floats: &Floats<'_>) -> Result<Vec<f32>> {
        let source = self.file(floats.file);
        let bytes = (floats.range.end - floats.range.start) as usize;
        let mut values = recycled(bytes / floats.encoding.size());
        for (piece, elements) in floats.pieces(source.piece()) {
            if !floats.encoding.decode(&source.read(piece.clone()).await?, &mut values[elements]) {
                return Err(self.not_finite(floats));
            }
            source.release(piece);
        }
        Ok(values)
    }

    /// The error of a tensor that holds a NaN or an infinity.
    pub(super) fn not_finite(&self, floats: &Floats<'_>) -> Error {
        let place = format!("{}, tensor {}", self.files.label_at(floats.file), floats.name);
        let remedy = "download the file again; if it stays so, the model itself is broken".into();
        Error::NotFinite { place, remedy }
    }
}

/// Whether a file of this name is part of a checkpoint; a model directory may hold others.
pub fn belongs(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    name == CONFIG_FILE || weights || is_sidecar(name)
}

/// Whether a file goes along with the model: configuration other than `config.json`, tokenizer, templates, remote code, licence.
fn is_sidecar(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let known = matches!(extension, "json" | "jinja" | "model" | "tiktoken" | "txt" | "py");
    let described_elsewhere = name == CONFIG_FILE || name.ends_with(".index.json");
    !name.starts_with('.')
        && !described_elsewhere
        && (known || name.starts_with("LICENSE") || name.starts_with("NOTICE"))
}
