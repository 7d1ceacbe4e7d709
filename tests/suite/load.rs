//! Tensors loaded onto a device are those that are read into memory, whatever the size of the pieces, and a broken tensor gives
//! the same error.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use crate::common::{device_tests, recorder};
use crate::small_model::{Model, Stored};
use aquatint::checkpoint::{Checkpoint, MemorySource, Source};
use aquatint::device::{Device, Recorder, Tensor};
use aquatint::engine::decoder::Decoder;
use aquatint::engine::network::Network;
use aquatint::pipeline::quantize;
use aquatint::quant::QuantizeOptions;
use aquatint::stored::Replacements;
use aquatint::{Error, Result, bundled};
use futures::future::LocalBoxFuture;
use half::{bf16, f16};
use pollster::block_on;

/// A file that asks to be read `piece` bytes at a time, and notes the longest read.
struct Dribble {
    file: MemorySource,
    piece: u64,
    most: Rc<Cell<u64>>,
}

impl Source for Dribble {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn piece(&self) -> u64 {
        self.piece
    }

    fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>> {
        self.most.set(self.most.get().max(range.end - range.start));
        self.file.read(range)
    }
}

/// The small model with its tensors as F32, F16 and BF16 in turn, and three more tensors of odd sizes.
fn mixed() -> Model {
    let mut model = Model::new(|_| {});
    for (i, tensor) in model.tensors.iter_mut().enumerate() {
        store_as(tensor, ["F32", "F16", "BF16"][i % 3]);
    }
    for dtype in ["F32", "F16", "BF16"] {
        let values: Vec<f32> = (0..77).map(|i| (i as f32 - 38.0) / 8.0).collect();
        let mut odd = Stored::f32(&format!("visual.odd.{dtype}"), &[7, 11], &values);
        store_as(&mut odd, dtype);
        model.tensors.push(odd);
    }
    model
}

fn store_as(tensor: &mut Stored, dtype: &'static str) {
    let values = tensor.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    tensor.bytes = match dtype {
        "F16" => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        "BF16" => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => return,
    };
    tensor.dtype = dtype;
}

fn open(model: &Model, piece: u64) -> (Checkpoint, Rc<Cell<u64>>) {
    let most = Rc::new(Cell::new(0));
    let config = MemorySource::new("config.json", model.config.to_string().into_bytes());
    let file = MemorySource::new("model.safetensors", model.weights());
    let weights = Dribble { file, piece, most: most.clone() };
    let sources: Vec<Box<dyn Source>> = vec![Box::new(config), Box::new(weights)];
    let checkpoint = block_on(Checkpoint::from_sources("model", sources)).unwrap();
    most.set(0);
    (checkpoint, most)
}

fn bits(rec: &mut Recorder, tensor: &Tensor) -> Vec<u32> {
    block_on(rec.read(tensor)).unwrap().into_iter().map(f32::to_bits).collect()
}

device_tests!(pieces_of_any_size_make_the_whole: cpu, software_gpu);
fn pieces_of_any_size_make_the_whole(device: Device) {
    let model = mixed();
    let reference = open(&model, 1 << 20).0;
    let mut rec = recorder(&device);
    for piece in [1, 2, 6, 10, 100, 1000, 1 << 20] {
        let (checkpoint, most) = open(&model, piece);
        for Stored { name, dtype, shape, bytes } in &model.tensors {
            if bytes.len() as u64 > 200 * piece {
                continue;
            }
            let at = format!("{} {name} of {dtype} {piece} bytes at a time", device.name());
            most.set(0);
            let tensor = block_on(checkpoint.load(&mut rec, name)).unwrap();
            let size = if *dtype == "F32" { 4 } else { 2 };
            assert!(most.get() <= piece.max(size), "{at}: read {} bytes at once", most.get());
            assert_eq!(tensor.shape(), &shape[..], "{at}");
            let whole: Vec<u32> = block_on(reference.read(name)).unwrap().into_iter().map(f32::to_bits).collect();
            assert_eq!(bits(&mut rec, &tensor), whole, "{at}");
            let (count, width) = (shape[0], shape[1..].iter().product::<usize>());
            for rows in [0..count, 1..count, count / 3..count / 3 + 1, 2..2] {
                let tensor = block_on(checkpoint.load_rows(&mut rec, name, rows.clone())).unwrap();
                assert_eq!((tensor.shape()[0], tensor.len()), (rows.len(), rows.len() * width), "{at}");
                assert_eq!(bits(&mut rec, &tensor), whole[rows.start * width..rows.end * width], "{at} {rows:?}");
            }
        }
    }
}

