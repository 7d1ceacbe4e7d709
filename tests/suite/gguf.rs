//! GGUF below the level of models: heads and blocks against gguf-py (tests/fixtures/formats/blocks.py), the choice of types
//! against llama.cpp (mixtures.py beside it), and what is refused.

use std::ops::Range;

use aquatint::checkpoint::MemorySource;
use aquatint::checkpoint::gguf::blocks::{BlockCodes, pack, unpack};
use aquatint::checkpoint::gguf::container::{Head, TensorInfo, alignment, head, padding, read_head};
use aquatint::checkpoint::gguf::metadata::{Metadata, Value};
use aquatint::checkpoint::gguf::mixtures::{Mixture, ModelFacts, Role, TensorFacts, is_quantized};
use aquatint::checkpoint::gguf::types::{BlockGrid, BlockType, ScaleStorage, Zero};
use aquatint::{Error, Result};
use half::f16;
use pollster::block_on;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FIXTURE: &[u8] = include_bytes!("../fixtures/formats/blocks.gguf");

fn read(bytes: &[u8]) -> Result<Head> {
    block_on(read_head(&MemorySource::new("a.gguf", bytes.to_vec()), "a.gguf"))
}

fn bytes_at(range: &Range<u64>) -> &'static [u8] {
    &FIXTURE[range.start as usize..range.end as usize]
}

#[test]
fn blocks_stand_for_the_numbers_of_gguf_py() {
    let Head { tensors, .. } = read(FIXTURE).unwrap();
    assert_eq!(tensors.len(), 2 * 14);
    for pair in tensors.chunks(2) {
        let [blocks, expected] = pair else { panic!("an odd number of tensors") };
        let name = &blocks.info.name;
        assert_eq!((name.as_str(), format!("{name}.f32")), (blocks.info.block_type.name(), expected.info.name.clone()));
        assert_eq!(blocks.info.shape, expected.info.shape, "{name}");
        let found = unpack(blocks.info.block_type, bytes_at(&blocks.range)).unwrap();
        let expected = unpack(BlockType::F32, bytes_at(&expected.range)).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        assert_eq!(bits(&found), bits(&expected), "{name}");
    }
}

#[test]
fn values_of_every_type_are_read() {
    let Head { metadata, .. } = read(FIXTURE).unwrap();
    let expected = [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60000)),
        ("i16", Value::I16(-30000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-7)),
        ("f32", Value::F32(0.1)),
        ("bool", Value::Bool(true)),
        ("text", Value::Text("Grüße".to_string())),
        ("u64", Value::U64((1 << 63) + 1)),
        ("i64", Value::I64(-(1 << 62))),
        ("f64", Value::F64(0.1)),
    ];
    for (name, value) in expected {
        assert_eq!(metadata.get(&format!("list.{name}")), Some(&Value::List(vec![value.clone(), value.clone()])));
        assert_eq!(metadata.get(&format!("one.{name}")), Some(&value));
    }
}

#[test]
fn the_head_is_that_of_gguf_py_byte_for_byte() {
    let Head { metadata, tensors } = read(FIXTURE).unwrap();
    let infos: Vec<TensorInfo> = tensors.iter().map(|tensor| tensor.info.clone()).collect();
    let written = head(&metadata, &infos).unwrap();
    assert_eq!(written, FIXTURE[..tensors[0].range.start as usize]);
    let mut end = written.len() as u64;
    for tensor in &tensors {
        assert_eq!(tensor.range.start, end, "{}", tensor.info.name);
        let size = tensor.info.block_type.bytes_of(&tensor.info.shape).unwrap();
        end += size + padding(size, alignment(&metadata).unwrap());
    }
    assert_eq!(end, FIXTURE.len() as u64);
}

