//! What the tests share: the devices to run on, seeded values and comparisons, and runs of the command line.

pub mod dense;
pub mod kinds;
pub mod running;

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use self::dense::Levels;
use aquatint::device::{Choice, Clock, Device, Precision, Recorder, Tensor};
use aquatint::ops::gram::Packed;
use aquatint::ops::grid::{Grid, GridSpec};
use aquatint::ops::tier::{self, FrontEnd};
use aquatint::quant::methods::{GroupInput, GroupRounder, ScaleSearch};
use aquatint::quant::{Curvature, HessianDiagonal, QuantizeOptions};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The tests as a front end. The quickest shape is remembered as long as the process lives, so that one test times the shapes.
struct Tests;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static SHAPES: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

impl FrontEnd for Tests {
    fn clock(&self) -> Option<Clock> {
        Some(|| START.elapsed().as_secs_f64())
    }

    fn remembered_shape(&self, key: &str) -> Option<String> {
        SHAPES.lock().unwrap().get(key).cloned()
    }

    fn remember_shape(&self, key: &str, shape: &str) {
        SHAPES.lock().unwrap().insert(key.to_string(), shape.to_string());
    }
}

/// Makes one test per device of a function: `device_tests!(sums: cpu, software_gpu)` above `fn sums(device: Device)` makes
/// `sums::cpu` and `sums::software_gpu`.
///
/// The third device is `fast_gpu`, the software GPU with the kernels of the fast tier. Where a machine lacks a device, its tests are
/// shown as ignored, with the reason. libtest takes that decision when the suite is compiled, so features of the package tell
/// what the machine has; `cargo xtask test` finds out and sets them.
macro_rules! device_tests {
    ($test:ident: $($device:ident),+) => {
        mod $test {
            $($crate::common::device_tests!(@$device $test);)+
        }
    };
    (@cpu $test:ident) => {
        #[test]
        fn cpu() {
            super::$test(aquatint::device::Device::Cpu);
        }
    };
    (@software_gpu $test:ident) => {
        #[test]
        #[cfg_attr(feature = "test-without-gpu", ignore = "no software Vulkan adapter, or AQUATINT_GPU_TESTS=skip")]
        fn software_gpu() {
            super::$test($crate::common::software_gpu());
        }
    };
    (@fast_gpu $test:ident) => {
        #[test]
        #[cfg_attr(not(feature = "test-matrix-units"), ignore = "needs matrix units, which `cargo xtask test` looks for")]
        fn fast_gpu() {
            super::$test($crate::common::fast_gpu());
        }
    };
}
pub(crate) use device_tests;

/// The software GPU, with the portable kernels or with those that `AQUATINT_TEST_PRECISION` names. Panics if there is none.
pub fn software_gpu() -> Device {
    let precision = std::env::var("AQUATINT_TEST_PRECISION").unwrap_or_else(|_| "portable".to_string());
    open_software_gpu(precision.parse().unwrap())
}

/// The software GPU with the kernels of the fast tier. Panics if it cannot run them.
pub fn fast_gpu() -> Device {
    let device = open_software_gpu(Precision::Fast);
    if let Device::Gpu(gpu) = &device {
        assert_eq!(device.precision(), Precision::Fast, "{} is {}", gpu.name(), gpu.tier());
    }
    device
}

/// `AQUATINT_TEST_DEVICE` names another adapter than Mesa's.
fn open_software_gpu(precision: Precision) -> Device {
    let name = std::env::var("AQUATINT_TEST_DEVICE").unwrap_or_else(|_| "llvmpipe".to_string());
    let choice = name.parse::<Choice>().unwrap();
    let opened = pollster::block_on(tier::open(&choice, precision, &Tests));
    opened.expect("a software Vulkan adapter (Debian: mesa-vulkan-drivers), or --features test-without-gpu").0
}

/// A recorder for `device`.
pub fn recorder(device: &Device) -> Recorder {
    Recorder::new(device)
}

/// Random values, uniform in [-1, 1), which depend on the seed alone.
pub fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// A grid of these scales, and of these zero points or offsets, `[m, groups]` each. Its scales share no units.
pub fn grid_of(rec: &mut Recorder, shape: [usize; 2], scales: Vec<f32>, zeros: Vec<f32>) -> Grid {
    Grid { scales: rec.upload(&shape, scales).unwrap(), zeros: rec.upload(&shape, zeros).unwrap(), units: None }
}

/// The numbers of `grid`, in float64.
pub fn levels(rec: &mut Recorder, spec: &GridSpec, grid: &Grid) -> Levels {
    let (scales, seconds) = (read(rec, &grid.scales), read(rec, &grid.zeros));
    Levels::new(spec, grid.scales.shape()[0], &scales, &seconds)
}

/// The values of a tensor.
pub fn read(rec: &mut Recorder, tensor: &Tensor) -> Vec<f32> {
    pollster::block_on(rec.read(tensor)).unwrap()
}

/// The relative error ‖a − b‖ / ‖b‖, or ‖a‖ if b is zero. NaN if a or b contains one.
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
