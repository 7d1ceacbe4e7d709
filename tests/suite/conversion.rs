//! What a format makes of tensors that are not quantized, and what it stores besides: names, element types, changed
//! values, tensors left out and added, and a container of one file.

use std::fs;
use std::path::Path;

use aquatint::checkpoint::change::Change;
use aquatint::checkpoint::format::{
    AddedTensor, GridWish, Part, PlacedTensor, PlannedLayer, PlannedModel, Prepared, Rest, RestTensor,
};
use aquatint::checkpoint::formats::float::Float;
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, Container, DirectorySink, Dtype, Existing, FileSink, Format, LayerPlan,
    QuantizationSettings, Sink, WritePlan,
};
use aquatint::family::LinearSpec;
use aquatint::ops::grid::{GridSpec, ScaleType};
use aquatint::stored::{Form, StoredLinear};
use aquatint::{Error, ModelConfig, Result};
use half::{bf16, f16};
use pollster::block_on;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::small_model::{Model, Stored, random_layer};

const SETTINGS: QuantizationSettings =
    QuantizationSettings { bits: 8, group_size: None, symmetric: true, mixture: None, damping: 0.01 };

const NORM: &str = "model.layers.0.input_layernorm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A format with a convention for every kind of tensor. Layers are stored as floats.
#[derive(Debug)]
struct Conventions {
    container: Container,
}

static IN_A_DIRECTORY: Conventions = Conventions { container: Container::Directory { written_for: "tests" } };
static IN_A_FILE: Conventions = Conventions { container: Container::File { name: "model.bin", alignment: 64, head } };

/// The names and places of the tensors, as JSON that ends in a line feed.
fn head(_: &PlannedModel, tensors: &[PlacedTensor]) -> Result<Vec<u8>> {
    let tensor = |placed: &PlacedTensor| json!([placed.part.name, placed.offset, placed.bytes]);
    let tensors: Vec<Value> = tensors.iter().map(tensor).collect();
    Ok(format!("{}\n", json!(tensors)).into_bytes())
}

impl Format for Conventions {
    fn name(&self) -> &'static str {
        "conventions"
    }

    fn summary(&self) -> &'static str {
        "Only for tests"
    }

    fn stores(&self, _: Form) -> bool {
        true
    }

    fn grid(&self, _: &LinearSpec, wish: GridWish<'_>) -> Result<GridSpec> {
        Ok(wish.with_zeros(ScaleType::F16))
    }

    fn container(&self) -> Container {
        self.container
    }

    fn stored_name(&self, _: (&ModelConfig, &Prepared), name: &str) -> Result<String> {
        Ok(name.replace("model.layers.", "blk."))
    }

    fn rest(&self, model: &PlannedModel, tensor: &RestTensor<'_>) -> Result<Rest> {
        assert_eq!(model.float, Dtype::F32);
        let convert = |dtype, change| Ok(Rest::Convert { dtype, change });
        match tensor.name {
            name if name.ends_with("norm.weight") => convert(Dtype::F32, Change::PlusOne),
            name if name.ends_with("q_proj.weight") => {
                // Two heads of 16 rows, whose halves move into each other.
                let rows = (0..2).flat_map(|head| (0..8).flat_map(move |j| [16 * head + j, 16 * head + 8 + j]));
                convert(Dtype::F32, Change::Rows(rows.collect()))
            }
            name if name.ends_with("down_proj.weight") => convert(Dtype::F16, Change::None),
            EMBEDDING => convert(Dtype::BF16, Change::None),
            "lm_head.weight" => Ok(Rest::LeaveOut),
            _ if tensor.passenger.is_some() => Ok(Rest::LeaveOut),
            _ => Ok(Rest::Keep),
        }
    }

    fn added(&self, _: &PlannedModel) -> Vec<AddedTensor> {
        let part = Part { name: "factors".to_owned(), dtype: Dtype::F32, shape: vec![3] };
        vec![AddedTensor { part, values: vec![1.0, 2.0, 8.0] }]
    }

    fn parts(&self, layer: &PlannedLayer) -> Vec<Part> {
        let [part] = &Float.parts(layer)[..] else { panic!("one tensor") };
        vec![Part { name: format!("{}.weight", layer.module), ..part.clone() }]
    }

    fn pack(&self, layer: &PlannedLayer, linear: &StoredLinear) -> Result<Vec<Vec<u8>>> {
        Float.pack(layer, linear)
    }
}

