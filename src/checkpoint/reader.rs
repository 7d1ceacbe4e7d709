//! Opens a checkpoint and reads its tensors. All tensors are checked against `config.json` first, then read one by one.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::format::{PackedLayer, Part, PartData};
use super::formats::{DESCRIPTION_FILE, Packing};
use super::shards::{Files, Tensor};
use super::source::{Source, pieces};
use crate::device::recycled;
use crate::family::ModelConfig;
use crate::family::config::fields::Fields;
use crate::ops::widen::Encoding;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

pub(super) const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// An open checkpoint: a model directory, the bundled model, or files that a browser was given.
///
/// Opening reads only the headers and checks name, type and shape of every tensor of the model. Weights are read on
/// request, as f32. A quantized layer reads like any other tensor: it is dequantized to s·(q − z).
pub struct Checkpoint {
    files: Files,
    directory: Option<PathBuf>,
    config: ModelConfig,
    raw_config: Map<String, Value>,
    /// How quantized layers are stored. `None` for a checkpoint without a quantization configuration.
    packing: Option<Packing>,
    tensors: BTreeMap<String, Tensor>,
    shapes: HashMap<String, Vec<usize>>,
}

/// The place of a float tensor, or of some of its rows, in a weight file.
pub(super) struct Floats<'a> {
    name: &'a str,
    /// Index of the file.
    pub file: usize,
    pub encoding: Encoding,
    /// Byte range, from the start of the file.
    range: Range<u64>,
}

/// A layer that is stored quantized, with the reader of its layout.
#[derive(Clone, Copy)]
struct Packed<'a> {
    packing: &'a Packing,
    /// Module path.
    module: &'a str,
}

impl Packed<'_> {
    /// The tensors that store the weight. `shape`: the shape of the weight, `[rows, columns]`.
    fn parts(&self, shape: &[usize]) -> Result<Vec<Part>> {
        Ok(self.packing.layers.parts(self.module, matrix(shape)?))
    }
}

/// Takes `shape` as that of a matrix, `[rows, columns]`. Errors: `Error::Shape` if it has another number of dimensions.
fn matrix(shape: &[usize]) -> Result<[usize; 2]> {
    let [rows, columns] = *shape else {
        return Err(Error::shape("Checkpoint", format!("a quantized tensor of shape {shape:?}")));
    };
    Ok([rows, columns])
}

impl Floats<'_> {
    /// Cuts the range into pieces of at most `size` bytes, but at least one element. Gives the byte range of each piece
    /// in the file and its range of elements.
    pub fn pieces(&self, size: u64) -> impl Iterator<Item = (Range<u64>, Range<usize>)> {
        let (start, width) = (self.range.start, self.encoding.size() as u64);
        let element = move |byte: u64| ((byte - start) / width) as usize;
        let pieces = pieces(self.range.clone(), (size / width).max(1) * width);
        pieces.map(move |piece| (piece.clone(), element(piece.start)..element(piece.end)))
    }
}

impl Checkpoint {
    /// Opens the model directory at `path`.
    ///
    /// Errors: `Error::Io` if the directory or a file cannot be opened; otherwise as [`Checkpoint::from_sources`].
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

    /// Opens a checkpoint from its files. `place` is the name of the checkpoint in messages.
    ///
    /// Errors: `Error::Input` if config.json is missing, if a file is damaged or describes a model or format that this
    /// crate cannot read, or if a tensor is missing or has another type or shape than config.json says.
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
            // Older checkpoints have their quantization configuration only in this file.
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

    /// The name of the checkpoint in messages: its directory, or the name of a bundled model.
    pub fn name(&self) -> &str {
        &self.files.place
    }

    /// The directory from which the checkpoint was opened, if any.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The content of `config.json`, checked.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The JSON object in `config.json`, unchanged, with the keys in file order.
    pub fn raw_config(&self) -> &Map<String, Value> {
        &self.raw_config
    }

    /// Number of parameters of the model. A quantized layer counts with the elements of its weight.
    pub fn parameters(&self) -> u64 {
        self.shapes.values().map(|shape| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Total size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.sources.iter().map(|source| source.len()).sum()
    }

    /// Reads the tokenizer. Errors: `Error::Input` if tokenizer.json is missing or cannot be used.
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

    /// The token ids under `key`, such as `eos_token_id`, in generation_config.json or, if they are missing there, in
    /// config.json. Empty if neither file has the key.
    pub async fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        if let Some(Value::Object(object)) = self.files.json(GENERATION_CONFIG_FILE).await? {
            let ids = Fields { subject: &self.files.label(GENERATION_CONFIG_FILE), object: &object }.token_ids(key)?;
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        Fields { subject: &self.files.label(CONFIG_FILE), object: &self.raw_config }.token_ids(key)
    }

    /// The sidecar files: tokenizer, chat template, licence and other files beside the weights that go into every copy
    /// of the model.
    pub fn sidecars(&self) -> impl Iterator<Item = &dyn Source> {
        let kept = |name: &str| is_sidecar(name) && name != DESCRIPTION_FILE;
        self.files.sources.iter().map(AsRef::as_ref).filter(move |source| kept(source.name()))
    }

    /// Shape of the tensor `name`. For a quantized layer, this is the shape of the dequantized weight.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        let shape = self.shapes.get(name).or_else(|| self.tensors.get(name).map(|tensor| &tensor.shape));
        shape.map(Vec::as_slice).ok_or_else(|| self.missing(name))
    }