#[test]
fn two_bits_are_as_the_format_describes() {
    // A scale of −0.5, then four codes per byte from the low bits up: 0b11_10_01_00 has 0, 1, 2 and 3.
    let mut block = f16::from_f32(-0.5).to_le_bytes().to_vec();
    block.extend([0b1110_0100, 0b0000_0001].into_iter().chain([0b0101_0101; 14]));
    let mut expected = vec![0.5, 0.0, -0.5, -1.0, 0.0, 0.5, 0.5, 0.5];
    expected.resize(64, 0.0);
    assert_eq!(unpack(BlockType::Q2_0, &block).unwrap(), expected);
}

/// A random layer on the grid of a type, with numbers at the ends of their ranges.
struct Layer {
    shape: [usize; 2],
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    units: Vec<f32>,
    offset_units: Vec<f32>,
}

/// The least and the greatest small number of the scales.
fn ends(grid: &BlockGrid) -> Option<[i32; 2]> {
    match grid.scale {
        ScaleStorage::Small { bits, signed: true, .. } => Some([-(1 << (bits - 1)), (1 << (bits - 1)) - 1]),
        ScaleStorage::Small { bits, .. } => Some([0, (1 << bits) - 1]),
        _ => None,
    }
}

impl Layer {
    fn random(rng: &mut ChaCha8Rng, block_type: BlockType, shape: [usize; 2]) -> Self {
        let grid = block_type.grid().unwrap();
        let [rows, columns] = shape;
        let codes = (0..rows * columns).map(|_| rng.random_range(0..grid.codes) as u8).collect();
        let groups = rows * columns / grid.group_size;
        let units = rows * columns / block_type.block_weights();
        let half = |rng: &mut ChaCha8Rng| f16::from_f32(rng.random_range(-2.0..2.0)).to_f32();
        let mut layer = Self { shape, codes, scales: vec![], offsets: vec![], units: vec![], offset_units: vec![] };
        let offset = grid.zero == Zero::Offset;
        if let Some([least, greatest]) = ends(&grid) {
            layer.units = (0..units).map(|_| half(rng)).collect();
            // The first block has no scale, and so no unit.
            layer.units[0] = 0.0;
            let small = |rng: &mut ChaCha8Rng, group: usize| match group % 5 {
                0 => least as f32,
                1 => greatest as f32,
                _ => rng.random_range(least..=greatest) as f32,
            };
            let unit_of = |group: usize| group * units / groups;
            layer.scales = (0..groups).map(|group| layer.units[unit_of(group)] * small(rng, group)).collect();
            if offset {
                layer.offset_units = (0..units).map(|_| half(rng)).collect();
                layer.offsets =
                    (0..groups).map(|group| -layer.offset_units[unit_of(group)] * small(rng, group)).collect();
            }
            return layer;
        }
        layer.scales = match grid.scale {
            ScaleStorage::PowerOfTwo => (0..groups).map(|_| 2f32.powi(rng.random_range(-126..=123))).collect(),
            _ => (0..groups).map(|_| half(rng)).collect(),
        };
        layer.offsets = (0..if offset { groups } else { 0 }).map(|_| half(rng)).collect();
        layer
    }

    fn view(&self) -> BlockCodes<'_> {
        let Self { codes, scales, offsets, units, offset_units, .. } = self;
        BlockCodes { codes, scales, offsets, units, offset_units }
    }

    fn pack(&self, block_type: BlockType) -> Result<Vec<u8>> {
        pack(block_type, self.shape, &self.view())
    }
}

/// The types with codes.
fn types() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|block_type| block_type.grid().is_some())
}

