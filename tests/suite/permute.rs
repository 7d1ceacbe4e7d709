//! `ops::permute`: transposes with permuted columns, bit for bit.

use crate::common::dense::shuffled;
use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::permute::{from_columns, to_columns};

const SHAPES: [[usize; 2]; 7] = [[1, 1], [3, 5], [37, 63], [64, 64], [33, 65], [1, 100], [100, 1]];

device_tests!(columns_in_processing_order_and_back: cpu, software_gpu);
fn columns_in_processing_order_and_back(device: Device) {
    let mut rec = recorder(&device);
    for [m, n] in SHAPES {
        let values = random(1, m * n);
        let order = shuffled(n as u64, n);
        let w = rec.upload(&[m, n], values.clone()).unwrap();
        let order_tensor = rec.upload(&[n], order.clone()).unwrap();
        let columns = to_columns(&mut rec, &w, &order_tensor).unwrap();
        assert_eq!(columns.shape(), [n, m]);
        let expected: Vec<f32> =
            order.iter().flat_map(|&i| (0..m).map(move |r| r * n + i as usize)).map(|at| values[at]).collect();
        assert_eq!(read(&mut rec, &columns), expected, "{} {m} × {n}", device.name());
        let back = from_columns(&mut rec, &columns, &order_tensor).unwrap();
        assert_eq!(back.shape(), [m, n]);
        assert_eq!(read(&mut rec, &back), values, "{} {m} × {n}", device.name());
    }
}

device_tests!(codes_come_back_in_the_original_order: cpu, software_gpu);
fn codes_come_back_in_the_original_order(device: Device) {
    let mut rec = recorder(&device);
    for [m, n] in SHAPES {
        let values: Vec<u32> = (0..(m * n) as u32).collect();
        let order = shuffled(2, n);
        let columns = rec.upload(&[n, m], values.clone()).unwrap();
        let order_tensor = rec.upload(&[n], order.clone()).unwrap();
        let codes = from_columns(&mut rec, &columns, &order_tensor).unwrap();
        let codes = pollster::block_on(rec.read(&codes)).unwrap();
        for (i, &column) in order.iter().enumerate() {
            for r in 0..m {
                assert_eq!(codes[r * n + column as usize], values[i * m + r], "{} {m} × {n}", device.name());
            }
        }
    }
}

#[test]
fn an_order_of_another_length_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros::<f32>(&[2, 3]).unwrap();
    let order = rec.zeros(&[2]).unwrap();
    assert!(to_columns(&mut rec, &w, &order).is_err());
    let order = rec.zeros(&[3]).unwrap();
    assert!(from_columns(&mut rec, &w, &order).is_err());
}
