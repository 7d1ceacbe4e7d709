//! Logits of small random models of each family, compared with the published implementation (tests/fixtures/families/make.py).

use std::path::Path;

use crate::common::{device_tests, recorder, relative_error};
use aquatint::Checkpoint;
use aquatint::device::Device;
use aquatint::engine::network::Network;
use aquatint::eval::logits;
use pollster::block_on;
use safetensors::SafeTensors;

fn check(device: Device, family: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family);
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let ids = expected.tensor("input_ids").unwrap();
    let seq_len = ids.shape()[1];
    let ids: Vec<u32> = ids.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let windows: Vec<Vec<u32>> = ids.chunks(seq_len).map(<[u32]>::to_vec).collect();
    let logits_view = expected.tensor("logits").unwrap();
    let values = logits_view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let values: Vec<f64> = values.map(f64::from).collect();
    let checkpoint = block_on(Checkpoint::open(&folder)).unwrap();
    let mut rec = recorder(&device);
    let network = Network::new(&mut rec, &checkpoint, None, seq_len).unwrap();
    let ours = block_on(logits(&mut rec, &network, &windows)).unwrap();
    let error = relative_error(&ours, &values);
    assert!(error < 1e-5, "{family} on {}: {error}", device.name());
    let largest = values.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let worst = ours.iter().zip(&values).fold(0.0f64, |a, (&o, v)| a.max((f64::from(o) - v).abs()));
    assert!(worst < 1e-4 * largest, "{family} on {}: {worst} of {largest}", device.name());
}

macro_rules! families {
    ($($name:ident: $folder:literal),* $(,)?) => {
        $(device_tests!($name: cpu, software_gpu);
        fn $name(device: Device) {
            check(device, $folder);
        })*
    };
}

families! {
    llama: "llama",
    llama_with_llama3_scaling_and_biases: "llama-scaled",
    llama_with_linear_scaling_and_own_head_width: "llama-linear",
    mistral_with_a_window_that_bites: "mistral",
    qwen2_with_biases: "qwen2",
    qwen3_with_head_norms: "qwen3",
}
