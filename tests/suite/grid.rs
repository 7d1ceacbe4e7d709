//! `ops::grid`: the search for grids, compared with a search in float64.

use crate::common::dense::Level;
use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::grid::{GridSpec, ScaleType, Search, Symmetry, search, shrunk};
use half::f16;

const SYMMETRIES: [Symmetry; 2] = [Symmetry::Asymmetric, Symmetry::Symmetric];
const SCALE_TYPES: [ScaleType; 2] = [ScaleType::F32, ScaleType::F16];

fn candidate(w: &[f32], factor: f64, spec: &GridSpec) -> Level {
    let ends = w.iter().fold((0.0f64, 0.0f64), |(low, high), &w| (low.min(f64::from(w)), high.max(f64::from(w))));
    let (low, high) = match (ends, spec.symmetry) {
        ((0.0, 0.0), _) => (-1.0, 1.0),
        (ends, Symmetry::Asymmetric) => ends,
        ((low, high), Symmetry::Symmetric) => (-high.max(-low), high.max(-low)),
    };
    let top = f64::from((1u32 << spec.bits) - 1);
    let exact = factor * (high - low) / top;
    let scale = match spec.scale_type {
        ScaleType::F32 => exact,
        ScaleType::F16 => f64::from(f16::from_f64(exact)).clamp(2.0f64.powi(-24), 65504.0),
    };
    let zero = match spec.symmetry {
        Symmetry::Asymmetric => (-factor * low / scale).round_ties_even().clamp(0.0, top),
        Symmetry::Symmetric => f64::from(1u32 << (spec.bits - 1)),
    };
    Level { scale, zero }
}

/// The loss of a group: Σ weight·|w − ŵ|^power.
fn loss(w: &[f32], weights: &[f32], power: f64, level: Level, bits: u32) -> f64 {
    let error = |w: f32| (f64::from(w) - level.value(level.code(f64::from(w), bits))).abs();
    w.iter().zip(weights).map(|(&w, &weight)| f64::from(weight) * error(w).powf(power)).sum()
}

/// Compares the grids of a matrix with the best of all candidates. A grid must be the same but for rounding, or lose no more.
fn check(device: &Device, [m, n]: [usize; 2], values: &[f32], spec: &GridSpec) {
    let mut rec = recorder(device);
    let w = rec.upload(&[m, n], values.to_vec()).unwrap();
    // The columns have very different importance, one of them none.
    let weights: Vec<f32> = match spec.search {
        Search::Weighted => (0..n).map(|j| if j == 1 { 0.0 } else { 2.0f32.powi(j as i32 * 7 % 13) }).collect(),
        Search::MinMax | Search::Mse => vec![1.0; n],
    };
    let power = if spec.search == Search::Weighted { 2.0 } else { 2.4 };
    let on_device = rec.upload(&[n, 1], weights.clone()).unwrap();
    let given = (spec.search == Search::Weighted).then_some(&on_device);
    let grid = search(&mut rec, &w, given, spec).unwrap();
    let groups = n.div_ceil(spec.group_size);
    assert_eq!((grid.scales.shape(), grid.zeros.shape()), (&[m, groups][..], &[m, groups][..]));
    let (scales, zeros) = (read(&mut rec, &grid.scales), read(&mut rec, &grid.zeros));
    let factors = if spec.search == Search::MinMax { 1 } else { 80 };
    for (at, (&scale, &zero)) in scales.iter().zip(&zeros).enumerate() {
        let row = &values[at / groups * n..(at / groups + 1) * n];
        let columns = at % groups * spec.group_size..n.min((at % groups + 1) * spec.group_size);
        let (w, weights) = (&row[columns.clone()], &weights[columns]);
        let loss = |level| loss(w, weights, power, level, spec.bits);
        let candidates: Vec<_> = (0..factors).map(|i| candidate(w, f64::from(100 - i) / 100.0, spec)).collect();
        let found = Level { scale: f64::from(scale), zero: f64::from(zero) };
        let least = candidates.iter().map(|&c| loss(c)).fold(f64::INFINITY, f64::min);
        let context = format!("{} {m} × {n} group {at} {spec:?}: {found:?}", device.name());
        // The loss is a norm of errors, and f32 holds each error to a few units in the last place of the largest level.
        let most = weights.iter().fold(0.0f64, |most, &weight| most.max(weight.into()));
        let unit = 2e-7 * found.scale * f64::from(1u32 << spec.bits);
        let slack = (most * w.len() as f64).powf(1.0 / power) * unit;
        let norm = |loss: f64| loss.powf(1.0 / power);
        assert!(norm(loss(found)) <= norm(least) * (1.0 + 4e-5) + slack, "{context} loses more than {least}");
        // Scales may differ by one ulp of f16 where a division rounds differently.
        let slack = if spec.scale_type == ScaleType::F16 { 1e-3 } else { 1e-6 };
        let same = |c: &Level| (c.scale - found.scale).abs() <= slack * c.scale && c.zero == found.zero;
        assert!(candidates.iter().any(same), "{context} is no candidate");
        if spec.scale_type == ScaleType::F16 {
            assert_eq!(f16::from_f32(scale).to_f32(), scale, "{context}");
        }
    }
}

