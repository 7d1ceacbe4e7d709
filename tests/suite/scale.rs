//! `ops::scale`: every element times a factor, or every column times its own; a factor of zero takes a column out.

use aquatint::device::Device;
use aquatint::ops::scale::{scale, scale_columns};

use crate::common::{device_tests, random, read, recorder};

const SHAPES: [[usize; 2]; 5] = [[1, 1], [1, 70], [65, 1], [33, 47], [128, 300]];

device_tests!(each_column_gets_its_factor_and_zero_takes_it_out: cpu, software_gpu);
fn each_column_gets_its_factor_and_zero_takes_it_out(device: Device) {
    let mut rec = recorder(&device);
    for [m, n] in SHAPES {
        let values = random(1, m * n);
        let mut factors = random(2, n);
        factors[n / 2] = 0.0;
        let mut w = rec.upload(&[m, n], values.clone()).unwrap();
        let factors_tensor = rec.upload(&[n], factors.clone()).unwrap();
        scale_columns(&mut rec, &mut w, &factors_tensor).unwrap();
        let expected: Vec<f32> = values.iter().enumerate().map(|(at, v)| v * factors[at % n]).collect();
        assert_eq!(read(&mut rec, &w), expected, "{} {m} × {n}", device.name());
    }
}

device_tests!(each_element_gets_the_factor: cpu, software_gpu);
fn each_element_gets_the_factor(device: Device) {
    let mut rec = recorder(&device);
    for [m, n] in SHAPES.into_iter().chain([[1031, 1033]]) {
        let values = random(1, m * n);
        let mut x = rec.upload(&[m, n], values.clone()).unwrap();
        scale(&mut rec, &mut x, -0.3).unwrap();
        let expected: Vec<f32> = values.iter().map(|x| x * -0.3).collect();
        assert!(read(&mut rec, &x) == expected, "{} {m} × {n}", device.name());
    }
}

#[test]
fn factors_of_another_count_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let mut w = rec.zeros::<f32>(&[2, 3]).unwrap();
    let factors = rec.zeros(&[2]).unwrap();
    assert!(scale_columns(&mut rec, &mut w, &factors).is_err());
}