#[test]
fn packed_layers_unpack_to_their_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for block_type in types() {
        let grid = block_type.grid().unwrap();
        for (rows, blocks) in [(1, 1), (3, 2), (5, 3)] {
            let layer = Layer::random(&mut rng, block_type, [rows, blocks * block_type.block_weights()]);
            let bytes = layer.pack(block_type).unwrap();
            assert_eq!(bytes.len() as u64, block_type.bytes_of(&layer.shape).unwrap());
            let values = unpack(block_type, &bytes).unwrap();
            for (index, (&code, &value)) in layer.codes.iter().zip(&values).enumerate() {
                let group = index / grid.group_size;
                let (scale, code) = (f64::from(layer.scales[group]), f64::from(code));
                let offset = layer.offsets.get(group).map_or(0.0, |&offset| f64::from(offset));
                let expected = match grid.zero {
                    Zero::Code(zero) => scale * (code - f64::from(zero)),
                    Zero::Offset => scale * code + offset,
                    Zero::Table(table) => scale * f64::from(table[code as usize]),
                };
                let tolerance = 1e-6 * (scale * code).abs().max(offset.abs());
                assert!((f64::from(value) - expected).abs() <= tolerance, "{block_type}, {index}: {value}, {expected}");
            }
        }
    }
}

/// Checks that a layer is refused after each of the changes.
fn refused(block_type: BlockType, changes: &[&dyn Fn(&mut Layer)]) {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (number, change) in changes.iter().enumerate() {
        let mut layer = Layer::random(&mut rng, block_type, [3, 2 * block_type.block_weights()]);
        layer.pack(block_type).unwrap();
        change(&mut layer);
        let found = layer.pack(block_type);
        assert!(matches!(found, Err(Error::Shape { .. })), "{block_type}, change {number}: {found:?}");
    }
}

#[test]
fn numbers_that_a_type_cannot_store_are_refused() {
    let third = 1.0 / 3.0;
    for block_type in types() {
        let grid = block_type.grid().unwrap();
        refused(
            block_type,
            &[
                &|layer| layer.codes.truncate(1),
                &|layer| layer.scales.push(1.0),
                &|layer| layer.offsets.push(1.0),
                &|layer| layer.units.push(1.0),
                &|layer| layer.offset_units.push(1.0),
                &|layer| layer.shape = [layer.shape[0] * 2, layer.shape[1] / 2 + 1],
                &|layer| layer.scales[1] = third,
                &|layer| layer.scales[1] = f32::NAN,
                &|layer| layer.scales[1] = f32::INFINITY,
            ],
        );
        if grid.codes < 256 {
            refused(block_type, &[&|layer| layer.codes[5] = grid.codes as u8]);
        }
        match (grid.scale, ends(&grid)) {
            (_, Some([least, greatest])) => {
                let last = |layer: &mut Layer, small: i32| {
                    *layer.scales.last_mut().unwrap() = *layer.units.last().unwrap() * small as f32;
                };
                refused(block_type, &[&|layer| last(layer, least - 1), &|layer| last(layer, greatest + 1)]);
                refused(block_type, &[&|layer| layer.units[1] = third, &|layer| layer.units[0] = f32::INFINITY]);
            }
            (ScaleStorage::PowerOfTwo, _) => {
                refused(block_type, &[&|layer| layer.scales[0] = -1.0, &|layer| layer.scales[0] = 2f32.powi(127)]);
                refused(block_type, &[&|layer| layer.scales[0] = 0.0, &|layer| layer.scales[0] = 1.5]);
            }
            _ => refused(block_type, &[&|layer| layer.scales[0] = 65520.0, &|layer| layer.scales[0] = 1e-9]),
        }
        if grid.zero == Zero::Offset {
            refused(block_type, &[&|layer| layer.offsets[1] = third]);
        }
        if grid.zero == Zero::Offset && ends(&grid).is_some() {
            refused(
                block_type,
                &[&|layer| *layer.offsets.last_mut().unwrap() = *layer.offset_units.last().unwrap(), &|layer| {
                    layer.offset_units[1] = f32::NAN;
                }],
            );
        }
    }
    let plain = BlockCodes { codes: &[0], scales: &[1.0], offsets: &[], units: &[], offset_units: &[] };
    assert!(matches!(pack(BlockType::F16, [1, 1], &plain), Err(Error::Shape { .. })));
    assert!(matches!(unpack(BlockType::Q4_0, &[0; 19]), Err(Error::Shape { .. })));
}

