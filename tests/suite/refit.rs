//! `ops::refit`: the scale of a group by least squares, compared with float64, and with the best scale by its definition.

use crate::common::dense::{Dense, hessian, objective};
use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::grid::{Grid, GridSpec, ScaleType, Search, Symmetry, search};
use aquatint::ops::matmul::{Orientation, Rows, accumulate};
use aquatint::ops::refit::{Group, refit};
use aquatint::tensor::Tensor;
use half::f16;
use pollster::block_on;

const RIDGE: f32 = 0.25;

/// (m, n, group size, bits)
const CASES: [(usize, usize, usize, u32); 6] =
    [(1, 1, 1, 4), (3, 5, 2, 2), (37, 64, 32, 3), (65, 130, 130, 2), (37, 130, 50, 8), (70, 300, 128, 3)];

/// The errors w − s·(q − z). All matrices are `[m, …]`.
fn errors(w: &Dense, codes: &Dense, [scales, zeros]: [&Dense; 2], size: usize) -> Dense {
    Dense::from_fn(w.rows, w.columns, |i, j| {
        w.at(i, j) - scales.at(i, j / size) * (codes.at(i, j) - zeros.at(i, j / size))
    })
}

fn loss_of_row(errors: &Dense, h: &Dense, row: usize) -> f64 {
    objective(&Dense::from_fn(1, errors.columns, |_, j| errors.at(row, j)), h)
}

device_tests!(every_scale_is_the_best_for_its_codes: cpu, software_gpu);
fn every_scale_is_the_best_for_its_codes(device: Device) {
    for (case, (m, n, size, bits)) in CASES.into_iter().enumerate() {
        for scale_type in [ScaleType::F32, ScaleType::F16] {
            let mut rec = recorder(&device);
            let (w, h) = (Dense::new(m, n, &random(case as u64, m * n)), hessian(case as u64, n));
            let spec =
                GridSpec { bits, group_size: size, symmetry: Symmetry::Asymmetric, search: Search::MinMax, scale_type };
            let weight = rec.upload(&[m, n], w.f32()).unwrap();
            let mut grid = search(&mut rec, &weight, None, &spec).unwrap();
            let groups = n.div_ceil(size);
            let read_grid = |rec: &mut _, grid: &Grid| {
                [&grid.scales, &grid.zeros].map(|part| Dense::new(m, groups, &read(rec, part)))
            };
            let [mut scales, zeros] = read_grid(&mut rec, &grid);
            // The codes may be any. These are rounded to nearest on a grid that is a third too fine.
            let top = f64::from((1u32 << bits) - 1);
            let codes = Dense::from_fn(m, n, |i, j| {
                (w.at(i, j) / scales.at(i, j / size) * 1.3 + zeros.at(i, j / size)).round().clamp(0.0, top)
            });
            let damped = h.damped(f64::from(RIDGE));
            let hessian = rec.upload(&[n, n], h.f32()).unwrap();
            let columns = rec.upload(&[n, m], w.transposed().f32()).unwrap();
            let stored = codes.transposed().values.iter().map(|&code| code as u32).collect();
            let stored: Tensor<u32> = rec.upload(&[n, m], stored).unwrap();
            let first = errors(&w, &codes, [&scales, &zeros], size);
            let mut on_device = rec.upload(&[n, m], first.transposed().f32()).unwrap();
            for start in (0..n).step_by(size) {
                let count = size.min(n - start);
                let before = errors(&w, &codes, [&scales, &zeros], size);
                let group = |i, j: usize| {
                    if (start..start + count).contains(&j) { w.at(i, j) - before.at(i, j) } else { 0.0 }
                };
                let rounded = Dense::from_fn(m, n, group);
                let mut g: Tensor = rec.zeros(&[count, m]).unwrap();
                let rows = Rows { tensor: &hessian, start, count };
                accumulate(&mut rec, Orientation::Nn, rows, Rows::all(&on_device), &mut g, 0).unwrap();
                let v = rec.upload(&[n, m], rounded.times(&h).transposed().f32()).unwrap();
                let (w_columns, ridge) = (&columns, RIDGE);
                let group = Group { w: w_columns, codes: &stored, g: &g, v: &v, ridge, start, size, scale_type };
                refit(&mut rec, group, &mut grid, &mut on_device).unwrap();

                let [found, same_zeros] = read_grid(&mut rec, &grid);
                assert_eq!(same_zeros.values, zeros.values);
                for row in 0..m {
                    let context = format!("{} case {case} row {row} from {start}", device.name());
                    let (old, new) = (scales.at(row, start / size), found.at(row, start / size));
                    let loss = |scale: f64| {
                        let mut tried = scales.minus(&Dense::from_fn(m, groups, |_, _| 0.0));
                        tried.set(row, start / size, scale);
                        loss_of_row(&errors(&w, &codes, [&tried, &zeros], size), &damped, row)
                    };
                    // The loss is a parabola in s. Three values give its lowest point.
                    let [below, at, above] = [0.5, 1.0, 1.5].map(|factor| loss(old * factor));
                    let curvature = below - 2.0 * at + above;
                    if curvature <= 1e-9 * at.max(1e-12) {
                        assert_eq!(new, old, "{context}: no weight on this scale");
                        continue;
                    }
                    let best = old * (1.0 + 0.25 * (below - above) / curvature);
                    if best <= 1e-3 * old {
                        continue;
                    }
                    let unit = match scale_type {
                        ScaleType::F32 => 0.0,
                        ScaleType::F16 => {
                            assert_eq!(f64::from(f16::from_f64(new)), new, "{context}: no f16");
                            new / 2048.0
                        }
                    };
                    assert!((new - best).abs() <= 2e-4 * best + unit, "{context}: scale {new}, not {best}");
                }
                scales = found;
            }
            let after = errors(&w, &codes, [&scales, &zeros], size);
            assert!(objective(&after, &damped) <= objective(&first, &damped) * (1.0 + 1e-9));
            let kept = Dense::new(n, m, &read(&mut rec, &on_device)).transposed();
            let apart = kept.minus(&after).values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            assert!(apart < 1e-5, "{} case {case}: the errors kept are {apart} off", device.name());
        }
    }
}

