//! `ops::grouped_product`: the product with diagonal blocks, compared with float64.

use crate::common::dense::Dense;
use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::grouped_product::grouped_product;

device_tests!(only_inputs_of_the_same_group_take_part: cpu, software_gpu);
fn only_inputs_of_the_same_group_take_part(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size) in [
        ([1, 1], 1),
        ([3, 5], 2),
        ([37, 100], 32),
        ([65, 130], 64),
        ([100, 200], 48),
        ([5, 300], 300),
        ([70, 129], 1000),
        ([2, 260], 128),
        ([200, 64], 1),
    ] {
        let (va, vb) = (random(1, m * n), random(2, n * n));
        let (a, b) = (Dense::new(m, n, &va), Dense::new(n, n, &vb));
        let masked = Dense::from_fn(n, n, |i, j| if i / group_size == j / group_size { b.at(i, j) } else { 0.0 });
        let a_there = rec.upload(&[m, n], va).unwrap();
        let b_there = rec.upload(&[n, n], vb).unwrap();
        let out = grouped_product(&mut rec, &a_there, &b_there, group_size).unwrap();
        assert_eq!(out.shape(), [m, n]);
        let error = relative_error(&read(&mut rec, &out), &a.times(&masked).values);
        assert!(error < 1e-6, "{} {m} × {n} in groups of {group_size}: {error}", device.name());
    }
}

#[test]
fn shapes_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let (a, b, wide) = (rec.zeros(&[2, 3]).unwrap(), rec.zeros(&[3, 3]).unwrap(), rec.zeros(&[3, 4]).unwrap());
    assert!(grouped_product(&mut rec, &a, &b, 2).is_ok());
    assert!(grouped_product(&mut rec, &a, &wide, 2).is_err());
    assert!(grouped_product(&mut rec, &a, &b, 0).is_err());
}
