//! What the tests of the ops share: the devices to run on, and random tensors.

pub mod dense;

use aquatint::device::{Choice, Device, Precision, Recorder, select};
use aquatint::ops::gram::Packed;
use aquatint::quant::methods::{GroupInput, GroupRounder, ScaleSearch};
use aquatint::quant::{Curvature, HessianDiagonal, QuantizeOptions};
use aquatint::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The software GPU with portable kernels, or with those that `AQUATINT_TEST_PRECISION` names, or `None` where `cargo xtask test` was told that there is none.
pub fn software_gpu() -> Option<Device> {
    let precision = std::env::var("AQUATINT_TEST_PRECISION").unwrap_or_else(|_| "portable".to_string());
    open_software_gpu(precision.parse().unwrap())
}

/// The software GPU with the fast kernels, or `None` where it cannot run them.
pub fn fast_gpu() -> Option<Device> {
    let device = open_software_gpu(Precision::Fast)?;
    match &device {
        Device::Gpu(gpu) if device.precision() == Precision::Portable => {
            eprintln!("SKIPPED the fast kernels: {} is {}", gpu.name(), gpu.tier());
            None
        }
        _ => Some(device),
    }
}

fn open_software_gpu(precision: Precision) -> Option<Device> {
    if std::env::var("AQUATINT_GPU_TESTS").as_deref() == Ok("skip") {
        eprintln!("SKIPPED on the GPU: AQUATINT_GPU_TESTS=skip");
        return None;
    }
    let name = std::env::var("AQUATINT_TEST_DEVICE").unwrap_or_else(|_| "llvmpipe".to_string());
    let choice = name.parse::<Choice>().unwrap();
    let opened = pollster::block_on(select(&choice, precision));
    Some(opened.expect("a software Vulkan adapter (Debian: mesa-vulkan-drivers)").0)
}

/// The CPU and, where there is one, the software GPU.
pub fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(software_gpu()).collect()
}

/// A recorder for `device`.
pub fn recorder(device: &Device) -> Recorder {
    Recorder::new(device)
}

/// Seeded values, uniform in [-1, 1).
pub fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// The values of a tensor.
pub fn read(rec: &mut Recorder, tensor: &Tensor) -> Vec<f32> {
    pollster::block_on(rec.read(tensor)).unwrap()
}

/// ‖a − b‖ / ‖b‖, or ‖a‖ if b is zero. NaN if either holds one.
pub fn relative_error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
    let norm = b.iter().map(|b| b * b).sum::<f64>().sqrt();
    if norm == 0.0 { difference } else { difference / norm }
}

/// The method of `options`, prepared for a group with this H. Not for methods that scale the input.
pub fn group_rounder<'a>(
    rec: &mut Recorder,
    options: &'a QuantizeOptions,
    hessian: &'a Packed,
    diagonal: &'a HessianDiagonal,
) -> Box<dyn GroupRounder + 'a> {
    let curvature = Some(Curvature { hessian, diagonal, place: "test" });
    let input = GroupInput { options, curvature, magnitudes: None };
    pollster::block_on(options.method.quantizer().prepare(rec, input, ScaleSearch::default())).unwrap()
}
