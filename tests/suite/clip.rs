//! `ops::clip`: the choice of a grid for each row and group, compared with float64.

use crate::common::{device_tests, grid_of, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::clip::{Best, Candidate};
use aquatint::ops::grid::Grid;

fn grid(rec: &mut Recorder, shape: [usize; 2], seed: u64) -> Grid {
    let values = |seed| random(seed, shape[0] * shape[1]);
    grid_of(rec, shape, values(seed), values(seed + 1))
}

device_tests!(every_cell_keeps_the_grid_of_least_loss: cpu, software_gpu);
fn every_cell_keeps_the_grid_of_least_loss(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size) in
        [([1, 1], 1), ([3, 5], 2), ([37, 100], 32), ([3, 130], 64), ([5, 300], 300), ([2, 7], 9)]
    {
        let groups = usize::div_ceil(n, group_size);
        let first = grid(&mut rec, [m, groups], 1);
        let mut expected: Vec<(f64, f32, f32)> = vec![(f64::from(f32::MAX), 0.0, 0.0); m * groups];
        let mut best = Best::new(&mut rec, first, group_size).unwrap();
        for candidate in 0..4 {
            let other = grid(&mut rec, [m, groups], 10 + 2 * candidate);
            let (e, c) = (random(20 + candidate, m * n), random(30 + candidate, m * n));
            let error = rec.upload(&[m, n], e.clone()).unwrap();
            let curved = rec.upload(&[m, n], c.clone()).unwrap();
            best.offer(&mut rec, Candidate { grid: &other, error: &error, curved: &curved }).unwrap();
            let (scales, zeros) = (read(&mut rec, &other.scales), read(&mut rec, &other.zeros));
            for (cell, best) in expected.iter_mut().enumerate() {
                let columns = cell % groups * group_size..n.min((cell % groups + 1) * group_size);
                let at = |i: usize| f64::from(e[cell / groups * n + i]) * f64::from(c[cell / groups * n + i]);
                let loss: f64 = columns.map(at).sum();
                // No two losses here are so close that rounding decides between them.
                assert!((loss - best.0).abs() > 1e-5);
                if loss < best.0 {
                    *best = (loss, scales[cell], zeros[cell]);
                }
            }
        }
        let (scales, zeros) = (read(&mut rec, &best.grid.scales), read(&mut rec, &best.grid.zeros));
        let found: Vec<_> = scales.into_iter().zip(zeros).collect();
        let expected: Vec<_> = expected.into_iter().map(|(_, scale, zero)| (scale, zero)).collect();
        assert_eq!(found, expected, "{} {m} × {n} in groups of {group_size}", device.name());
    }
}

#[test]
fn parts_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let first = grid(&mut rec, [2, 3], 1);
    let mut best = Best::new(&mut rec, first, 2).unwrap();
    let (fitting, other) = (grid(&mut rec, [2, 3], 3), grid(&mut rec, [3, 2], 5));
    let (error, wide) = (rec.zeros(&[2, 5]).unwrap(), rec.zeros(&[2, 7]).unwrap());
    let offer = |rec: &mut Recorder, best: &mut Best, grid, error, curved| {
        best.offer(rec, Candidate { grid, error, curved }).is_ok()
    };
    assert!(offer(&mut rec, &mut best, &fitting, &error, &error));
    assert!(!offer(&mut rec, &mut best, &other, &error, &error));
    assert!(!offer(&mut rec, &mut best, &fitting, &error, &wide));
    assert!(!offer(&mut rec, &mut best, &fitting, &wide, &wide));
}