#[test]
fn powers_of_two_reach_to_the_ends_of_their_range() {
    for exponent in [-128, -127, -126, 0, 125, 126] {
        let scale = 2f64.powi(exponent) as f32;
        let layer = BlockCodes { codes: &[1; 32], scales: &[scale], offsets: &[], units: &[], offset_units: &[] };
        let bytes = pack(BlockType::Mxfp4, [1, 32], &layer).unwrap();
        assert_eq!(i32::from(bytes[0]), exponent + 128);
        assert_eq!(unpack(BlockType::Mxfp4, &bytes).unwrap(), [scale; 32]);
    }
}

#[test]
fn types_are_found_by_name_and_number() {
    for block_type in BlockType::ALL {
        assert_eq!(BlockType::named(block_type.name()), Some(block_type));
        assert_eq!(BlockType::from_id(block_type.id()), Some(block_type));
    }
    assert_eq!(BlockType::from_id(4), None);
    let bits = [("Q2_0", 2.25), ("Q4_0", 4.5), ("Q8_0", 8.5), ("MXFP4", 4.25), ("Q3_K", 3.4375), ("Q6_K", 6.5625)];
    for (name, bits) in bits {
        assert_eq!(BlockType::named(name).unwrap().bits_per_weight(), bits, "{name}");
    }
    assert_eq!(BlockType::Q4K.bytes_of(&[3, 512]), Some(3 * 2 * 144));
    assert_eq!(BlockType::F16.bytes_of(&[]), Some(2));
    assert_eq!(BlockType::Q4K.bytes_of(&[256, 3]), None);
    assert_eq!(BlockType::F32.bytes_of(&[1 << 40, 1 << 40]), None);
}

/// A head with one tensor, and the positions in it that the tests change.
fn small_head() -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.set("a", Value::Text("b".to_string()));
    metadata.set("c", Value::List(vec![Value::Bool(true), Value::Bool(false)]));
    metadata.set("general.alignment", Value::U32(64));
    let tensors =
        ["w", "v"].map(|name| TensorInfo { name: name.to_string(), shape: vec![3, 32], block_type: BlockType::Q4_0 });
    let mut bytes = head(&metadata, &tensors).unwrap();
    bytes.resize(bytes.len() + 2 * 64, 0);
    bytes
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let good = small_head();
    let tensors = read(&good).unwrap().tensors;
    assert_eq!(tensors[1].range.end - tensors[1].range.start, 3 * 18);
    // Only the padding behind the last tensor may be missing.
    let end = tensors[1].range.end as usize;
    for length in 0..end {
        assert!(matches!(read(&good[..length]), Err(Error::Input { .. })), "{length}");
    }
    assert!(read(&good[..end]).is_ok());
}

/// The small head with `new` in the place of the only `old`.
fn changed(old: &[u8], new: &[u8]) -> Vec<u8> {
    let good = small_head();
    let places: Vec<usize> = (0..good.len()).filter(|&at| good[at..].starts_with(old)).collect();
    let [place] = places[..] else { panic!("{old:?} at {places:?}") };
    [&good[..place], new, &good[place + old.len()..]].concat()
}

