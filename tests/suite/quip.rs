//! QuIP: its rotations are orthogonal and are undone, its rounding is LDLQ, and outliers cost less after a rotation.

use crate::common::dense::{Dense, Level, gptq, hessian, objective};
use crate::common::{device_tests, group_rounder, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::gram;
use aquatint::ops::grid::{GridSpec, ScaleType, Search, Symmetry};
use aquatint::quant::methods::Layer;
use aquatint::quant::rotation::{Rotation, require_hadamard};
use aquatint::quant::{HessianDiagonal, Method, QuantizeOptions, RotationKind};
use pollster::block_on;

const KINDS: [RotationKind; 2] = [RotationKind::Kronecker, RotationKind::Hadamard];

/// The rotation V, from rotating the identity: I·Vᵀ, transposed.
fn matrix(rec: &mut Recorder, kind: RotationKind, n: usize, seed: u64) -> Dense {
    let rotation = Rotation::new(rec, kind, n, seed, 1).unwrap();
    let identity = rec.upload(&[n, n], Dense::from_fn(n, n, |i, j| f64::from(u8::from(i == j))).f32()).unwrap();
    let turned = rotation.columns(rec, identity).unwrap();
    Dense::new(n, n, &read(rec, &turned)).transposed()
}

device_tests!(transforms_are_orthogonal_and_undone: cpu, software_gpu);
fn transforms_are_orthogonal_and_undone(device: Device) {
    let mut rec = recorder(&device);
    for kind in KINDS {
        // 36 and 12 need the constructions of Paley, 576 the product of two factors.
        for n in [1, 2, 4, 12, 28, 36, 48, 160, 192, 576] {
            let at = format!("{} {kind:?} {n}", device.name());
            let v = matrix(&mut rec, kind, n, 3);
            let product = v.times(&v.transposed());
            for i in 0..n {
                for j in 0..n {
                    let expected = f64::from(u8::from(i == j));
                    assert!((product.at(i, j) - expected).abs() < 2e-6, "{at}: {i} {j} {}", product.at(i, j));
                }
            }
            let rotation = Rotation::new(&mut rec, kind, n, 3, 1).unwrap();
            let values = random(4, 5 * n);
            let x = rec.upload(&[5, n], values.clone()).unwrap();
            let turned = rotation.columns(&mut rec, x).unwrap();
            let expected = Dense::new(5, n, &values).times(&v.transposed()).f32();
            let ours = read(&mut rec, &turned);
            assert!(ours.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{at}: X·Vᵀ");
            let back = rotation.columns_back(&mut rec, &turned).unwrap();
            let back = read(&mut rec, &back);
            assert!(back.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5), "{at}: not undone");
        }
    }
}

#[test]
fn odd_widths_have_a_kronecker_transform_and_no_hadamard_one() {
    let mut rec = recorder(&Device::Cpu);
    for n in [3, 35, 97] {
        let v = matrix(&mut rec, RotationKind::Kronecker, n, 0);
        let norm: f64 = v.values.iter().map(|x| x * x).sum();
        assert!((norm - n as f64).abs() < 1e-4, "{n}: {norm}");
        let error = Rotation::new(&mut rec, RotationKind::Hadamard, n, 0, 0).unwrap_err().to_string();
        assert!(error.contains(&n.to_string()) && error.contains("use rotation kronecker"), "{error}");
    }
    for width in [576, 1536, 2048, 4096, 5632, 14336] {
        require_hadamard(width).unwrap();
    }
}

#[test]
fn seeds_and_layers_get_transforms_of_their_own() {
    let mut rec = recorder(&Device::Cpu);
    for kind in KINDS {
        let [a, b] = [0, 1].map(|seed| matrix(&mut rec, kind, 64, seed));
        assert_ne!(a, b, "{kind:?}");
        assert_eq!(a, matrix(&mut rec, kind, 64, 0), "{kind:?}");
        let other = Rotation::new(&mut rec, kind, 64, 0, 2).unwrap();
        let x = rec.upload(&[1, 64], random(1, 64)).unwrap();
        let turned = other.columns(&mut rec, x).unwrap();
        let expected = Dense::new(1, 64, &random(1, 64)).times(&a.transposed());
        assert_ne!(read(&mut rec, &turned), expected.f32(), "{kind:?}");
    }
}

/// LDLQ as QuIP writes it (arXiv 2307.13304, eq. 2): H = (U + I)·D·(U + I)ᵀ with U strictly upper, and
/// q_k = Q(w_k + (W − Q)_{1..k−1}·U_{1..k−1, k}).
fn ldlq(w: &Dense, h: &Dense, level: Level, bits: u32) -> Dense {
    let n = h.rows;
    let turned = Dense::from_fn(n, n, |i, j| h.at(n - 1 - i, n - 1 - j));
    let l = turned.cholesky();
    let upper = Dense::from_fn(n, n, |i, j| l.at(n - 1 - i, n - 1 - j) / l.at(n - 1 - j, n - 1 - j));
    let mut q = Dense::from_fn(w.rows, n, |_, _| 0.0);
    for k in 0..n {
        for row in 0..w.rows {
            let feedback: f64 = (0..k).map(|j| (w.at(row, j) - q.at(row, j)) * upper.at(j, k)).sum();
            q.set(row, k, level.value(level.code(w.at(row, k) + feedback, bits)));
        }
    }
    q
}

#[test]
fn ldlq_is_gptq_on_reversed_columns() {
    let (rows, n, bits) = (6, 40, 3);
    let (w, h) = (Dense::new(rows, n, &random(1, rows * n)), hessian(2, n).damped(0.3));
    let level = Level::min_max(w.values.iter().copied(), bits);
    let reversed: Vec<u32> = (0..n as u32).rev().collect();
    // GPTQ compensates later columns, LDLQ takes from earlier ones: the textbook GPTQ in natural order is LDLQ of the same order
    // with the factor of the reversed matrix, which is what Theorem 6 of the paper says.
    let (codes, _) = gptq(&w, &h, bits, |_, _, _| level);
    let ours = ldlq(&w, &h, level, bits);
    let values = Dense::from_fn(rows, n, |i, j| level.value(codes.at(i, j)));
    assert_eq!(ours, values);
    // In the reversed order the two agree as well, on another result.
    let turn = |m: &Dense| Dense::from_fn(m.rows, n, |i, j| m.at(i, n - 1 - j));
    let (codes, _) = gptq(&turn(&w), &h.permuted(&reversed), bits, |_, _, _| level);
    let backwards = ldlq(&turn(&w), &h.permuted(&reversed), level, bits);
    assert_eq!(backwards, Dense::from_fn(rows, n, |i, j| level.value(codes.at(i, j))));
    assert_ne!(turn(&backwards), ours);
}

fn options(method: Method, rotation: RotationKind) -> QuantizeOptions {
    QuantizeOptions { method, rotation, grid: Search::MinMax, ..QuantizeOptions::default() }
}

/// Rounds a weight at `bits` bits. Returns the loss ⟨E·H, E⟩, and the rounded weight.
fn rounded(rec: &mut Recorder, w: &Dense, h: &Dense, options: &QuantizeOptions, bits: u32) -> (f64, Vec<f32>) {
    let n = h.rows;
    let dense = rec.upload(&[n, n], h.f32()).unwrap();
    let packed = gram::pack(rec, &dense).unwrap();
    let diagonal = block_on(HessianDiagonal::of(rec, &packed, "test")).unwrap();
    let rounder = group_rounder(rec, options, &packed, &diagonal);
    let weight = rec.upload(&[w.rows, n], w.f32()).unwrap();
    let grid = GridSpec::new(bits, n, Symmetry::Symmetric, ScaleType::F32);
    let rounded = block_on(rounder.round(rec, Layer { name: "test", grid }, &weight)).unwrap();
    let values = read(rec, &rounded.dequantized);
    (objective(&w.minus(&Dense::new(w.rows, n, &values)), h), values)
}

/// A weight with one outlier in each row, and a Hessian.
fn with_outliers() -> (Dense, Dense) {
    let (rows, n) = (48, 64);
    let mut w = Dense::new(rows, n, &random(5, rows * n));
    for i in 0..rows {
        w.set(i, (i * 7) % n, 12.0);
    }
    (w, hessian(6, n).damped(0.5))
}

device_tests!(outliers_cost_less_after_a_rotation: cpu, software_gpu);
fn outliers_cost_less_after_a_rotation(device: Device) {
    let (w, h) = with_outliers();
    let mut rec = recorder(&device);
    for (bits, kind) in [2, 3].into_iter().flat_map(|bits| KINDS.map(|kind| (bits, kind))) {
        let (error, _) = rounded(&mut rec, &w, &h, &options(Method::Quip, kind), bits);
        let (plain, _) = rounded(&mut rec, &w, &h, &options(Method::Gptq, kind), bits);
        assert!(error < 0.8 * plain, "{bits} bits, {kind:?}: {error} against {plain}");
    }
}

device_tests!(the_error_after_a_rotation_is_that_of_the_cpu: software_gpu);
fn the_error_after_a_rotation_is_that_of_the_cpu(device: Device) {
    let (w, h) = with_outliers();
    let mut recorders = [recorder(&Device::Cpu), recorder(&device)];
    for (bits, kind) in [2, 3].into_iter().flat_map(|bits| KINDS.map(|kind| (bits, kind))) {
        let quip = options(Method::Quip, kind);
        let [cpu, gpu] = recorders.each_mut().map(|rec| rounded(rec, &w, &h, &quip, bits).0);
        assert!((gpu / cpu - 1.0).abs() < 0.05, "{bits} bits, {kind:?}: {cpu} on the CPU, {gpu} on the GPU");
    }
}

device_tests!(at_eight_bits_only_the_cut_off_tails_are_left_and_dead_inputs_do_no_harm: cpu, software_gpu);
fn at_eight_bits_only_the_cut_off_tails_are_left_and_dead_inputs_do_no_harm(device: Device) {
    let (rows, n) = (20, 30);
    let mut w = Dense::new(rows, n, &random(7, rows * n));
    let mut h = hessian(8, n);
    for k in 0..n {
        h.set(k, 11, 0.0);
        h.set(11, k, 0.0);
    }
    (0..rows).for_each(|i| w.set(i, 11, 0.0));
    let mut rec = recorder(&device);
    let (_, values) = rounded(&mut rec, &w, &h, &options(Method::Quip, RotationKind::Kronecker), 8);
    let error: f64 = w.minus(&Dense::new(rows, n, &values)).values.iter().map(|e| e * e).sum();
    let norm: f64 = w.values.iter().map(|v| v * v).sum();
    // The range ends at 2.4 root mean squares, which hold 98 % of a normal distribution. The rest is cut off at any width.
    assert!(error / norm < 2e-2, "{}: {}", device.name(), error / norm);
}

device_tests!(a_weight_of_zeros_stays_finite: cpu, software_gpu);
fn a_weight_of_zeros_stays_finite(device: Device) {
    let (rows, n) = (4, 6);
    let w = Dense::from_fn(rows, n, |_, _| 0.0);
    let mut rec = recorder(&device);
    let (_, values) = rounded(&mut rec, &w, &hessian(1, n), &options(Method::Quip, RotationKind::Kronecker), 2);
    assert!(values.iter().all(|v| v.is_finite()), "{}", device.name());
}
