//! `ops::rtn`: rounding to a given grid, compared with float64.

use crate::common::{device_tests, grid_of, kinds, levels, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::grid::{GridSpec, ScaleType, Symmetry};
use aquatint::ops::rtn::round;

device_tests!(rounds_to_the_nearest_code: cpu, software_gpu);
fn rounds_to_the_nearest_code(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size, bits) in
        [([1usize, 1usize], 1, 4), ([3, 5], 2, 2), ([37, 100], 32, 3), ([37, 130], 130, 4), ([3, 300], 128, 8)]
    {
        for spec in kinds::unrounded(bits, group_size) {
            let groups = n.div_ceil(group_size);
            let values = random(1, m * n);
            let signs = random(4, m * groups);
            let scales = random(2, m * groups).into_iter().zip(signs).map(|(v, sign)| {
                let size = (v.abs() + 0.2) / spec.top();
                if spec.signed { size.copysign(sign) } else { size }
            });
            let seconds = random(3, m * groups).into_iter().map(|v| match spec.has_offsets() {
                true => v,
                false => (v.abs() * spec.top()).round(),
            });
            let (scales, seconds) = (scales.collect(), seconds.collect());
            let w = rec.upload(&[m, n], values.clone()).unwrap();
            let grid = grid_of(&mut rec, [m, groups], scales, seconds);
            let levels = levels(&mut rec, &spec, &grid);
            let (codes, dequantized) = round(&mut rec, &w, &grid, &spec).unwrap();
            let codes = pollster::block_on(rec.read(&codes)).unwrap();
            let dequantized = read(&mut rec, &dequantized);
            let mut different = 0;
            for (at, &w) in values.iter().enumerate() {
                let level = levels.at(at / n, at % n);
                let code = level.code(f64::from(w), bits);
                different += usize::from(code != f64::from(codes[at]));
                let value = level.value(f64::from(codes[at]));
                // A level and an offset may cancel.
                let slack = 1e-6 * (value.abs() + level.offset.abs());
                assert!((value - f64::from(dequantized[at])).abs() <= slack, "{} {spec:?}", device.name());
            }
            assert!(different * 1000 <= m * n, "{} {m} × {n} {spec:?}: {different}", device.name());
        }
    }
}

device_tests!(halves_go_to_the_even_level_and_the_ends_are_kept: cpu, software_gpu);
fn halves_go_to_the_even_level_and_the_ends_are_kept(device: Device) {
    let mut rec = recorder(&device);
    let w = rec.upload(&[1, 8], vec![-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -100.0, 100.0]).unwrap();
    let zeros = GridSpec::new(4, 8, Symmetry::Asymmetric, ScaleType::F32);
    let offsets = GridSpec::with_offsets(4, 8, ScaleType::F32);
    for (spec, scale, second, expected, ends) in [
        (zeros, 1.0, 8.0, [6, 6, 8, 8, 10, 10, 0, 15], [-8.0, 7.0]),
        (zeros, -1.0, 8.0, [10, 10, 8, 8, 6, 6, 15, 0], [-7.0, 8.0]),
        (offsets, 1.0, -8.0, [6, 6, 8, 8, 10, 10, 0, 15], [-8.0, 7.0]),
    ] {
        let grid = grid_of(&mut rec, [1, 1], vec![scale], vec![second]);
        let (codes, values) = round(&mut rec, &w, &grid, &spec).unwrap();
        assert_eq!(pollster::block_on(rec.read(&codes)).unwrap(), expected, "{} {spec:?}", device.name());
        let expected = [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, ends[0], ends[1]];
        assert_eq!(read(&mut rec, &values), expected, "{} {spec:?}", device.name());
    }
}

#[test]
fn a_grid_of_other_groups_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[2, 5]).unwrap();
    let grid = grid_of(&mut rec, [2, 2], vec![0.0; 4], vec![0.0; 4]);
    let spec = GridSpec::new(4, 3, Symmetry::Asymmetric, ScaleType::F32);
    assert!(round(&mut rec, &w, &grid, &GridSpec { group_size: 2, ..spec }).is_err());
    assert!(round(&mut rec, &w, &grid, &GridSpec { group_size: 0, ..spec }).is_err());
    assert!(round(&mut rec, &w, &grid, &GridSpec { bits: 9, ..spec }).is_err());
    assert!(round(&mut rec, &w, &grid, &spec).is_ok());
}
