//! Opens a checkpoint and reads its tensors. All tensors are checked against `config.json` first, then read one by one.

mod check;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::floats;
use super::format::Part;
use super::formats::DESCRIPTION_FILE;
use super::gguf::{self, read::GgufFile};
use super::layout::{BROKEN, Origin, PackedWeight, PartData};
use super::layouts::Packing;
use super::passengers::Unused;
use super::shards::{CONFIG_FILE, Files, Tensor, is_sidecar};
use super::source::{Source, pieces};
use crate::device::recycled;
use crate::family::ModelConfig;
use crate::family::config::fields::Fields;
use crate::ops::widen::Encoding;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

const TOKENIZER_FILE: &str = "tokenizer.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// An open checkpoint: a model directory, the bundled model, or files that a browser was given.
///
/// Opening reads only the headers. It checks name, type and shape of every tensor of the model, and that the files hold
/// no tensor without a known purpose. Weights are read on request, as f32. A packed weight, quantized or in low
/// precision, reads like any other tensor.
pub struct Checkpoint {
    files: Files,
    directory: Option<PathBuf>,
    config: ModelConfig,
    raw_config: Map<String, Value>,
    /// How packed weights are stored. `None` for a checkpoint without a quantization configuration.
    packing: Option<Packing>,
    /// The float type of the model, which packed weights get in a copy.
    widened: Dtype,
    tensors: BTreeMap<String, Tensor>,
    shapes: HashMap<String, Vec<usize>>,
    /// Names of the weights that are stored as `[inputs, outputs]`, unless they are packed. Everything outside sees
    /// `[outputs, inputs]`.
    transposed: BTreeSet<String>,
    unused: Unused,
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

/// A weight that is stored packed, with the reader of its layout.
struct Packed<'a> {
    packing: &'a Packing,
    /// Tensor name of the weight.
    name: &'a str,
    /// Rows and columns. All dimensions but the last count as rows.
    shape: [usize; 2],
    /// The tensors that store it.
    parts: Vec<Part>,
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
    /// Opens the model directory, or the GGUF file, at `path`.
    ///
    /// Errors: `Error::Io` if the directory or a file cannot be opened; otherwise as [`Checkpoint::from_sources`].
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn open(path: &Path) -> Result<Self> {
        let refuse = |source| {
            let remedy = "give the directory of a model, with config.json and safetensors files".into();
            Error::Io { path: path.to_owned(), action: "read", source, remedy }
        };
        if path.is_file() {
            let file: Box<dyn Source> = Box::new(super::MappedFile::open(path)?);
            if !gguf::read::is_gguf(std::slice::from_ref(&file)) {
                let remedy = "give the directory of a model, or a GGUF file";
                return Err(Error::input(
                    path.display().to_string(),
                    "a file",
                    "a directory, or a file NAME.gguf",
                    remedy,
                ));
            }
            let mut checkpoint = Self::from_sources(&path.display().to_string(), vec![file]).await?;
            checkpoint.directory = Some(path.to_owned());
            return Ok(checkpoint);
        }
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for entry in std::fs::read_dir(path).map_err(refuse)? {
            let file = entry.map_err(refuse)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if file.is_file() && super::belongs(&name) {
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
    /// crate cannot read, if a tensor is missing or has another type or shape than config.json says, or if a tensor is
    /// there that has no known purpose.
    pub async fn from_sources(place: &str, mut sources: Vec<Box<dyn Source>>) -> Result<Self> {
        let mut gguf = None;
        if gguf::read::is_gguf(&sources) {
            let GgufFile { sources: described, tensors, packing } = GgufFile::open(place, sources.remove(0)).await?;
            (sources, gguf) = (described, Some((tensors, packing)));
        } else {
            sources.sort_by(|a, b| a.name().cmp(b.name()));
        }
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
        let (config, tensors, packing) = match gguf {
            Some((tensors, packing)) => (config, tensors, Some(packing)),
            None => {
                let packing = files.packing(&raw_config).await?;
                let tensors = files.tensors().await?;
                (config.with_names_of(|name| tensors.contains_key(name)), tensors, packing)
            }
        };
        let widened = match &packing {
            Some(_) => named_dtype(Fields::new(&label, &raw_config))?,
            None => None,
        };
        let embedding = tensors.get(&config.embedding).map(|tensor| tensor.dtype);
        let widened = widened.or(embedding.filter(|dtype| is_float(*dtype))).unwrap_or(Dtype::F32);
        let shapes = config.expected_tensors().into_iter().collect();
        let stores_rows = packing.as_ref().is_some_and(|packing| packing.layers.stores_rows());
        let mut checkpoint = Self {
            transposed: if stores_rows { BTreeSet::new() } else { config.transposed_weights() },
            directory: None,
            unused: Unused::default(),
            files,
            config,
            raw_config,
            packing,
            widened,
            tensors,
            shapes,
        };
        checkpoint.check_tensors()?;
        checkpoint.unused = checkpoint.find_unused().await?;
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

    /// What people should know of the checkpoint before they use it, as sentences without a full stop.
    pub fn notes(&self) -> Vec<String> {
        let (unknown, label) = (&self.config.unknown_keys, self.files.label(CONFIG_FILE));
        let note = || format!("aquatint does not know these keys of {label} and ignores them: {}", unknown.join(", "));
        if unknown.is_empty() { Vec::new() } else { vec![note()] }
    }

    /// Number of parameters of the model. A quantized layer counts with the elements of its weight.
    pub fn parameters(&self) -> u64 {
        self.shapes.values().map(|shape| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Total size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        let all = self.files.sources.iter();
        // The files of a GGUF file follow from its metadata.
        let gguf = all.clone().find(|source| gguf::read::is_gguf_name(source.name()));
        gguf.map_or_else(|| all.map(|source| source.len()).sum(), |source| source.len())
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
            let ids = Fields::new(&self.files.label(GENERATION_CONFIG_FILE), &object).token_ids(key)?;
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        Fields::new(&self.files.label(CONFIG_FILE), &self.raw_config).token_ids(key)
    }

    /// The sidecar files: tokenizer, chat template, licence and other files beside the weights that go into every copy
    /// of the model.
    pub fn sidecars(&self) -> impl Iterator<Item = &dyn Source> {
        let kept = |name: &str| is_sidecar(name) && name != DESCRIPTION_FILE;
        self.files.sources.iter().map(AsRef::as_ref).filter(move |source| kept(source.name()))
    }

    /// Shape of the tensor `name`. For a packed weight, this is the shape of the numbers that it reads as.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        let shape = self.shapes.get(name).or_else(|| self.tensors.get(name).map(|tensor| &tensor.shape));
        shape.map(Vec::as_slice).ok_or_else(|| self.missing(name))
    }

    /// Element type of the tensor `name` in a copy of the model in which it is not quantized. Only a packed weight has
    /// another type in the files.
    ///
    /// A packed weight is copied in the type that config.json names under `dtype` or `torch_dtype`, or else in that of
    /// the embedding. Transformers dequantizes to this type, too. The product of an FP8 number and its scale is rounded
    /// to it, whereas BF16 holds every MXFP4 number exactly.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        if self.is_packed(name) { Ok(self.widened) } else { Ok(self.tensor(name)?.dtype) }
    }

    /// The float type of the model in a copy: that of its embedding, or the one to which packed weights are widened.
    pub fn float(&self) -> Dtype {
        self.widened
    }

    /// Whether the weight `name` is stored packed: quantized, or in low precision.
    pub fn is_packed(&self, name: &str) -> bool {
        self.packed(name).is_some()
    }

    /// Name of the layout of the packed weights, such as "FP8". `None` for a model whose weights are ordinary floats.
    pub fn layout(&self) -> Option<&'static str> {
        self.packing.as_ref().map(|packing| packing.layout.name)
    }

    /// Name of the layout of the quantized layers, such as "GPTQ". `None` for a model as it was released, which can be
    /// quantized, in whatever precision it is stored.
    pub fn quantized_layout(&self) -> Option<&'static str> {
        let quantized = self.packing.as_ref().filter(|packing| packing.layout.origin == Origin::Quantization);
        quantized.map(|packing| packing.layout.name)
    }

    /// Reads the whole tensor `name` as f32, row-major.
    ///
    /// Errors: `Error::NotFinite` if the tensor holds a NaN or an infinity.
    pub async fn read(&self, name: &str) -> Result<Vec<f32>> {
        match self.packed(name) {
            Some(packed) => self.read_packed(&packed, 0..packed.shape[0]).await,
            None => {
                let values = self.read_floats(&self.floats(name)?).await?;
                match (self.is_transposed(name), self.shape(name)?) {
                    (true, &[rows, columns]) => Ok(floats::transpose(&values, [columns, rows])),
                    _ => Ok(values),
                }
            }
        }
    }

    /// Whether the weight `name` is stored as `[inputs, outputs]`.
    fn is_transposed(&self, name: &str) -> bool {
        self.transposed.contains(name) && !self.is_packed(name)
    }

    /// Whether the elements of the tensor `name` lie in the file as ordinary floats in the order in which they are used.
    pub(super) fn is_plain(&self, name: &str) -> bool {
        !self.transposed.contains(name) && !self.is_packed(name)
    }

    /// Reads the rows `rows` of the tensor `name` as f32, along its first dimension. Errors: as [`Checkpoint::read`],
    /// and `Error::Shape` if the tensor lacks these rows.
    pub async fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        match self.packed(name) {
            Some(packed) => {
                let width = self.row_width(name, &rows)?;
                let inner = width / packed.shape[1].max(1);
                self.read_packed(&packed, rows.start * inner..rows.end * inner).await
            }
            None if self.is_plain(name) => self.read_floats(&self.float_rows(name, rows)?).await,
            None => {
                let width = self.row_width(name, &rows)?;
                let weight = self.read(name).await?;
                Ok(weight[rows.start * width..rows.end * width].to_vec())
            }
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

    /// The stored tensors that the model does not use.
    pub(super) fn unused(&self) -> &Unused {
        &self.unused
    }

    /// The place, type and shape of a stored tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.missing(name))
    }

    /// The file at `index`, as counted in [`Tensor::file`].
    pub(super) fn file(&self, index: usize) -> &dyn Source {
        &*self.files.sources[index]
    }

    /// How the weight `name` is packed, or `None` if it is stored as an ordinary tensor.
    fn packed<'a>(&'a self, name: &'a str) -> Option<Packed<'a>> {
        let packing = self.packing.as_ref()?;
        let shape = self.shape(name).ok()?;
        let stored = |name: &str| self.tensors.get(name).map(|tensor| (tensor.dtype, &tensor.shape[..]));
        let parts = packing.layers.parts(name, shape, &stored)?;
        let (&columns, outer) = shape.split_last()?;
        Some(Packed { packing, name, shape: [outer.iter().product(), columns], parts })
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

    /// Reads the rows `rows` of a packed weight. All dimensions but the last count as rows.
    async fn read_packed(&self, packed: &Packed<'_>, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut parts = Vec::new();
        for part in &packed.parts {
            parts.push(self.read_part(part).await?);
        }
        let Packed { packing, name, shape, .. } = *packed;
        packing.layers.unpack(&PackedWeight { place: self.name(), name, shape, rows, parts })
    }

    /// Reads a part of a packed weight. Its type and shape were checked when the checkpoint was opened.
    async fn read_part(&self, part: &Part) -> Result<PartData<'_>> {
        if is_float(part.dtype) {
            return Ok(PartData::Floats(self.read_floats(&self.floats(&part.name)?).await?));
        }
        let tensor = self.tensor(&part.name)?;
        let bytes = self.file(tensor.file).read(tensor.range.clone()).await?;
        match part.dtype.bitsize() {
            8 => Ok(PartData::Bytes(bytes)),
            _ => Ok(PartData::Words(bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect())),
        }
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
        Error::NotFinite { place, remedy: BROKEN.into() }
    }
}

/// Whether `dtype` is one of the float types that are read as they are.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The element type that a config.json names for the weights, if it names one. Errors: `Error::Input` if it is not a
/// float type.
fn named_dtype(config: Fields<'_>) -> Result<Option<Dtype>> {
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match config.text(key)? {
        None => Ok(None),
        Some("bfloat16") => Ok(Some(Dtype::BF16)),
        Some("float16") => Ok(Some(Dtype::F16)),
        Some("float32") => Ok(Some(Dtype::F32)),
        Some(_) => Err(config.refuse(key, "\"bfloat16\", \"float16\" or \"float32\"")),
    }
}