    /// Element type of the tensor `name`. For a quantized layer, this is the element type of the scales.
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

    /// Name of the layout of the quantized layers, such as "GPTQ". `None` for a model that is not quantized.
    pub fn quantized_layout(&self) -> Option<&'static str> {
        self.packing.as_ref().map(|packing| packing.layout)
    }

    /// Reads the whole tensor `name` as f32, row-major.
    ///
    /// Errors: `Error::NotFinite` if the tensor holds a NaN or an infinity.
    pub async fn read(&self, name: &str) -> Result<Vec<f32>> {
        match self.packed(name) {
            Some(packed) => self.read_packed(packed, self.shape(name)?).await,
            None => self.read_floats(&self.floats(name)?).await,
        }
    }

    /// Reads the rows `rows` of the tensor `name` as f32, along its first dimension. Errors: as [`Checkpoint::read`],
    /// and `Error::Shape` if the tensor lacks these rows.
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

    /// The place of the float tensor `name` in its file.
    pub(super) fn floats<'a>(&self, name: &'a str) -> Result<Floats<'a>> {
        let tensor = self.tensor(name)?;
        Ok(Floats { name, file: tensor.file, encoding: self.encoding(name, tensor)?, range: tensor.range.clone() })
    }

    /// The place of the rows `rows` of the float tensor `name` in its file.
    pub(super) fn float_rows<'a>(&self, name: &'a str, rows: Range<usize>) -> Result<Floats<'a>> {
        let floats = self.floats(name)?;
        let stride = (self.row_width(name, &rows)? * floats.encoding.size()) as u64;
        let at = |row: usize| floats.range.start + row as u64 * stride;
        Ok(Floats { range: at(rows.start)..at(rows.end), ..floats })
    }

    /// Elements per row of the tensor `name`. Errors: `Error::Shape` if the tensor lacks the rows `rows`.
    fn row_width(&self, name: &str, rows: &Range<usize>) -> Result<usize> {
        match self.shape(name)? {
            [count, width @ ..] if rows.start <= rows.end && rows.end <= *count => Ok(width.iter().product()),
            shape => Err(Error::shape("rows of a tensor", format!("rows {rows:?} of {name} with shape {shape:?}"))),
        }
    }

    /// Announces that all tensors whose names start with `prefix` will be read soon.
    pub fn prefetch(&self, prefix: &str) {
        let below = self.tensors.range(prefix.to_string()..).take_while(|(name, _)| name.starts_with(prefix));
        below.for_each(|(_, tensor)| self.file(tensor.file).prefetch(tensor.range.clone()));
    }

    /// Names of all stored tensors, sorted.
    pub(super) fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The place, type and shape of a stored tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The file at `index`, as counted in [`Tensor::file`].
    pub(super) fn file(&self, index: usize) -> &dyn Source {
        &*self.files.sources[index]
    }

    /// The packed layer that stores the weight `name`, or `None` if the weight is not quantized.
    fn packed<'a>(&'a self, name: &'a str) -> Option<Packed<'a>> {
        let packing = self.packing.as_ref()?;
        let module = name.strip_suffix(".weight")?;
        let holds = packing.layers.holds(module, &|tensor| self.tensors.contains_key(tensor));
        holds.then_some(Packed { packing, module })
    }

    /// The error for a tensor that the checkpoint lacks.
    fn missing(&self, name: &str) -> Error {
        Error::input(
            &self.files.place,
            format!("no tensor {name}"),
            "every tensor of the model that config.json describes",
            "download the checkpoint again, or correct config.json",
        )
    }

    /// Checks that every tensor of the model is present, with the right type and shape.
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

    /// The tensor `name`. Errors: `Error::Input` if it is missing, has another shape, or is not of a float type.
    fn check_tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.tensor(name)?;
        self.check_shape(name, tensor, shape)?;
        self.encoding(name, tensor).map(|_| tensor)
    }

    /// The encoding of a float tensor. Errors: `Error::Input` if its element type is not F32, F16 or BF16.
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

    /// Checks the tensors of a packed layer. `shape`: the shape of its weight.
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

    /// The error for a tensor that holds a NaN or an infinity.
    pub(super) fn not_finite(&self, floats: &Floats<'_>) -> Error {
        let place = format!("{}, tensor {}", self.files.label_at(floats.file), floats.name);
        let remedy = "download the file again; if it stays so, the model itself is broken".into();
        Error::NotFinite { place, remedy }
    }
}

/// Whether a file called `name` is part of a checkpoint. A model directory may hold other files.
pub fn belongs(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    name == CONFIG_FILE || weights || is_sidecar(name)
}

/// Whether `name` is a sidecar file: configuration other than `config.json`, tokenizer, templates, remote code,
/// licence.
fn is_sidecar(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let known = matches!(extension, "json" | "jinja" | "model" | "tiktoken" | "txt" | "py");
    let described_elsewhere = name == CONFIG_FILE || name.ends_with(".index.json");
    !name.starts_with('.')
        && !described_elsewhere
        && (known || name.starts_with("LICENSE") || name.starts_with("NOTICE"))
}
