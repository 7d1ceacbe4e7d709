//! `ops::dequantize`: s·(q − z) or s·q + o, with a shorter last group, and with more elements than one row of workgroups has.

use crate::common::{device_tests, grid_of, read, recorder};
use aquatint::device::Device;
use aquatint::ops::dequantize::dequantize;
use aquatint::ops::grid::{GridSpec, ScaleType, Symmetry};

device_tests!(every_code_with_the_grid_of_its_row_and_group: cpu, software_gpu);
fn every_code_with_the_grid_of_its_row_and_group(device: Device) {
    let mut rec = recorder(&device);
    for [rows, columns, group] in [[1, 1, 1], [3, 100, 32], [7, 5, 128], [1100, 1000, 300]] {
        for spec in [
            GridSpec::new(4, group, Symmetry::Asymmetric, ScaleType::F32),
            GridSpec::with_offsets(4, group, ScaleType::F32),
        ] {
            let groups = usize::div_ceil(columns, group);
            let codes: Vec<u32> = (0..rows * columns).map(|i| (i * 7 % 16) as u32).collect();
            // Scales of both signs. All products and sums are exact.
            let sign = |i: usize| if i % 3 == 1 { -1.0 } else { 1.0 };
            let scales: Vec<f32> = (0..rows * groups).map(|i| sign(i) * (0.25 + i as f32)).collect();
            let seconds: Vec<f32> = (0..rows * groups).map(|i| (i % 15) as f32).collect();
            let expected: Vec<f32> = (0..rows * columns)
                .map(|i| (i / columns * groups + i % columns / group, codes[i] as f32))
                .map(|(cell, code)| match spec.has_offsets() {
                    true => scales[cell] * code + seconds[cell],
                    false => scales[cell] * (code - seconds[cell]),
                })
                .collect();
            let grid = grid_of(&mut rec, [rows, groups], scales, seconds);
            let codes = rec.upload(&[rows, columns], codes).unwrap();
            let values = dequantize(&mut rec, &codes, &grid, &spec).unwrap();
            assert_eq!(read(&mut rec, &values), expected, "{} {rows}×{columns} {spec:?}", device.name());
        }
    }
}
