//! Models that were released in low precision: weights in FP8 and MXFP4 read as the numbers that the types define, and a
//! copy of such a model is an ordinary one.

use std::fs;

use aquatint::checkpoint::formats::{float::Float, gptq::Gptq};
use aquatint::checkpoint::{
    Checkpoint, CheckpointWriter, DEFAULT_SHARD_LIMIT, DirectorySink, Dtype, Existing, LayerPlan, QuantizationSettings,
    WritePlan,
};
use aquatint::device::Device;
use aquatint::{Error, Result};
use half::{bf16, f16};
use pollster::block_on;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::{device_tests, recorder};
use crate::small_model::{Model, Stored, random_layer};

/// The number of an FP8 code: a sign, 4 bits of exponent and 3 of mantissa.
fn fp8(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The number of an MXFP4 code: a sign, 2 bits of exponent and 1 of mantissa.
fn fp4(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 3, i32::from(code >> 1 & 3), f64::from(code & 1));
    let magnitude = if exponent == 0 { mantissa / 2.0 } else { (1.0 + mantissa / 2.0) * 2f64.powi(exponent - 1) };
    if sign == 1 { -magnitude } else { magnitude }
}

fn is_linear(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

fn bytes(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Stored {
    Stored { name: name.into(), dtype, shape: shape.into(), bytes }
}

/// A model, and the numbers that each of its packed weights stands for.
type Packed = (Model, Vec<(String, Vec<f32>)>);

/// A small model whose linear weights `pack` stores.
fn packed(
    description: Value,
    mut pack: impl FnMut(&mut ChaCha8Rng, &str, [usize; 2]) -> (Vec<Stored>, Vec<f32>),
) -> Packed {
    let mut model = Model::new(|_| {});
    model.config["quantization_config"] = description;
    model.config["dtype"] = "bfloat16".into();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut weights = Vec::new();
    for tensor in std::mem::take(&mut model.tensors) {
        if is_linear(&tensor.name) {
            let (parts, values) = pack(&mut rng, &tensor.name, [tensor.shape[0], tensor.shape[1]]);
            model.tensors.extend(parts);
            weights.push((tensor.name, values));
        } else {
            model.tensors.push(tensor);
        }
    }
    (model, weights)
}

/// Any code but the two of NaN.
fn code(rng: &mut impl Rng) -> u8 {
    rng.random_range(0..127u8) | rng.random_range(0..2u8) << 7
}

/// A weight in FP8. A scale is shared by `block` rows and columns; the scales are called `suffix` and have the shape
/// `scales`, in F32 or BF16.
fn fp8_weight(
    rng: &mut impl Rng,
    (name, [rows, columns]): (&str, [usize; 2]),
    [height, width]: [usize; 2],
    (suffix, dtype, shape): (&str, &'static str, &[usize]),
) -> (Vec<Stored>, Vec<f32>) {
    let codes: Vec<u8> = (0..rows * columns).map(|_| code(rng)).collect();
    let across = columns.div_ceil(width);
    // Scales that BF16 holds.
    let scales: Vec<f32> =
        (0..rows.div_ceil(height) * across).map(|_| bf16::from_f32(rng.random_range(1e-4..1e-2)).to_f32()).collect();
    let value = |(at, &code): (usize, &u8)| {
        let scale = scales[at / columns / height * across + at % columns / width];
        (fp8(code) * f64::from(scale)) as f32
    };
    let values = codes.iter().enumerate().map(value).collect();
    let mut stored = Stored::f32(&name.replace(".weight", suffix), shape, &scales);
    if dtype == "BF16" {
        (stored.dtype, stored.bytes) = (dtype, scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect());
    }
    (vec![bytes(name, "F8_E4M3", &[rows, columns], codes), stored], values)
}

/// A model with scales in blocks of 24 by 20, which divide no side of a weight.
fn in_blocks() -> Packed {
    let description = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [24, 20],
        "modules_to_not_convert": ["lm_head"],
    });
    let mut number = 0;
    packed(description, |rng, name, [rows, columns]| {
        let shape = [rows.div_ceil(24), columns.div_ceil(20)];
        number += 1;
        let dtype = if number % 2 == 0 { "F32" } else { "BF16" };
        fp8_weight(rng, (name, [rows, columns]), [24, 20], (".weight_scale_inv", dtype, &shape))
    })
}

/// A model with one scale per weight, and one for the inputs of each layer.
fn per_tensor() -> Packed {
    let description = json!({ "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null });
    let mut number = 0;
    packed(description, |rng, name, shape| {
        number += 1;
        let scalar: &[usize] = if number % 2 == 0 { &[] } else { &[1] };
        let (mut parts, values) = fp8_weight(rng, (name, shape), shape, (".weight_scale_inv", "BF16", scalar));
        parts.push(Stored::f32(&name.replace(".weight", ".activation_scale"), scalar, &[0.5]));
        (parts, values)
    })
}

/// A model with one scale per row, as compressed-tensors stores it.
fn per_row() -> Packed {
    let weights = json!({ "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true });
    let description = json!({
        "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
    });
    packed(description, |rng, name, [rows, columns]| {
        fp8_weight(rng, (name, [rows, columns]), [1, columns], (".weight_scale", "F32", &[rows, 1]))
    })
}

/// A model in MXFP4. The tensors of every other weight are called after the layer.
fn mxfp4() -> Packed {
    let mut number = 0;
    packed(json!({ "quant_method": "mxfp4" }), |rng, name, [rows, columns]| {
        number += 1;
        let name = if number % 2 == 0 { name } else { name.strip_suffix(".weight").unwrap() };
        let blocks: Vec<u8> = (0..rows * columns / 2).map(|_| rng.random()).collect();
        let exponents: Vec<u8> = (0..rows * columns / 32).map(|_| rng.random_range(118..128)).collect();
        let value = |at: usize| {
            let code = blocks[at / 2] >> (4 * (at % 2)) & 15;
            (fp4(code) * 2f64.powi(i32::from(exponents[at / 32]) - 127)) as f32
        };
        let values = (0..rows * columns).map(value).collect();
        let parts = vec![
            bytes(&format!("{name}_blocks"), "U8", &[rows, columns / 32, 16], blocks.clone()),
            bytes(&format!("{name}_scales"), "U8", &[rows, columns / 32], exponents.clone()),
        ];
        (parts, values)
    })
}

/// All of them, each with the name of its layout.
fn all() -> [(&'static str, Packed); 4] {
    [("FP8", in_blocks()), ("FP8", per_tensor()), ("FP8", per_row()), ("MXFP4", mxfp4())]
}

device_tests!(weights_read_as_the_numbers_that_the_types_define: cpu, software_gpu);
fn weights_read_as_the_numbers_that_the_types_define(device: Device) {
    for (layout, (model, weights)) in all() {
        let source = block_on(model.open()).unwrap();
        assert_eq!((source.layout(), source.quantized_layout()), (Some(layout), None));
        assert_eq!(weights.len(), 7);
        for (name, values) in weights {
            assert!(source.is_packed(&name));
            assert_eq!(source.dtype(&name).unwrap(), Dtype::BF16);
            assert!(block_on(source.read(&name)).unwrap() == values, "{layout} {name}");
            let (count, width) = (source.shape(&name).unwrap()[0], source.shape(&name).unwrap()[1]);
            let mut rec = recorder(&device);
            let whole = block_on(source.load(&mut rec, &name)).unwrap();
            assert!(block_on(rec.read(&whole)).unwrap() == values, "{layout} {name}, {}", device.name());
            for rows in [3..5, 0..1, count - 9..count, 2..2] {
                let loaded = block_on(source.load_rows(&mut rec, &name, rows.clone())).unwrap();
                let expected = &values[rows.start * width..rows.end * width];
                assert!(block_on(rec.read(&loaded)).unwrap() == expected, "{layout} {name} {rows:?}");
            }
        }
        assert!(!source.is_packed("lm_head.weight"));
    }
}

/// A copy of `source` in which `up_proj` has random codes and all else stays.
fn copy(source: &Checkpoint, directory: &std::path::Path) -> WritePlan {
    let settings = QuantizationSettings { bits: 8, group_size: None, symmetric: true, mixture: None, damping: 0.01 };
    let mut layers = LayerPlan::all(source.config(), 8);
    layers.retain(|layer| layer.name.ends_with("up_proj"));
    let plan = block_on(WritePlan::new(source, &Gptq, settings, &layers, DEFAULT_SHARD_LIMIT)).unwrap();
    let sink = DirectorySink::new(directory, Existing::Refuse, None).unwrap();
    let mut writer = CheckpointWriter::new(source, plan.clone(), Box::new(sink)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for spec in source.config().linears().iter().filter(|spec| spec.name.ends_with("up_proj")) {
        block_on(writer.put_linear(&random_layer(&mut rng, spec, &settings).into())).unwrap();
    }
    block_on(writer.finish()).unwrap();
    plan
}

#[test]
fn layers_that_are_not_quantized_are_written_as_ordinary_floats() {
    for (dtype, name) in [(Dtype::BF16, "bfloat16"), (Dtype::F16, "float16"), (Dtype::F32, "float32")] {
        for (layout, (mut model, weights)) in all() {
            // An older key, and none: the embedding is F32.
            model.config.as_object_mut().unwrap().remove("dtype");
            if dtype != Dtype::F32 {
                model.config["torch_dtype"] = name.into();
            }
            let source = block_on(model.open()).unwrap();
            let home = tempfile::tempdir().unwrap();
            let out = home.path().join("out");
            let plan = copy(&source, &out);
            let written: u64 = fs::read_dir(&out).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
            assert_eq!(plan.bytes(), written);
            let read = block_on(Checkpoint::open(&out)).unwrap();
            assert_eq!(read.quantized_layout(), Some("GPTQ"));
            let file = fs::read(out.join("model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&file).unwrap();
            for (name, values) in weights.iter().filter(|(name, _)| !name.contains("up_proj")) {
                let rounded = |value: &f32| match dtype {
                    Dtype::BF16 => bf16::from_f32(*value).to_f32(),
                    Dtype::F16 => f16::from_f32(*value).to_f32(),
                    _ => *value,
                };
                let expected: Vec<f32> = values.iter().map(rounded).collect();
                assert_eq!(file.tensor(name).unwrap().dtype(), dtype, "{layout} {name}");
                assert!(block_on(read.read(name)).unwrap() == expected, "{layout} {name} in {dtype}");
            }
            let leftover = |name: &&str| name.contains("_scale") || name.contains("_blocks");
            assert_eq!(file.names().into_iter().find(leftover), None);
            assert_eq!(file.tensor("lm_head.weight").unwrap().dtype(), Dtype::F32, "it was an ordinary tensor");
        }
    }
}

#[test]
fn the_scales_of_inputs_are_left_out_and_passengers_are_widened() {
    let (mut model, _) = per_tensor();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let scales = (".weight_scale_inv", "BF16", &[1usize][..]);
    let (parts, values) = fp8_weight(&mut rng, ("mtp.fc.weight", [3, 5]), [3, 5], scales);
    model.tensors.extend(parts);
    model.tensors.push(Stored::f32("mtp.fc.activation_scale", &[1], &[0.5]));
    model.tensors.push(Stored::f32("mtp.norm.weight", &[5], &[1.0; 5]));
    let source = block_on(model.open()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let plan = copy(&source, &out);
    let [copied, left_out] = [plan.copied()[0], plan.left_out()[0]];
    assert_eq!((copied.part, copied.tensors, copied.bytes), ("MTP head", 2, 2 * 15 + 4 * 5));
    assert_eq!((left_out.part, left_out.tensors, left_out.bytes), ("input scales", 8, 4 * 8));
    let file = fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let expected: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    assert_eq!(file.tensor("mtp.fc.weight").unwrap().data(), expected);
    assert!(file.names().into_iter().all(|name| !name.contains("_scale")));
}

/// Checks that `result` is an error of one line that contains all `parts`.
#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

const WEIGHT: &str = "model.layers.0.self_attn.k_proj.weight";

#[test]
fn a_code_or_a_factor_that_is_no_number_is_found_when_the_weight_is_read() {
    for bad in [0x7f, 0xff] {
        let (mut model, _) = in_blocks();
        model.tensor(WEIGHT).bytes[77] = bad;
        let source = block_on(model.open()).unwrap();
        let result = block_on(source.read(WEIGHT));
        assert!(matches!(result, Err(Error::NotFinite { .. })));
        refused(result, &["model, tensor", WEIGHT, "NaN or infinite"]);
    }
    let (mut model, _) = mxfp4();
    let scales = model.tensors.iter_mut().find(|tensor| tensor.name.ends_with("_scales")).unwrap();
    let weight = format!("{}.weight", scales.name.trim_end_matches("_scales").trim_end_matches(".weight"));
    scales.bytes[9] = 255;
    refused(block_on(block_on(model.open()).unwrap().read(&weight)), &[&weight, "NaN or infinite"]);
    // A product that leaves the range of f32.
    let (mut model, _) = per_tensor();
    let scale = model.tensor(&WEIGHT.replace(".weight", ".weight_scale_inv"));
    (scale.dtype, scale.bytes) = ("F32", 3e38f32.to_le_bytes().into());
    refused(block_on(block_on(model.open()).unwrap().read(WEIGHT)), &[WEIGHT, "NaN or infinite"]);
}

#[test]
fn tensors_of_a_packed_weight_must_fit_each_other() {
    let scales = WEIGHT.replace(".weight", ".weight_scale_inv");
    let (mut model, _) = in_blocks();
    model.config["quantization_config"]["weight_block_size"] = json!([128, 128]);
    refused(block_on(model.open()), &["weight_scale_inv of shape", "expected [1, 1]"]);
    let (mut model, _) = in_blocks();
    model.tensors.retain(|tensor| tensor.name != scales);
    refused(block_on(model.open()), &[&format!("no tensor {scales}")]);
    let (mut model, _) = in_blocks();
    (model.tensor(&scales).dtype, model.tensor(&scales).bytes) = ("U8", vec![1; 2]);
    refused(block_on(model.open()), &[&scales, "U8", "F32, F16 or BF16"]);
    let (mut model, _) = in_blocks();
    model.config.as_object_mut().unwrap().remove("quantization_config");
    refused(block_on(model.open()), &["F8_E4M3"]);
    // Scales beside a float weight would be silently ignored.
    let (mut model, weights) = in_blocks();
    *model.tensor(WEIGHT) = Stored::f32(WEIGHT, &[16, 32], &weights[1].1);
    refused(block_on(model.open()), &[&format!("tensor {scales}, for which the model has no use")]);
    let (mut model, _) = mxfp4();
    let blocks = model.tensors.iter_mut().find(|tensor| tensor.name.ends_with("_blocks")).unwrap();
    blocks.dtype = "I8";
    refused(block_on(model.open()), &["_blocks of type I8", "expected U8", "the usual MXFP4 layout"]);
    let (mut model, _) = mxfp4();
    model.config["dtype"] = "float8_e4m3fn".into();
    refused(block_on(model.open()), &["\"dtype\": \"float8_e4m3fn\"", "\"bfloat16\""]);
}

#[test]
fn a_copy_that_does_not_fit_its_type_is_refused() {
    let (mut model, _) = per_tensor();
    model.config["dtype"] = "float16".into();
    let scale = model.tensor(&WEIGHT.replace(".weight", ".weight_scale_inv"));
    scale.bytes = bf16::from_f32(1e6).to_le_bytes().into();
    let source = block_on(model.open()).unwrap();
    let settings = QuantizationSettings { bits: 8, group_size: None, symmetric: true, mixture: None, damping: 0.01 };
    let plan = block_on(WritePlan::new(&source, &Float, settings, &[], DEFAULT_SHARD_LIMIT)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let sink = DirectorySink::new(&home.path().join("out"), Existing::Refuse, None).unwrap();
    let writer = CheckpointWriter::new(&source, plan, Box::new(sink)).unwrap();
    refused(block_on(writer.finish()), &[WEIGHT, "in F16", "\"dtype\" to \"float32\""]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}
