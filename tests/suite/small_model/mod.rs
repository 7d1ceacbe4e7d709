//! A checkpoint small enough to take apart: one block, 32 wide, F32, with random weights.

use std::path::Path;
use std::sync::LazyLock;

use aquatint::checkpoint::format::{GridWish, Prepared};
use aquatint::checkpoint::{Checkpoint, Dtype, MemorySource, Source};
use aquatint::ops::grid::{GridSpec, ScaleType, Steps, Zero};
use aquatint::{ModelConfig, Result};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// A tensor as it goes into a file.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.into(), dtype: "F32", shape: shape.into(), bytes }
    }
}

pub struct Model {
    pub config: Value,
    pub tensors: Vec<Stored>,
}

impl Model {
    /// A Llama whose configuration is changed by `edit` first; the tensors fit it.
    pub fn new(edit: impl FnOnce(&mut Value)) -> Self {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 64,
            "tie_word_embeddings": false,
        });
        edit(&mut config);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let expected =
            ModelConfig::parse(&config.to_string(), "config.json").expect("a good config").expected_tensors();
        let tensors = expected.iter().map(|(name, shape)| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
            Stored::f32(name, shape, &values)
        });
        Self { tensors: tensors.collect(), config }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of that name")
    }

    /// The weights as one safetensors file.
    pub fn weights(&self) -> Vec<u8> {
        safetensors_file(self.tensors.iter())
    }

    pub async fn open(&self) -> Result<Checkpoint> {
        open(vec![("config.json", self.config.to_string().into()), ("model.safetensors", self.weights())]).await
    }

    pub fn save(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(directory.join("model.safetensors"), self.weights()).unwrap();
    }
}

pub fn safetensors_file<'a>(tensors: impl Iterator<Item = &'a Stored>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A file with the given header and data, right or wrong.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

pub async fn open(files: Vec<(&str, Vec<u8>)>) -> Result<Checkpoint> {
    let source = |(name, bytes): (&str, Vec<u8>)| Box::new(MemorySource::new(name, bytes)) as Box<dyn Source>;
    Checkpoint::from_sources("model", files.into_iter().map(source).collect()).await
}

/// A wish for a grid in a layer of a small model whose floats are F32.
pub fn wish(bits: u32, group_size: usize, symmetric: bool) -> GridWish<'static> {
    static CONFIG: LazyLock<ModelConfig> =
        LazyLock::new(|| ModelConfig::from_value(&Model::new(|_| {}).config, "config.json").unwrap());
    let (config, prepared) = (&*CONFIG, &Prepared::Nothing);
    GridWish { bits, group_size, symmetric, mixture: None, float: Dtype::F32, config, prepared }
}

/// A layer with random codes, scales and offsets on `grid`.
pub fn random_on(
    grid: GridSpec,
    name: &str,
    [rows, columns]: [usize; 2],
    seed: u64,
) -> aquatint::stored::QuantizedLinear {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let groups = columns / grid.group_size;
    let kind = match grid.scale {
        Steps::Own(kind) => kind,
        Steps::Shared { .. } => ScaleType::F16,
    };
    let (mut units, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(shared) = grid.shared_groups() {
        let kinds = if grid.has_offsets() { 2 } else { 1 };
        units = (0..kinds * rows * (groups / shared)).map(|_| kind.round(rng.random_range(0.001..0.1))).collect();
    }
    for cell in 0..rows * groups {
        match grid.scale {
            Steps::Own(_) => {
                let sign = if grid.signed && rng.random_bool(0.5) { -1.0 } else { 1.0 };
                scales.push(kind.round(sign * rng.random_range(0.001..0.1)));
                zeros.push(match grid.zero {
                    Zero::Fixed(code) => code as f32,
                    Zero::Code => f32::from(rng.random_range(0..=grid.top() as u8)),
                    Zero::Offset(_) => kind.round(rng.random_range(-1.0..1.0)),
                });
            }
            Steps::Shared { bits, signed, groups: shared } => {
                let top = (1i32 << bits) - 1;
                let numbers = if signed { -(top + 1) / 2..=top / 2 } else { 1..=top };
                let number: i32 = rng.random_range(numbers);
                scales.push(units[cell / shared] * if number == 0 { 1.0 } else { number as f32 });
                zeros.push(match grid.zero {
                    Zero::Fixed(code) => code as f32,
                    _ => -units[units.len() / 2 + cell / shared] * rng.random_range(0..=top) as f32,
                });
            }
        }
    }
    let codes = (0..rows * columns).map(|_| rng.random_range(0..=grid.top() as u8)).collect();
    aquatint::stored::QuantizedLinear { name: name.to_string(), rows, columns, grid, codes, scales, zeros, units }
}

/// A layer with random codes at the given settings.
pub fn random_layer(
    rng: &mut impl Rng,
    spec: &aquatint::family::LinearSpec,
    settings: &aquatint::checkpoint::QuantizationSettings,
) -> aquatint::stored::QuantizedLinear {
    let group_size = settings.group_size.unwrap_or(spec.columns);
    let cells = spec.rows * (spec.columns / group_size);
    let limit = ((1u16 << settings.bits) - 1) as u8;
    let grid = settings.grid(spec.columns, settings.bits);
    let zero = |rng: &mut _| match grid.zero {
        Zero::Fixed(middle) => middle as f32,
        _ => f32::from(RngExt::random_range(rng, 0..=limit)),
    };
    aquatint::stored::QuantizedLinear {
        name: spec.name.clone(),
        rows: spec.rows,
        columns: spec.columns,
        grid,
        codes: (0..spec.rows * spec.columns).map(|_| rng.random_range(0..=limit)).collect(),
        scales: (0..cells).map(|_| ScaleType::F16.round(rng.random_range(0.001..0.1))).collect(),
        zeros: (0..cells).map(|_| zero(rng)).collect(),
        units: Vec::new(),
    }
}
