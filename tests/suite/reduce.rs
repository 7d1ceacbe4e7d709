//! `ops::reduce`: sums over all elements, compared with float64.

use crate::common::{device_tests, random, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::reduce::{dot, squared_difference, sum_squares, total};
use aquatint::tensor::Tensor;

fn sum(rec: &mut Recorder, partials: &Tensor) -> f64 {
    assert!(partials.len() <= 256);
    pollster::block_on(total(rec, partials)).unwrap()
}

device_tests!(sums_every_element: cpu, software_gpu);
fn sums_every_element(device: Device) {
    let mut rec = recorder(&device);
    for shape in [[1, 1], [3, 5], [64, 64], [17, 241], [1500, 1601]] {
        let len = shape[0] * shape[1];
        let (va, vb) = (random(1, len), random(2, len));
        let a = rec.upload(&shape, va.clone()).unwrap();
        let b = rec.upload(&shape, vb.clone()).unwrap();
        let pairs = || va.iter().zip(&vb).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let product = dot(&mut rec, &a, &b).unwrap();
        let difference = squared_difference(&mut rec, &a, &b).unwrap();
        let squares = sum_squares(&mut rec, &a).unwrap();
        // The products cancel, so the error is taken relative to the sum of their absolute values.
        let size: f64 = pairs().map(|(a, b)| (a * b).abs()).sum();
        let error = (sum(&mut rec, &product) - pairs().map(|(a, b)| a * b).sum::<f64>()).abs() / size;
        assert!(error < 1e-7, "{} dot {shape:?}: {error}", device.name());
        let expected: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
        let error = (sum(&mut rec, &difference) / expected - 1.0).abs();
        assert!(error < 3e-7, "{} squared_difference {shape:?}: {error}", device.name());
        let expected: f64 = pairs().map(|(a, _)| a * a).sum();
        let error = (sum(&mut rec, &squares) / expected - 1.0).abs();
        assert!(error < 3e-7, "{} sum_squares {shape:?}: {error}", device.name());
    }
}

device_tests!(nothing_sums_to_zero: cpu, software_gpu);
fn nothing_sums_to_zero(device: Device) {
    let mut rec = recorder(&device);
    let a = rec.zeros(&[0, 7]).unwrap();
    let partials = sum_squares(&mut rec, &a).unwrap();
    assert_eq!(sum(&mut rec, &partials), 0.0);
}

#[test]
fn shapes_that_differ_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let a = rec.zeros(&[2, 3]).unwrap();
    let b = rec.zeros(&[3, 2]).unwrap();
    assert!(dot(&mut rec, &a, &b).is_err() && squared_difference(&mut rec, &a, &b).is_err());
}
