//! `ops::rtn`: rounding to a given grid, compared with float64.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::grid::Grid;
use aquatint::ops::rtn::round;

device_tests!(rounds_to_the_nearest_code: cpu, software_gpu);
fn rounds_to_the_nearest_code(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size, bits) in
        [([1usize, 1usize], 1, 4), ([3, 5], 2, 2), ([37, 100], 32, 3), ([37, 130], 130, 4), ([3, 300], 128, 8)]
    {
        let groups = n.div_ceil(group_size);
        let top = f64::from((1u32 << bits) - 1);
        let values = random(1, m * n);
        let scales: Vec<f32> = random(2, m * groups).iter().map(|v| (v.abs() + 0.2) / top as f32).collect();
        let zeros: Vec<f32> = random(3, m * groups).iter().map(|v| (v.abs() * top as f32).round()).collect();
        let w = rec.upload(&[m, n], values.clone()).unwrap();
        let grid = Grid {
            scales: rec.upload(&[m, groups], scales.clone()).unwrap(),
            zeros: rec.upload(&[m, groups], zeros.clone()).unwrap(),
        };
        let (codes, dequantized) = round(&mut rec, &w, &grid, group_size, bits).unwrap();
        let codes = pollster::block_on(rec.read(&codes)).unwrap();
        let dequantized = read(&mut rec, &dequantized);
        let mut different = 0;
        for (at, &w) in values.iter().enumerate() {
            let group = at / n * groups + at % n / group_size;
            let (scale, zero) = (f64::from(scales[group]), f64::from(zeros[group]));
            let code = ((f64::from(w) / scale).round_ties_even() + zero).clamp(0.0, top);
            different += usize::from(code != f64::from(codes[at]));
            let value = scale * (f64::from(codes[at]) - zero);
            assert!((value - f64::from(dequantized[at])).abs() <= 1e-6 * value.abs(), "{}", device.name());
        }
        assert!(different * 1000 <= m * n, "{} {m} × {n}: {different}", device.name());
    }
}

device_tests!(halves_go_to_the_even_level_and_the_ends_are_kept: cpu, software_gpu);
fn halves_go_to_the_even_level_and_the_ends_are_kept(device: Device) {
    let mut rec = recorder(&device);
    let w = rec.upload(&[1, 8], vec![-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -100.0, 100.0]).unwrap();
    let grid = Grid { scales: rec.upload(&[1, 1], vec![1.0]).unwrap(), zeros: rec.upload(&[1, 1], vec![8.0]).unwrap() };
    let (codes, values) = round(&mut rec, &w, &grid, 8, 4).unwrap();
    assert_eq!(pollster::block_on(rec.read(&codes)).unwrap(), [6, 6, 8, 8, 10, 10, 0, 15], "{}", device.name());
    assert_eq!(read(&mut rec, &values), [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, -8.0, 7.0], "{}", device.name());
}

#[test]
fn a_grid_of_other_groups_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[2, 5]).unwrap();
    let grid = Grid { scales: rec.zeros(&[2, 2]).unwrap(), zeros: rec.zeros(&[2, 2]).unwrap() };
    assert!(round(&mut rec, &w, &grid, 2, 4).is_err());
    assert!(round(&mut rec, &w, &grid, 0, 4).is_err());
    assert!(round(&mut rec, &w, &grid, 3, 9).is_err());
    assert!(round(&mut rec, &w, &grid, 3, 4).is_ok());
}
