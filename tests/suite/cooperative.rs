//! The fast tier: its kernels, compared with float64, the choice of their shape, and the choice between the tiers.

use std::fs;
use std::path::Path;
use std::process::Command;

use aquatint::device::{Choice, Device, Precision, Recorder};
use aquatint::ops::gram::{self, Packed};
use aquatint::ops::matmul::{Orientation, Rows, accumulate, matmul};
use aquatint::ops::pieces::Pieces;
use aquatint::ops::tier;
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::common::dense::Dense;
use crate::common::{device_tests, random, read, relative_error};

/// The largest error of a product, relative and in the Frobenius norm. Measured: 1e-7 and less.
const BOUND: f64 = 4e-7;

/// A recorder that sends all products to the fast kernels, or none.
fn recorder(device: &Device, fast: bool) -> Recorder {
    let mut rec = Recorder::new(device);
    rec.set_fast_from(if fast { 0 } else { usize::MAX });
    rec
}

/// Random values whose rows, or columns, have magnitudes from 2^-40 to 2^40.
fn wide(seed: u64, rows: usize, columns: usize, of_rows: bool) -> Vec<f32> {
    let magnitude = |i: usize| ((i * 29 % 81) as f32 - 40.0).exp2();
    let line = |index: usize| if of_rows { index / columns } else { index % columns };
    random(seed, rows * columns).iter().enumerate().map(|(index, v)| v * magnitude(line(index))).collect()
}

/// The largest error of an element of c: |c − a·b| / (‖row of a‖·‖column of b‖).
fn worst(c: &[f32], a: &Dense, b: &Dense) -> f64 {
    let product = a.times(b);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let rows: Vec<f64> = (0..a.rows).map(|i| norm(&mut (0..a.columns).map(|k| a.at(i, k)))).collect();
    let columns: Vec<f64> = (0..b.columns).map(|j| norm(&mut (0..b.rows).map(|k| b.at(k, j)))).collect();
    let errors = c.iter().enumerate().map(|(index, &value)| {
        let (i, j) = (index / b.columns, index % b.columns);
        (f64::from(value) - product.at(i, j)).abs() / (rows[i] * columns[j])
    });
    errors.fold(0.0, |worst, error| if error <= worst { worst } else { error })
}

device_tests!(products_of_odd_shapes_in_every_orientation: fast_gpu);
fn products_of_odd_shapes_in_every_orientation(device: Device) {
    let mut rec = recorder(&device, true);
    for (case, shape) in
        [[1, 1, 1], [3, 5, 2], [64, 64, 16], [65, 63, 17], [37, 130, 100], [129, 257, 300]].into_iter().enumerate()
    {
        for orientation in [Orientation::Nt, Orientation::Nn, Orientation::Tn] {
            let [m, n, k] = shape;
            let (va, vb) = (random(case as u64, m * k), random(100 + case as u64, n * k));
            let a_shape = if orientation == Orientation::Tn { [k, m] } else { [m, k] };
            let b_shape = if orientation == Orientation::Nt { [n, k] } else { [k, n] };
            let a = rec.upload(&a_shape, va.clone()).unwrap();
            let b = rec.upload(&b_shape, vb.clone()).unwrap();
            let c = matmul(&mut rec, orientation, &a, &b).unwrap();
            let (a, b) = (Dense::new(a_shape[0], a_shape[1], &va), Dense::new(b_shape[0], b_shape[1], &vb));
            let a = if orientation == Orientation::Tn { a.transposed() } else { a };
            let b = if orientation == Orientation::Nt { b.transposed() } else { b };
            let error = relative_error(&read(&mut rec, &c), &a.times(&b).values);
            assert!(error < BOUND, "{orientation:?} {shape:?}: {error}");
        }
    }
}