/// A text with its length.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn every_fault_of_a_head_is_named() {
    let join = |parts: &[&[u8]]| parts.concat();
    let word = |number: u32| number.to_le_bytes();
    let long = |number: u64| number.to_le_bytes();
    let start = |version: u32, tensors: u64, pairs: u64| join(&[b"GGUF", &word(version), &long(tensors), &long(pairs)]);
    let good = start(3, 2, 3);
    let dimensions = join(&[&text("v"), &word(2), &long(32), &long(3), &word(2)]);
    let alignment = join(&[&text("general.alignment"), &word(4), &word(64)]);
    let list = join(&[&text("c"), &word(9), &word(7), &long(2), &[1, 0]]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("does not begin with GGUF", changed(b"GGUF", b"GGML")),
        ("version 1 of", changed(&good, &start(1, 2, 3))),
        ("version 4 of", changed(&good, &start(4, 2, 3))),
        ("big-endian", changed(&good, &start(3 << 24, 2, 3))),
        ("tensors announced", changed(&good, &start(3, u64::MAX, 3))),
        ("pairs announced", changed(&good, &start(3, 2, 1 << 40))),
        ("goes on behind", changed(&text("a"), &join(&[&long(1 << 60), b"a"]))),
        ("a key without letters", changed(&text("a"), &text(""))),
        ("the key c twice", changed(&text("a"), &text("c"))),
        ("no UTF-8 in a", changed(&text("b"), &join(&[&long(1), &[0xff]]))),
        ("a truth value other", changed(&list, &join(&[&text("c"), &word(9), &word(7), &long(2), &[1, 2]]))),
        ("a list of lists as c", changed(&list, &join(&[&text("c"), &word(9), &word(9), &long(0)]))),
        ("a value of type 13 as c", changed(&list, &join(&[&text("c"), &word(13)]))),
        ("values of c announced", changed(&list, &join(&[&text("c"), &word(9), &word(12), &long(1 << 61)]))),
        ("values of c announced", changed(&list, &join(&[&text("c"), &word(9), &word(8), &long(u64::MAX)]))),
        ("general.alignment", changed(&alignment, &join(&[&text("general.alignment"), &word(4), &word(48)]))),
        ("general.alignment", changed(&alignment, &join(&[&text("general.alignment"), &word(4), &word(0)]))),
        ("general.alignment", changed(&alignment, &join(&[&text("general.alignment"), &word(5), &word(64)]))),
        ("tensor w twice", changed(&text("v"), &text("w"))),
        ("name has 0 bytes", changed(&text("v"), &text(""))),
        ("name has 64 bytes", changed(&text("v"), &text(&"v".repeat(64)))),
        ("of 5 dimensions", changed(&dimensions, &join(&[&text("v"), &word(5)]))),
        ("GGUF's type 99", changed(&dimensions, &join(&[&text("v"), &word(2), &long(32), &long(3), &word(99)]))),
        (
            "v, Q4_0 of shape [3, 33]",
            changed(&dimensions, &join(&[&text("v"), &word(2), &long(33), &long(3), &word(2)])),
        ),
        (
            "v, Q4_0 of shape",
            changed(&dimensions, &join(&[&text("v"), &word(2), &long(1 << 40), &long(1 << 40), &word(2)])),
        ),
        (
            "too short for tensor v",
            changed(&dimensions, &join(&[&text("v"), &word(2), &long(32), &long(300), &word(2)])),
        ),
        ("v at offset 0", changed(&join(&[&dimensions, &long(64)]), &join(&[&dimensions, &long(0)]))),
    ];
    for (expected, bytes) in cases {
        let message = read(&bytes).unwrap_err().to_string();
        assert!(message.starts_with("a.gguf: found ") && message.contains(expected), "{expected}: {message}");
    }
    assert!(read(&changed(&good, &start(2, 2, 3))).is_ok(), "version 2 has the same layout");
}

#[test]
fn heads_that_nobody_could_read_are_not_written() {
    let tensor = |name: &str, shape: &[usize]| TensorInfo {
        name: name.to_string(),
        shape: shape.to_vec(),
        block_type: BlockType::Q4_0,
    };
    let long = "n".repeat(64);
    let refused = |tensors: &[TensorInfo]| matches!(head(&Metadata::new(), tensors), Err(Error::Shape { .. }));
    assert!(!refused(&[tensor(&long[1..], &[1, 1, 1, 32])]));
    assert!(refused(&[tensor(&long, &[32])]));
    assert!(refused(&[tensor("", &[32])]));
    assert!(refused(&[tensor("a", &[32]), tensor("a", &[32])]));
    assert!(refused(&[tensor("a", &[1, 1, 1, 1, 32])]));
    assert!(refused(&[tensor("a", &[31])]));
    let lists = [vec![Value::U8(1), Value::I8(1)], vec![Value::List(vec![])], vec![Value::U8(1), Value::List(vec![])]];
    for (key, value) in lists.map(|list| ("a", Value::List(list))).into_iter().chain([
        ("", Value::U8(1)),
        ("general.alignment", Value::U32(3)),
        ("general.alignment", Value::U64(32)),
    ]) {
        let mut metadata = Metadata::new();
        metadata.set(key, value.clone());
        assert!(matches!(head(&metadata, &[]), Err(Error::Shape { .. })), "{key}: {value:?}");
    }
    let mut empty = Metadata::new();
    empty.set("a", Value::List(vec![]));
    assert_eq!(read(&head(&empty, &[]).unwrap()).unwrap().metadata, empty);
}

