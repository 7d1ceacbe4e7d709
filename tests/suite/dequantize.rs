//! `ops::dequantize`: s·(q − z), with a shorter last group, and with more elements than one row of workgroups has.

use crate::common::{device_tests, read, recorder};
use aquatint::device::Device;
use aquatint::ops::dequantize::dequantize;
use aquatint::ops::grid::Grid;

device_tests!(every_code_with_the_grid_of_its_row_and_group: cpu, software_gpu);
fn every_code_with_the_grid_of_its_row_and_group(device: Device) {
    let mut rec = recorder(&device);
    for [rows, columns, group] in [[1, 1, 1], [3, 100, 32], [7, 5, 128], [1100, 1000, 300]] {
        let groups = usize::div_ceil(columns, group);
        let codes: Vec<u32> = (0..rows * columns).map(|i| (i * 7 % 16) as u32).collect();
        let scales: Vec<f32> = (0..rows * groups).map(|i| 0.25 + i as f32).collect();
        let zeros: Vec<f32> = (0..rows * groups).map(|i| (i % 15) as f32).collect();
        let expected: Vec<f32> = (0..rows * columns)
            .map(|i| (i / columns * groups + i % columns / group, codes[i] as f32))
            .map(|(cell, code)| scales[cell] * (code - zeros[cell]))
            .collect();
        let grid = Grid {
            scales: rec.upload(&[rows, groups], scales).unwrap(),
            zeros: rec.upload(&[rows, groups], zeros).unwrap(),
        };
        let codes = rec.upload(&[rows, columns], codes).unwrap();
        let values = dequantize(&mut rec, &codes, &grid, group).unwrap();
        assert_eq!(read(&mut rec, &values), expected, "{} {rows}×{columns}", device.name());
    }
}