device_tests!(adds_to_a_range_of_rows_and_leaves_the_others: fast_gpu);
fn adds_to_a_range_of_rows_and_leaves_the_others(device: Device) {
    let mut rec = recorder(&device, true);
    let (va, vb, vc) = (random(1, 7 * 5), random(2, 9 * 6), random(3, 8 * 6));
    let a = rec.upload(&[7, 5], va.clone()).unwrap();
    let b = rec.upload(&[9, 6], vb.clone()).unwrap();
    let mut c = rec.upload(&[8, 6], vc.clone()).unwrap();
    let (ra, rb) = (Rows { tensor: &a, start: 2, count: 3 }, Rows { tensor: &b, start: 4, count: 3 });
    accumulate(&mut rec, Orientation::Tn, ra, rb, &mut c, 1).unwrap();
    let product = Dense::new(3, 5, &va[10..25]).transposed().times(&Dense::new(3, 6, &vb[24..42]));
    let mut expected: Vec<f64> = vc.iter().map(|&v| f64::from(v)).collect();
    for (value, product) in expected[6..36].iter_mut().zip(product.values) {
        *value += product;
    }
    let c = read(&mut rec, &c);
    assert!(relative_error(&c, &expected) < BOUND);
    assert!(c[..6] == vc[..6] && c[36..] == vc[36..]);
}

device_tests!(rows_of_any_magnitude_are_equally_exact: fast_gpu);
/// f16 holds magnitudes from 6e-8 to 65504. Rows far outside are as exact as the others.
fn rows_of_any_magnitude_are_equally_exact(device: Device) {
    let [m, n, k] = [150, 90, 200];
    let (va, vb) = (wide(1, m, k, true), wide(2, n, k, true));
    assert!(va.iter().any(|v| v.abs() > 1e11) && va.iter().any(|v| v.abs() < 1e-13));
    let (a, b) = (Dense::new(m, k, &va), Dense::new(n, k, &vb).transposed());
    for fast in [true, false] {
        let mut rec = recorder(&device, fast);
        let x = rec.upload(&[m, k], va.clone()).unwrap();
        let y = rec.upload(&[n, k], vb.clone()).unwrap();
        let c = matmul(&mut rec, Orientation::Nt, &x, &y).unwrap();
        let error = worst(&read(&mut rec, &c), &a, &b);
        eprintln!("wide rows, fast {fast}: {error:.2e}");
        assert!(error < 1e-6, "fast {fast}: {error}");
    }
}

device_tests!(outliers_within_a_row_cost_the_others_nothing: fast_gpu);
/// The activations of large models have single values far above the others of their row.
fn outliers_within_a_row_cost_the_others_nothing(device: Device) {
    let mut rec = recorder(&device, true);
    let [m, n, k] = [70, 80, 256];
    let mut va = random(1, m * k);
    va.iter_mut().step_by(97).for_each(|v| *v *= 1e5);
    // The outliers are multiplied by zero, so that only the other values count.
    let vb: Vec<f32> = random(2, n * k).to_vec();
    let mut b = Dense::new(n, k, &vb);
    let outliers: Vec<usize> = (0..m * k).step_by(97).filter(|i| i / k == 0).map(|i| i % k).collect();
    for row in 0..n {
        outliers.iter().for_each(|&column| b.set(row, column, 0.0));
    }
    let x = rec.upload(&[m, k], va.clone()).unwrap();
    let y = rec.upload(&[n, k], b.f32()).unwrap();
    let c = matmul(&mut rec, Orientation::Nt, &x, &y).unwrap();
    let first = &read(&mut rec, &c)[..n];
    let expected = Dense::new(1, k, &va[..k]).times(&b.transposed());
    let error = relative_error(first, &expected.values);
    eprintln!("beside outliers: {error:.2e}");
    assert!(error < BOUND, "{error}");
}

