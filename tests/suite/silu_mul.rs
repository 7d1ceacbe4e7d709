//! `ops::silu_mul`: the gate of the MLP, compared with its definition in float64.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::silu_mul::silu_mul;

device_tests!(gates_every_element: cpu, software_gpu);
fn gates_every_element(device: Device) {
    let mut rec = recorder(&device);
    for [tokens, width] in [[1, 1], [1, 257], [3, 86], [1027, 1025]] {
        let gate: Vec<f32> = random(1, tokens * width).iter().map(|x| x * 12.0).collect();
        let up = random(2, tokens * width);
        let gate_tensor = rec.upload(&[tokens, width], gate.clone()).unwrap();
        let up_tensor = rec.upload(&[tokens, width], up.clone()).unwrap();
        let out = silu_mul(&mut rec, &gate_tensor, &up_tensor).unwrap();
        let one = |(&g, &u): (&f32, &f32)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u);
        let expected: Vec<f64> = gate.iter().zip(&up).map(one).collect();
        let error = relative_error(&read(&mut rec, &out), &expected);
        assert!(error < 1e-6, "{} [{tokens}, {width}]: {error}", device.name());
    }
}

device_tests!(stays_finite_far_from_zero: cpu, software_gpu);
fn stays_finite_far_from_zero(device: Device) {
    let mut rec = recorder(&device);
    let gate = rec.upload(&[1, 5], vec![-1e30, -200.0, 0.0, 200.0, 1e30]).unwrap();
    let up = rec.upload(&[1, 5], vec![1.0; 5]).unwrap();
    let out = silu_mul(&mut rec, &gate, &up).unwrap();
    let out = read(&mut rec, &out);
    assert!(out[1].abs() < 1e-30, "{}: {out:?}", device.name());
    assert!(out[0].abs() < 1e-4 && out[2..] == [0.0, 200.0, 1e30], "{}: {out:?}", device.name());
}

#[test]
fn shapes_that_differ_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let gate = rec.zeros(&[2, 3]).unwrap();
    let up = rec.zeros(&[3, 2]).unwrap();
    assert!(silu_mul(&mut rec, &gate, &up).unwrap_err().to_string().contains("[3, 2], [2, 3] is needed"));
}