device_tests!(a_scale_that_nothing_depends_on_or_that_would_not_be_positive_stays: cpu, software_gpu);
fn a_scale_that_nothing_depends_on_or_that_would_not_be_positive_stays(device: Device) {
    let mut rec = recorder(&device);
    // In row 0 the only level is 0. In row 1 a level of 1 stands for a weight of −1, so that the best scale would be negative.
    let w = rec.upload(&[1, 2], vec![0.5f32, -1.0]).unwrap();
    let codes = rec.upload(&[1, 2], vec![2u32, 3]).unwrap();
    let mut grid = Grid {
        scales: rec.upload(&[2, 1], vec![0.75f32, 1.0]).unwrap(),
        zeros: rec.upload(&[2, 1], vec![2.0f32, 2.0]).unwrap(),
    };
    let mut errors = rec.upload(&[1, 2], vec![0.5f32, -2.0]).unwrap();
    let g = rec.upload(&[1, 2], vec![0.5f32, -2.0]).unwrap();
    let v = rec.upload(&[1, 2], vec![0.0f32, 1.0]).unwrap();
    let (ridge, scale_type) = (0.5, ScaleType::F16);
    let group = Group { w: &w, codes: &codes, g: &g, v: &v, ridge, start: 0, size: 1, scale_type };
    refit(&mut rec, group, &mut grid, &mut errors).unwrap();
    assert_eq!(block_on(rec.read(&grid.scales)).unwrap(), [0.75, 1.0], "{}", device.name());
    assert_eq!(block_on(rec.read(&errors)).unwrap(), [0.5, -2.0], "{}", device.name());
}

#[test]
fn shapes_are_checked() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[4, 3]).unwrap();
    let codes = rec.zeros(&[4, 3]).unwrap();
    let g = rec.zeros(&[2, 3]).unwrap();
    let v = rec.zeros(&[4, 3]).unwrap();
    let mut grid = Grid { scales: rec.zeros(&[3, 2]).unwrap(), zeros: rec.zeros(&[3, 2]).unwrap() };
    let mut errors = rec.zeros(&[4, 3]).unwrap();
    let scale_type = ScaleType::F32;
    let group = Group { w: &w, codes: &codes, g: &g, v: &v, ridge: 1.0, start: 2, size: 2, scale_type };
    assert!(refit(&mut rec, group, &mut grid, &mut errors).is_ok());
    for wrong in [
        Group { start: 1, ..group },
        Group { start: 4, ..group },
        Group { size: 0, ..group },
        Group { size: 4, start: 0, ..group },
        Group { g: &v, ..group },
        Group { v: &g, ..group },
    ] {
        assert!(refit(&mut rec, wrong, &mut grid, &mut errors).is_err(), "{wrong:?}");
    }
}
