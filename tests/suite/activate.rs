//! `ops::activate`: the activations of the MLP, alone and as gates, compared with their definitions in float64.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::activate::{Activation, activate, gate};

const ALL: [Activation; 6] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Sigmoid,
];

/// erf(x): its Taylor series near zero; far from it, the continued fraction of 1 − erf. Both have an error near 10⁻¹⁶.
fn erf(x: f64) -> f64 {
    let square = x * x;
    if x.abs() < 3.0 {
        let terms = (0..100).scan(x, |power, n| {
            let term = *power / f64::from(2 * n + 1);
            *power *= -square / f64::from(n + 1);
            Some(term)
        });
        return std::f64::consts::FRAC_2_SQRT_PI * terms.sum::<f64>();
    }
    let fraction = (1..60).rev().fold(0.0, |rest, n| f64::from(n) / 2.0 / (x.abs() + rest));
    let tail = (-square).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction);
    (1.0 - tail).copysign(x)
}

/// The definition of an activation.
fn defined(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x / 2.0 * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Sigmoid => sigmoid(x),
    }
}

/// The largest error of `values`, each relative to the size of f(x)·up that its argument allows.
fn worst(activation: Activation, values: &[f32], x: &[f32], up: &[f32]) -> f64 {
    let error = |((&value, &x), &up): ((&f32, &f32), &f32)| {
        let (x, up) = (f64::from(x), f64::from(up));
        let size = if activation == Activation::ReluSquared { x * x } else { x.abs() };
        (f64::from(value) - defined(activation, x) * up).abs() / (size.max(1.0) * up.abs().max(1e-3))
    };
    values.iter().zip(x).zip(up).map(error).fold(0.0, f64::max)
}

/// f(x) on a device, without a gate.
fn run(rec: &mut Recorder, activation: Activation, x: &[f32]) -> Vec<f32> {
    let x = rec.upload(&[1, x.len()], x.to_vec()).unwrap();
    let out = activate(rec, activation, &x).unwrap();
    read(rec, &out)
}

#[test]
fn the_error_function_has_its_known_values() {
    for (x, value) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.0, 0.9999779095030014)] {
        assert!((erf(x) - value).abs() < 1e-15 && (erf(-x) + value).abs() < 1e-15, "erf({x}) = {}", erf(x));
    }
    assert!((erf(2.9999999) - erf(3.0)).abs() < 1e-10);
}

device_tests!(every_activation_is_its_definition: cpu, software_gpu);
fn every_activation_is_its_definition(device: Device) {
    let mut rec = recorder(&device);
    // All sizes that occur, with steps that are finer where the functions bend.
    let near = (-6000..=6000).map(|i| i as f32 * 1e-3);
    let far = (-400..=400).map(|i| i as f32 * 0.25);
    let x: Vec<f32> = near.chain(far).collect();
    let ones = vec![1.0; x.len()];
    for activation in ALL {
        let error = worst(activation, &run(&mut rec, activation, &x), &x, &ones);
        assert!(error < 1e-6, "{} {activation:?}: {error}", device.name());
    }
}

device_tests!(gates_every_element: cpu, software_gpu);
fn gates_every_element(device: Device) {
    let mut rec = recorder(&device);
    for activation in ALL {
        for [tokens, width] in [[1, 1], [1, 257], [3, 86], [130, 129]] {
            let x: Vec<f32> = random(1, tokens * width).iter().map(|x| x * 12.0).collect();
            let up = random(2, tokens * width);
            let x_tensor = rec.upload(&[tokens, width], x.clone()).unwrap();
            let up_tensor = rec.upload(&[tokens, width], up.clone()).unwrap();
            let out = gate(&mut rec, activation, &x_tensor, &up_tensor).unwrap();
            assert_eq!(out.shape(), [tokens, width]);
            let error = worst(activation, &read(&mut rec, &out), &x, &up);
            assert!(error < 1e-6, "{} {activation:?} [{tokens}, {width}]: {error}", device.name());
        }
    }
}

device_tests!(more_workgroups_than_an_axis_is_given: cpu, software_gpu);
fn more_workgroups_than_an_axis_is_given(device: Device) {
    let mut rec = recorder(&device);
    let (x, up) = (random(1, 1027 * 1025), random(2, 1027 * 1025));
    let x_tensor = rec.upload(&[1027, 1025], x.clone()).unwrap();
    let up_tensor = rec.upload(&[1027, 1025], up.clone()).unwrap();
    let gated = gate(&mut rec, Activation::Silu, &x_tensor, &up_tensor).unwrap();
    let error = worst(Activation::Silu, &read(&mut rec, &gated), &x, &up);
    assert!(error < 1e-6, "{}: {error}", device.name());
    let plain = activate(&mut rec, Activation::Relu, &x_tensor).unwrap();
    let expected: Vec<f32> = x.iter().map(|x| x.max(0.0)).collect();
    assert!(read(&mut rec, &plain) == expected, "{}", device.name());
}

device_tests!(stays_finite_far_from_zero: cpu, software_gpu);
fn stays_finite_far_from_zero(device: Device) {
    let mut rec = recorder(&device);
    for activation in ALL {
        let out = run(&mut rec, activation, &[-1e30, -200.0, -17.0, 0.0, 200.0, 1e18]);
        let expected = match activation {
            Activation::ReluSquared => [0.0, 40_000.0, 1e36],
            Activation::Sigmoid => [0.5, 1.0, 1.0],
            _ => [0.0, 200.0, 1e18],
        };
        assert!(out[0].abs() < 1e-4 && out[1].abs() < 1e-30, "{} {activation:?}: {out:?}", device.name());
        assert!(out[2].abs() < 1e-6, "{} {activation:?}: {out:?}", device.name());
        assert!(out[3..].iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b), "{activation:?}: {out:?}");
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let mut rec = recorder(&Device::Cpu);
    for activation in ALL {
        assert!(run(&mut rec, activation, &[f32::NAN])[0].is_nan(), "{activation:?}");
    }
}

#[test]
fn shapes_that_differ_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let (x, up) = (rec.zeros(&[2, 3]).unwrap(), rec.zeros(&[3, 2]).unwrap());
    let refused = gate(&mut rec, Activation::Gelu, &x, &up).unwrap_err();
    assert!(refused.to_string().contains("[3, 2], [2, 3] is needed"));
    let vector = rec.zeros(&[6]).unwrap();
    assert!(activate(&mut rec, Activation::Gelu, &vector).is_err());
}