device_tests!(the_range_of_the_extremes: cpu, software_gpu);
fn the_range_of_the_extremes(device: Device) {
    for (shape, group_size) in [([1, 1], 1), ([3, 5], 2), ([37, 100], 32), ([3, 300], 300), ([5, 1300], 1300)] {
        for (symmetry, scale_type, bits) in [
            (SYMMETRIES[0], SCALE_TYPES[0], 4),
            (SYMMETRIES[1], SCALE_TYPES[0], 3),
            (SYMMETRIES[0], SCALE_TYPES[1], 2),
            (SYMMETRIES[1], SCALE_TYPES[1], 8),
            (SYMMETRIES[0], SCALE_TYPES[1], 1),
        ] {
            let spec = GridSpec { bits, group_size, symmetry, search: Search::MinMax, scale_type };
            check(&device, shape, &random(bits.into(), shape[0] * shape[1]), &spec);
        }
    }
}

device_tests!(the_best_shrunken_range: cpu, software_gpu);
fn the_best_shrunken_range(device: Device) {
    for (shape, group_size) in [([3, 5], 2), ([37, 100], 32), ([3, 130], 64), ([3, 300], 300), ([3, 1300], 1300)] {
        for (symmetry, scale_type, bits) in
            [(SYMMETRIES[0], SCALE_TYPES[0], 4), (SYMMETRIES[1], SCALE_TYPES[1], 3), (SYMMETRIES[0], SCALE_TYPES[1], 2)]
        {
            // With heavy tails a smaller range loses less.
            let values: Vec<f32> = random(9, shape[0] * shape[1]).iter().map(|v| 0.05 * v.powi(5)).collect();
            for search in [Search::Mse, Search::Weighted] {
                let spec = GridSpec { bits, group_size, symmetry, search, scale_type };
                check(&device, shape, &values, &spec);
            }
        }
    }
}

device_tests!(a_range_shrunk_as_asked: cpu, software_gpu);
fn a_range_shrunk_as_asked(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size) in [([3, 5], 2), ([37, 100], 32), ([3, 300], 300)] {
        for symmetry in SYMMETRIES {
            let spec = GridSpec { bits: 3, group_size, symmetry, search: Search::Mse, scale_type: SCALE_TYPES[1] };
            let values = random(4, m * n);
            let w = rec.upload(&[m, n], values.clone()).unwrap();
            for percent in [100, 85, 55, 1] {
                let grid = shrunk(&mut rec, &w, &spec, percent).unwrap();
                let (scales, zeros) = (read(&mut rec, &grid.scales), read(&mut rec, &grid.zeros));
                let groups = values.chunks(n).flat_map(|row| row.chunks(group_size));
                for (cell, w) in groups.enumerate() {
                    let expected = candidate(w, percent as f64 / 100.0, &spec);
                    let context = format!("{} {m} × {n} cell {cell} at {percent} %", device.name());
                    // Scales may differ by one ulp of f16, and the zero points with them.
                    assert!((f64::from(scales[cell]) / expected.scale - 1.0).abs() < 1e-3, "{context}");
                    assert!((f64::from(zeros[cell]) - expected.zero).abs() <= 1.0, "{context}");
                }
            }
            assert!(shrunk(&mut rec, &w, &spec, 0).is_err() && shrunk(&mut rec, &w, &spec, 101).is_err());
        }
    }
}

device_tests!(weights_of_one_sign_zeros_and_extreme_magnitudes: cpu, software_gpu);
fn weights_of_one_sign_zeros_and_extreme_magnitudes(device: Device) {
    for symmetry in SYMMETRIES {
        for (search, scale_type) in
            [(Search::MinMax, ScaleType::F32), (Search::MinMax, ScaleType::F16), (Search::Mse, ScaleType::F16)]
        {
            let spec = GridSpec { bits: 4, group_size: 5, symmetry, search, scale_type };
            let values = [
                [0.0; 5],
                [-0.1, -0.7, -0.2, -0.9, -0.4],
                [0.1, 0.7, 0.2, 0.9, 0.4],
                [1e-5, -3e-5, 2e-5, 0.0, 5e-6],
                [1e-9, -3e-9, 2e-9, 0.0, 5e-10],
                [1e6, -3e6, 2e6, 0.0, 5e5],
            ];
            check(&device, [6, 5], values.as_flattened(), &spec);
        }
    }
}

#[test]
fn a_specification_that_makes_no_sense_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[2, 3]).unwrap();
    let (symmetry, scale_type) = (Symmetry::Symmetric, ScaleType::F32);
    for (bits, group_size) in [(0, 3), (9, 3), (4, 0)] {
        let spec = GridSpec { bits, group_size, symmetry, search: Search::MinMax, scale_type };
        assert!(search(&mut rec, &w, None, &spec).is_err());
    }
    let weights = [rec.zeros(&[3, 1]).unwrap(), rec.zeros(&[2, 1]).unwrap()];
    let spec = |search| GridSpec { bits: 4, group_size: 3, symmetry, search, scale_type };
    assert!(search(&mut rec, &w, Some(&weights[0]), &spec(Search::Weighted)).is_ok());
    assert!(search(&mut rec, &w, Some(&weights[1]), &spec(Search::Weighted)).is_err());
    assert!(search(&mut rec, &w, None, &spec(Search::Weighted)).is_err());
    assert!(search(&mut rec, &w, Some(&weights[0]), &spec(Search::Mse)).is_err());
}