device_tests!(rows_and_names_that_do_not_exist_are_errors: cpu, software_gpu);
fn rows_and_names_that_do_not_exist_are_errors(device: Device) {
    let (checkpoint, _) = open(&mixed(), 64);
    let mut rec = recorder(&device);
    let name = "model.norm.weight";
    let reversed = Range { start: 5, end: 4 };
    for rows in [30..33, 33..33, reversed] {
        let result = block_on(checkpoint.load_rows(&mut rec, name, rows));
        assert!(matches!(result, Err(Error::Shape { .. })), "{}: {result:?}", device.name());
    }
    assert!(matches!(block_on(checkpoint.load(&mut rec, "model.nrom.weight")), Err(Error::Input { .. })));
}

device_tests!(the_bundled_model_loads_as_it_reads: cpu, software_gpu);
fn the_bundled_model_loads_as_it_reads(device: Device) {
    let checkpoint = block_on(bundled::checkpoint()).unwrap();
    let mut rec = recorder(&device);
    for (name, shape) in checkpoint.config().expected_tensors() {
        let tensor = block_on(checkpoint.load(&mut rec, &name)).unwrap();
        assert_eq!(tensor.shape(), &shape[..]);
        let read = block_on(checkpoint.read(&name)).unwrap();
        assert_eq!(block_on(rec.read(&tensor)).unwrap(), read, "{} {name}", device.name());
    }
}

/// The error of `task`, or of waiting for what it recorded.
fn error_of<T>(rec: &mut Recorder, task: impl AsyncFnOnce(&mut Recorder) -> Result<T>) -> String {
    let result = block_on(async {
        task(rec).await?;
        rec.finish().await
    });
    result.expect_err("a broken tensor").to_string()
}

fn broken(name: &str) -> Checkpoint {
    let mut model = mixed();
    let tensor = model.tensor(name);
    let last = tensor.bytes.len();
    // All bits of exponent and mantissa are ones, which is a NaN in each of the three formats.
    tensor.bytes[last - 4..].fill(0xff);
    open(&model, 50).0
}

device_tests!(a_broken_tensor_is_named_wherever_it_is_used: cpu, software_gpu);
fn a_broken_tensor_is_named_wherever_it_is_used(device: Device) {
    let expected = |name: &str| {
        format!(
            "model/model.safetensors, tensor {name}: found a value that is NaN or infinite, expected finite numbers; \
             download the file again; if it stays so, the model itself is broken"
        )
    };
    let mut rec = recorder(&device);
    let window = vec![vec![1u32; 8]];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"] {
        let name = format!("model.layers.0.{name}.weight");
        let checkpoint = broken(&name);
        let found = error_of(&mut rec, async |rec: &mut Recorder| {
            let network = Network::new(rec, &checkpoint, None, 8)?;
            network.block(rec, 0).await?;
            network.all_weights(rec, 0).await
        });
        assert_eq!(found, expected(&name), "{}", device.name());
    }
    for name in ["model.norm.weight", "lm_head.weight"] {
        let checkpoint = broken(name);
        let network = Network::new(&mut rec, &checkpoint, None, 8).unwrap();
        let found = error_of(&mut rec, async |rec: &mut Recorder| network.head(rec).await);
        assert_eq!(found, expected(name), "{}", device.name());
        let found = error_of(&mut rec, async |rec: &mut Recorder| network.check_head(rec).await);
        assert_eq!(found, expected(name), "{}", device.name());
    }
    for name in ["model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight", "lm_head.weight"] {
        let loaded = block_on(Decoder::load(&mut rec, &broken(name), None, 8));
        assert_eq!(loaded.unwrap_err().to_string(), expected(name), "{}", device.name());
    }
    let checkpoint = broken("model.embed_tokens.weight");
    let network = Network::new(&mut rec, &checkpoint, None, 8).unwrap();
    let found = error_of(&mut rec, async |rec: &mut Recorder| network.embed(rec, &[&window]).await);
    assert_eq!(found, expected("model.embed_tokens.weight"), "{}", device.name());
    // Rows without the broken element load.
    let rows = block_on(checkpoint.load_rows(&mut rec, "model.embed_tokens.weight", 0..15)).unwrap();
    assert!(block_on(rec.read(&rows)).unwrap().iter().all(|value| value.is_finite()));
}

device_tests!(a_run_ends_before_anything_is_handed_out: cpu, software_gpu);
fn a_run_ends_before_anything_is_handed_out(device: Device) {
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate_proj.weight"] {
        let checkpoint = broken(name);
        let options = QuantizeOptions { samples: 2, seq_len: 8, ..QuantizeOptions::default() };
        let windows = vec![vec![1, 2, 3, 4, 5, 6, 7, 8], vec![8, 7, 6, 5, 4, 3, 2, 1]];
        let (mut rec, mut layers) = (recorder(&device), Replacements::new());
        match block_on(quantize(&mut rec, &checkpoint, &windows, &options, &mut layers, &mut ())) {
            Err(Error::NotFinite { place, .. }) => {
                assert_eq!(place, format!("model/model.safetensors, tensor {name}"), "{}", device.name());
            }
            other => panic!("{} {name}: {other:?}", device.name()),
        }
        assert!(layers.is_empty(), "{} {name}", device.name());
    }
}