#[test]
fn mixtures_are_those_of_llama_cpp() {
    let fixture: serde_json::Value = serde_json::from_str(include_str!("../fixtures/formats/mixtures.json")).unwrap();
    let letters = fixture["letters"].as_object().unwrap();
    let type_of = |letter: char| {
        let found = letters.iter().find(|(_, value)| value.as_str().unwrap().starts_with(letter));
        BlockType::named(found.unwrap().0).unwrap()
    };
    for (name, expected) in fixture["quantized"].as_object().unwrap() {
        assert_eq!(is_quantized(name, 2), expected.as_bool().unwrap(), "{name}");
        assert!(!is_quantized(name, 1), "{name}");
    }
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let values: Vec<usize> =
            case["values"].as_array().unwrap().iter().map(|layer| layer.as_u64().unwrap() as usize).collect();
        let facts = ModelFacts {
            architecture: case["architecture"].as_str().unwrap(),
            layers: number("layers"),
            tied: case["tied"].as_bool().unwrap(),
            heads_per_kv_head: number("heads") / number("kv_heads"),
            experts: number("experts"),
            value_layers: &values,
        };
        for (mixture, words) in case["types"].as_object().unwrap() {
            let mixture = Mixture::named(mixture).unwrap();
            let tensors = case["tensors"].as_object().unwrap();
            for ((name, shape), word) in tensors.iter().zip(words.as_str().unwrap().split(' ')) {
                let all: Vec<usize> = (0..word.len()).collect();
                let layers = if name.contains("attn") { &values } else { &all };
                assert_eq!(word.len(), layers.len());
                for (&layer, letter) in layers.iter().zip(word.chars()) {
                    let tensor = TensorFacts {
                        role: Role::of(name),
                        layer,
                        columns: shape[0].as_u64().unwrap() as usize,
                        stacked: shape.as_array().unwrap().len() == 3,
                    };
                    let found = mixture.block_type(&facts, &tensor);
                    assert_eq!(found, type_of(letter), "{mixture}, {name} of layer {layer}, {facts:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 9000, "{compared}");
}

#[test]
fn mixtures_are_found_by_name() {
    for mixture in Mixture::ALL {
        assert_eq!(Mixture::named(mixture.name()), Some(mixture));
        assert_eq!(Mixture::named(&mixture.name().to_lowercase()), Some(mixture));
    }
    assert_eq!(Mixture::named("Q4_K"), Some(Mixture::Q4KM));
    assert_eq!(Mixture::named("Q4"), None);
    assert_eq!(Mixture::Q4KM.file_type(), 15);
    let facts = ModelFacts {
        architecture: "llama",
        layers: 4,
        tied: false,
        heads_per_kv_head: 1,
        experts: 0,
        value_layers: &[0, 1, 2, 3],
    };
    let down = |columns| TensorFacts { role: Role::Down, layer: 1, columns, stacked: false };
    // Without a whole number of blocks of 32, nothing but floats fits.
    for mixture in [Mixture::Q4KS, Mixture::Q8_0, Mixture::Iq4Nl] {
        assert_eq!(mixture.block_type(&facts, &down(100)), BlockType::F16);
    }
    assert_eq!(Mixture::Bf16.block_type(&facts, &down(100)), BlockType::Bf16);
}
