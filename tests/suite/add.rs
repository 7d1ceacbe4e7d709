//! `ops::add`: sums in place, compared with float64, or bit for bit where a single rounding leaves no choice.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::add::{add_assign, add_bias, add_scaled};

device_tests!(adds_a_multiple_to_every_element: cpu, software_gpu);
fn adds_a_multiple_to_every_element(device: Device) {
    let mut rec = recorder(&device);
    for [tokens, width] in [[1, 1], [5, 51], [16, 16], [1031, 1033]] {
        let (va, vb) = (random(1, tokens * width), random(2, tokens * width));
        let mut a = rec.upload(&[tokens, width], va.clone()).unwrap();
        let b = rec.upload(&[tokens, width], vb.clone()).unwrap();
        add_scaled(&mut rec, &mut a, -0.3, &b).unwrap();
        let expected: Vec<f64> =
            va.iter().zip(&vb).map(|(&a, &b)| f64::from(a) + f64::from(-0.3f32) * f64::from(b)).collect();
        let error = relative_error(&read(&mut rec, &a), &expected);
        assert!(error < 1e-7, "{} [{tokens}, {width}]: {error}", device.name());
    }
}

device_tests!(plain_addition_rounds_once: cpu, software_gpu);
fn plain_addition_rounds_once(device: Device) {
    let mut rec = recorder(&device);
    let (va, vb) = (random(1, 999), random(2, 999));
    let mut a = rec.upload(&[27, 37], va.clone()).unwrap();
    let b = rec.upload(&[27, 37], vb.clone()).unwrap();
    add_assign(&mut rec, &mut a, &b).unwrap();
    let expected: Vec<f32> = va.iter().zip(&vb).map(|(a, b)| a + b).collect();
    assert_eq!(read(&mut rec, &a), expected, "{}", device.name());
}

device_tests!(the_bias_goes_to_every_token: cpu, software_gpu);
fn the_bias_goes_to_every_token(device: Device) {
    let mut rec = recorder(&device);
    for [tokens, width] in [[1, 1], [1, 300], [300, 1], [67, 35]] {
        let (vy, vb) = (random(1, tokens * width), random(2, width));
        let mut y = rec.upload(&[tokens, width], vy.clone()).unwrap();
        let bias = rec.upload(&[width], vb.clone()).unwrap();
        add_bias(&mut rec, &mut y, &bias).unwrap();
        let expected: Vec<f32> = vy.iter().enumerate().map(|(i, y)| y + vb[i % width]).collect();
        assert_eq!(read(&mut rec, &y), expected, "{} [{tokens}, {width}]", device.name());
    }
}

#[test]
fn shapes_that_differ_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let mut a = rec.zeros(&[2, 3]).unwrap();
    let b = rec.zeros(&[3, 2]).unwrap();
    let bias = rec.zeros(&[2]).unwrap();
    assert!(add_assign(&mut rec, &mut a, &b).is_err());
    assert!(add_bias(&mut rec, &mut a, &bias).is_err());
}