/// A model with an embedding of more than one piece, and with a passenger.
fn model() -> Model {
    let mut model = Model::new(|config| config["vocab_size"] = 70_000.into());
    model.tensors.push(Stored { name: "visual.odd".into(), dtype: "U8", shape: vec![3], bytes: vec![1, 2, 3] });
    model
}

fn plan(source: &Checkpoint, format: &'static dyn Format) -> WritePlan {
    let layers = LayerPlan { name: "model.layers.0.mlp.up_proj".to_owned(), bits: 8 };
    block_on(WritePlan::new(source, format, SETTINGS, &[layers], 1 << 30)).unwrap()
}

/// Writes the plan with new values of a norm and a random layer. Returns the layer.
fn write(source: &Checkpoint, plan: WritePlan, sink: impl Sink + 'static) -> StoredLinear {
    let spec = source.config().linears().into_iter().find(|linear| linear.name.ends_with("up_proj")).unwrap();
    let layer = StoredLinear::from(random_layer(&mut ChaCha8Rng::seed_from_u64(1), &spec, &SETTINGS));
    let mut writer = CheckpointWriter::new(source, plan, Box::new(sink)).unwrap();
    writer.put_tensor(NORM.to_owned(), &[0.5; 32]).unwrap();
    let late = writer.put_tensor("lm_head.weight".to_owned(), &vec![0.0; 70_000 * 32]);
    assert!(matches!(late, Err(Error::Shape { .. })), "it is not stored");
    block_on(writer.put_linear(&layer)).unwrap();
    block_on(writer.finish()).unwrap();
    layer
}

fn to_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The tensors that the format stores, with their bytes.
fn expected(source: &Checkpoint, layer: &StoredLinear) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &str| block_on(source.read(name)).unwrap();
    let embedding = read(EMBEDDING).into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes());
    let (queries, down) = (read("model.layers.0.self_attn.q_proj.weight"), read("model.layers.0.mlp.down_proj.weight"));
    // Two heads of 16 rows; 32 inputs.
    let rows = (0..2).flat_map(|head| (0..8).flat_map(move |j| [16 * head + j, 16 * head + 8 + j]));
    let queries = rows.flat_map(|row| queries[32 * row..32 * (row + 1)].to_vec());
    let down = down.into_iter().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
    vec![
        (EMBEDDING, embedding.collect()),
        ("blk.0.input_layernorm.weight", to_bytes([1.5; 32])),
        ("blk.0.post_attention_layernorm.weight", {
            to_bytes(read("model.layers.0.post_attention_layernorm.weight").into_iter().map(|value| value + 1.0))
        }),
        ("blk.0.self_attn.q_proj.weight", to_bytes(queries)),
        ("blk.0.self_attn.v_proj.weight", to_bytes(read("model.layers.0.self_attn.v_proj.weight"))),
        ("blk.0.mlp.down_proj.weight", down),
        ("blk.0.mlp.up_proj.weight", to_bytes(layer.dequantize())),
        ("factors", to_bytes([1.0, 2.0, 8.0])),
    ]
}

#[test]
fn a_format_renames_converts_leaves_out_and_adds_tensors() {
    let source = block_on(model().open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let plan = plan(&source, &IN_A_DIRECTORY);
    let planned = plan.bytes();
    let left_out: Vec<(&str, u64)> = plan.left_out().iter().map(|group| (group.part, group.bytes)).collect();
    assert_eq!(left_out, [("model", 4 * 32 * 70_000), ("vision tower", 3)]);
    assert_eq!(plan.copied(), []);
    let layer = write(&source, plan, DirectorySink::new(&out, Existing::Refuse, None).unwrap());
    let written: u64 = fs::read_dir(&out).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(planned, written);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, content) in expected(&source, &layer) {
        assert!(file.tensor(name).unwrap().data() == content, "{name}");
    }
    assert_eq!(file.tensor("blk.0.mlp.down_proj.weight").unwrap().shape(), [32, 64]);
    assert_eq!(file.len(), source.config().expected_tensors().len() - 1 + 1);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "tests");
}