device_tests!(sums_over_tokens_of_both_tiers: fast_gpu);
fn sums_over_tokens_of_both_tiers(device: Device) {
    for fast in [true, false] {
        let mut rec = recorder(&device, fast);
        for n in [1, 5, 63, 64, 65, 130, 300] {
            let tokens = 77;
            let vx = wide(1, tokens, n, false);
            // X̂ differs from X by a hundredth, as after quantization, so that δ is a small difference of large numbers.
            let vy: Vec<f32> = vx.iter().zip(random(2, tokens * n)).map(|(x, e)| x + 0.01 * x * e).collect();
            let (x, y) = (rec.upload(&[tokens, n], vx.clone()).unwrap(), rec.upload(&[tokens, n], vy.clone()).unwrap());
            let mut h = Packed::zeros(&mut rec, n).unwrap();
            gram::accumulate(&mut rec, &x, &mut h).unwrap();
            gram::accumulate(&mut rec, &y, &mut h).unwrap();
            let mut d = Pieces::of_rows(&mut rec, n, 128).unwrap();
            d.accumulate_cross(&mut rec, &x, &y).unwrap();
            let d: Vec<f32> = d.iter().flat_map(|(_, piece)| read(&mut rec, piece)).collect();
            let delta: Vec<f32> = vx.iter().zip(&vy).map(|(x, y)| x - y).collect();
            let (delta, y) = (Dense::new(tokens, n, &delta), Dense::new(tokens, n, &vy));
            let error = worst(&d, &delta.transposed(), &y);
            assert!(error < 1e-6, "D, n {n}, fast {fast}: {error}");
            let both: Vec<f32> = vx.iter().chain(&vy).copied().collect();
            let both = Dense::new(2 * tokens, n, &both);
            let dense = gram::unpack(&mut rec, &h).unwrap();
            let error = worst(&read(&mut rec, &dense), &both.transposed(), &both);
            assert!(error < 1e-6, "H, n {n}, fast {fast}: {error}");
        }
    }
}

device_tests!(long_sums_are_as_exact_as_those_of_the_portable_kernels: fast_gpu);
fn long_sums_are_as_exact_as_those_of_the_portable_kernels(device: Device) {
    let (tokens, n) = (4133, 130);
    // All values are positive, so that errors of one sign add up.
    let vx: Vec<f32> = random(1, tokens * n).iter().map(|v| v + 1.0).collect();
    let x64 = Dense::new(tokens, n, &vx);
    let expected = x64.transposed().times(&x64);
    let mut errors = Vec::new();
    for fast in [true, false] {
        let mut rec = recorder(&device, fast);
        let x = rec.upload(&[tokens, n], vx.clone()).unwrap();
        let mut h = Packed::zeros(&mut rec, n).unwrap();
        gram::accumulate(&mut rec, &x, &mut h).unwrap();
        let dense = gram::unpack(&mut rec, &h).unwrap();
        errors.push(relative_error(&read(&mut rec, &dense), &expected.values));
    }
    eprintln!("Gram of {tokens} tokens, fast {:.1e}, portable {:.1e}", errors[0], errors[1]);
    assert!(errors[0] < BOUND, "{errors:?}");
}

device_tests!(operands_that_are_too_large_for_one_array_go_in_pieces: fast_gpu);
/// The padded planes of this operand do not fit one array of an adapter whose arrays have at most 128 MiB.
fn operands_that_are_too_large_for_one_array_go_in_pieces(device: Device) {
    let mut rec = recorder(&device, true);
    let [m, n, k] = [4097, 3, 8190];
    let (va, vb) = (random(1, m * k), random(2, n * k));
    let a = rec.upload(&[m, k], va.clone()).unwrap();
    let b = rec.upload(&[n, k], vb.clone()).unwrap();
    let c = matmul(&mut rec, Orientation::Nt, &a, &b).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let expected: Vec<f64> = va.chunks(k).flat_map(|row| vb.chunks(k).map(move |column| dot(row, column))).collect();
    let error = relative_error(&read(&mut rec, &c), &expected);
    eprintln!("in pieces: {error:.1e}");
    // A sum of 8190 terms of either sign in f32.
    assert!(error < 1e-6, "{error}");
}

device_tests!(what_is_not_finite_stays_so: fast_gpu);
/// A NaN or an infinity in a row of A shows in that row of the product, and in no other.
fn what_is_not_finite_stays_so(device: Device) {
    let mut rec = recorder(&device, true);
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut va = random(1, 40 * 50);
        va[50 * 7 + 3] = bad;
        let a = rec.upload(&[40, 50], va).unwrap();
        let b = rec.upload(&[30, 50], random(2, 30 * 50)).unwrap();
        let c = matmul(&mut rec, Orientation::Nt, &a, &b).unwrap();
        let c = read(&mut rec, &c);
        for (row, values) in c.chunks(30).enumerate() {
            assert!(values.iter().all(|v| v.is_finite() == (row != 7)), "{bad}, row {row}: {values:?}");
        }
    }
}

fn aquatint(cache: &Path, arguments: &[&str]) -> (String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_aquatint")).args(arguments).env("XDG_CACHE_HOME", cache).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

device_tests!(shapes_give_the_same_result_and_a_cache_that_cannot_be_written_is_no_error: fast_gpu);
/// The shape is chosen by measurement and may differ from run to run. The result does not depend on it.
fn shapes_give_the_same_result_and_a_cache_that_cannot_be_written_is_no_error(device: Device) {
    let (scratch, name) = (TempDir::new().unwrap(), device.name());
    let cache = scratch.path().join("cache");
    let file = cache.join("aquatint").join("shapes.json");
    let evaluate = |cache: &Path, precision: &str| -> (f64, Value, String) {
        let record = scratch.path().join("run.json");
        let text = ["eval", "--seq-len", "160", "--windows", "1", "--json", record.to_str().unwrap()];
        let (_, said) = aquatint(cache, &[&text[..], &["--device", &name, "--precision", precision]].concat());
        let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        (record["perplexity"].as_f64().unwrap(), record["precision"].clone(), said)
    };
    let (first, precision, said) = evaluate(&cache, "fast");
    assert_eq!(precision, "fast");
    assert!(said.contains("kernels: fast"), "{said}");
    let mut kept: Map<String, Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept.len(), 1);
    let (key, shape) =
        kept.iter().next().map(|(key, shape)| (key.clone(), shape.as_str().unwrap().to_string())).unwrap();
    assert!(key.contains(&name));
    let stem = &shape[..shape.len() - 1];
    for letter in ["a", "b", "c"] {
        kept.insert(key.clone(), format!("{stem}{letter}").into());
        fs::write(&file, serde_json::to_string(&kept).unwrap()).unwrap();
        assert!(evaluate(&cache, "fast").0 == first, "{stem}{letter}: another perplexity");
    }
    fs::write(&file, "not json").unwrap();
    assert!(evaluate(&cache, "fast").0 == first);
    let blocked = scratch.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    assert!(evaluate(&blocked, "fast").0 == first);
    let (other, precision, said) = evaluate(&cache, "portable");
    assert_eq!(precision, "portable");
    assert!(said.contains("kernels: portable, as asked for"), "{said}");
    assert!((other / first - 1.0).abs() < 1e-4, "{other} and {first}");
    assert_ne!(other, first, "the fast kernels were not used");
}

device_tests!(without_a_clock_a_shape_that_is_right_is_used: fast_gpu);
/// Without a clock no shape can be timed.
fn without_a_clock_a_shape_that_is_right_is_used(device: Device) {
    let (device, _) = pollster::block_on(tier::open(&Choice::Name(device.name()), Precision::Fast, &())).unwrap();
    assert_eq!(device.precision(), Precision::Fast);
}

#[test]
fn the_cpu_is_portable() {
    assert_eq!(Device::Cpu.precision(), Precision::Portable);
}

device_tests!(a_device_without_matrix_units_is_portable_and_says_so: software_gpu);
fn a_device_without_matrix_units_is_portable_and_says_so(device: Device) {
    let Device::Gpu(gpu) = &device else { panic!("a GPU was named") };
    assert_eq!(gpu.tier().to_string().starts_with("fast"), device.precision() == Precision::Fast);
    let (said, _) = aquatint(&std::env::temp_dir(), &["devices"]);
    assert!(said.contains("portable, no cooperative matrices") || said.contains("fast, f16 in squares of"), "{said}");
}