#[test]
fn one_file_has_a_head_and_aligned_tensors_and_nothing_else() {
    let source = block_on(model().open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("new/parents/model.any");
    let plan = plan(&source, &IN_A_FILE);
    assert!(matches!(plan.container(), Container::File { name: "model.bin", .. }));
    let planned = plan.bytes();
    let layer = write(&source, plan, FileSink::new(&out, Existing::Refuse, None).unwrap());
    let bytes = fs::read(&out).unwrap();
    assert_eq!(planned, bytes.len() as u64);
    assert_eq!(fs::read_dir(out.parent().unwrap()).unwrap().count(), 1);
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let tensors: Vec<(String, usize, usize)> = serde_json::from_slice(&bytes[..end]).unwrap();
    let start = end.next_multiple_of(64);
    assert!(bytes[end..start].iter().all(|byte| *byte == 0));
    let mut offset = 0;
    for (name, place, size) in &tensors {
        assert_eq!(*place, offset, "{name}");
        offset = (place + size).next_multiple_of(64);
        assert!(bytes[start + place + size..start + offset].iter().all(|byte| *byte == 0), "gap after {name}");
    }
    assert_eq!(start + offset, bytes.len());
    for (name, content) in expected(&source, &layer) {
        let (_, place, size) = tensors.iter().find(|(other, ..)| other == name).unwrap();
        assert!(bytes[start + place..][..*size] == content, "{name}");
    }
}

fn file_sink(out: &Path, existing: Existing, model: Option<&Path>) -> Result<FileSink> {
    FileSink::new(out, existing, model)
}

#[test]
fn a_file_is_replaced_only_when_the_new_one_is_whole() {
    let source = block_on(model().open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("model.any");
    fs::write(&out, "precious").unwrap();
    let refused = file_sink(&out, Existing::Refuse, None).unwrap_err().to_string();
    assert!(refused.contains("a file that exists") && refused.contains("Existing::Replace"), "{refused}");

    let start = || {
        let sink = file_sink(&out, Existing::Replace, None).unwrap();
        CheckpointWriter::new(&source, plan(&source, &IN_A_FILE), Box::new(sink)).unwrap()
    };
    let mut abandoned = start();
    assert!(block_on(abandoned.put_linear(&StoredLinear::Dense(other_layer()))).is_err());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "a temporary file lies beside");
    drop(abandoned);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    write(&source, plan(&source, &IN_A_FILE), file_sink(&out, Existing::Replace, None).unwrap());
    assert_eq!(fs::metadata(&out).unwrap().len(), plan(&source, &IN_A_FILE).bytes());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

/// A layer that is not planned.
fn other_layer() -> aquatint::stored::DenseLinear {
    aquatint::stored::DenseLinear { name: "other".to_owned(), rows: 1, columns: 1, weight: vec![0.0] }
}

#[test]
fn directories_and_files_of_the_model_are_no_place_for_one_file() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("model");
    model().save(&directory);
    let refused = |out: &Path, model: Option<&Path>, found: &str| {
        let message = file_sink(out, Existing::Replace, model).unwrap_err().to_string();
        assert!(message.contains(found) && message.contains("choose another out"), "{message}");
    };
    refused(&directory, None, "found a directory");
    refused(Path::new("/"), None, "without a last name");
    let weights = directory.join("model.safetensors");
    refused(&weights, Some(&directory), "a file of the model itself");
    refused(&weights, Some(&weights), "a file of the model itself");
    assert!(file_sink(&directory.join("model.gguf"), Existing::Refuse, Some(&directory)).is_ok());
    assert!(file_sink(&weights, Existing::Replace, None).is_ok());

    // A file that appears while the other one is written stays.
    let out = home.path().join("new/model.any");
    let mut sink = file_sink(&out, Existing::Refuse, None).unwrap();
    block_on(sink.create("model.bin")).unwrap();
    block_on(sink.write(b"new")).unwrap();
    assert!(block_on(sink.create("second")).is_err(), "there is one file");
    fs::write(&out, "precious").unwrap();
    assert!(block_on(sink.commit()).is_err());
    sink.abort();
    assert_eq!(fs::read(&out).unwrap(), b"precious");
}
