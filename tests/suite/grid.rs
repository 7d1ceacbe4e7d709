//! `ops::grid`: the search for grids, compared with a search in float64.

use crate::common::dense::{Dense, Level};
use crate::common::{device_tests, kinds, levels, random, recorder};
use aquatint::device::Device;
use aquatint::ops::grid::{GridSpec, ScaleType, Search, Steps, Symmetry, Zero, search, shrunk};
use half::{bf16, f16};

const SYMMETRIES: [Symmetry; 2] = [Symmetry::Asymmetric, Symmetry::Symmetric];

/// x in the type of scales or offsets.
fn stored(steps: Steps, x: f64) -> f64 {
    match steps {
        Steps::Own(ScaleType::F16) if x != 0.0 => {
            f16::from_f64(x.abs()).to_f64().clamp(2.0f64.powi(-24), 65504.0).copysign(x)
        }
        Steps::Own(ScaleType::Bf16) => bf16::from_f64(x).to_f64(),
        _ => x,
    }
}

/// The largest relative distance of two neighbours of the type of scales or offsets.
fn precision(steps: Steps) -> f64 {
    match steps {
        Steps::Own(ScaleType::F16) => 1e-3,
        Steps::Own(ScaleType::Bf16) => 8e-3,
        _ => 1e-6,
    }
}

fn candidate(w: &[f32], factor: f64, spec: &GridSpec) -> Level {
    let ends = w.iter().fold((0.0f64, 0.0f64), |(low, high), &w| (low.min(f64::from(w)), high.max(f64::from(w))));
    let top = f64::from(spec.top());
    let largest = ends.1.max(-ends.0);
    let (low, high) = match (ends, spec.zero) {
        ((0.0, 0.0), Zero::Offset(_)) => (0.0, 1.0),
        ((0.0, 0.0), _) => (-1.0, 1.0),
        (ends, Zero::Code | Zero::Offset(_)) => ends,
        (_, Zero::Fixed(_)) => (-largest, largest),
    };
    let size = stored(spec.scale, factor * (high - low) / top);
    match spec.zero {
        Zero::Offset(steps) => Level::of(spec, size, stored(steps, factor * low)),
        Zero::Code => Level::of(spec, size, (-factor * low / size).round_ties_even().clamp(0.0, top)),
        Zero::Fixed(zero) if !spec.signed => Level::of(spec, size, f64::from(zero)),
        Zero::Fixed(zero) => {
            // The side of zero with more levels is that of the largest magnitude, and the negative one for two of the same.
            let is_positive = ends.1 > -ends.0;
            let more_above = 2.0 * f64::from(zero) <= top;
            let negative = largest > 0.0 && is_positive != more_above;
            Level::of(spec, if negative { -size } else { size }, f64::from(zero))
        }
    }
}

/// The loss of a group: Σ weight·|w − ŵ|^power.
fn loss(w: &[f32], weights: &[f32], power: f64, level: Level, bits: u32) -> f64 {
    let error = |w: f32| (f64::from(w) - level.value(level.code(f64::from(w), bits))).abs();
    w.iter().zip(weights).map(|(&w, &weight)| f64::from(weight) * error(w).powf(power)).sum()
}

/// Column weights for a search: very different ones and one that is 0, or all 1.
fn column_weights(search: Search, n: usize) -> Vec<f32> {
    match search {
        Search::Weighted => (0..n).map(|j| if j == 1 { 0.0 } else { 2.0f32.powi(j as i32 * 7 % 13) }).collect(),
        Search::MinMax | Search::Mse => vec![1.0; n],
    }
}

/// The cells of a matrix with n columns: row, group, weights of the cell, and weights of its columns.
fn cells<'a>(
    values: &'a [f32],
    weights: &'a [f32],
    group_size: usize,
) -> impl Iterator<Item = (usize, usize, &'a [f32], &'a [f32])> {
    values.chunks(weights.len()).enumerate().flat_map(move |(row, w)| {
        let groups = w.chunks(group_size).zip(weights.chunks(group_size)).enumerate();
        groups.map(move |(group, (w, weights))| (row, group, w, weights))
    })
}

/// Compares the grids of a matrix with the best of all candidates. A grid must be the same but for rounding, or lose no more. Grids
/// with offsets are fitted after a search, and then they are no candidates.
fn check(device: &Device, [m, n]: [usize; 2], values: &[f32], spec: &GridSpec, how: Search) {
    let mut rec = recorder(device);
    let w = rec.upload(&[m, n], values.to_vec()).unwrap();
    let weights = column_weights(how, n);
    let fitted = spec.has_offsets() && how != Search::MinMax;
    let power = if how == Search::Weighted || fitted { 2.0 } else { 2.4 };
    let on_device = rec.upload(&[n, 1], weights.clone()).unwrap();
    let given = (how == Search::Weighted).then_some(&on_device);
    let grid = search(&mut rec, &w, given, spec, how).unwrap();
    let groups = n.div_ceil(spec.group_size);
    assert_eq!((grid.scales.shape(), grid.zeros.shape()), (&[m, groups][..], &[m, groups][..]));
    assert!(grid.units.is_none());
    let levels = levels(&mut rec, spec, &grid);
    let factors = if how == Search::MinMax { 1 } else { 80 };
    for (row, group, w, weights) in cells(values, &weights, spec.group_size) {
        let loss = |level| loss(w, weights, power, level, spec.bits);
        let candidates: Vec<_> = (0..factors).map(|i| candidate(w, f64::from(100 - i) / 100.0, spec)).collect();
        let found = levels.of_group(row, group);
        let compared = if fitted && how == Search::Mse { &candidates[..1] } else { &candidates[..] };
        let least = compared.iter().map(|&c| loss(c)).fold(f64::INFINITY, f64::min);
        let context = format!("{} {m} × {n} row {row} group {group} {spec:?} {how:?}: {found:?}", device.name());
        // The loss is a norm of errors, and f32 holds each error to a few units in the last place of the largest level.
        let most = weights.iter().fold(0.0f64, |most, &weight| most.max(weight.into()));
        let unit = 2e-7 * found.scale.abs() * f64::from(1u32 << spec.bits);
        let slack = (most * w.len() as f64).powf(1.0 / power) * unit;
        let norm = |loss: f64| loss.powf(1.0 / power);
        assert!(norm(loss(found)) <= norm(least) * (1.0 + 4e-5) + slack, "{context} loses more than {least}");
        assert_eq!(stored(spec.scale, found.scale), found.scale, "{context}");
        let Zero::Offset(steps) = spec.zero else {
            // Numbers may be neighbours in their type where a division rounds differently.
            let same = |c: &Level| {
                (c.scale - found.scale).abs() <= precision(spec.scale) * c.scale.abs() && c.zero == found.zero
            };
            assert!(candidates.iter().any(same), "{context} is no candidate");
            continue;
        };
        assert_eq!(stored(steps, found.offset), found.offset, "{context}");
        if !fitted {
            let expected = candidates[0];
            assert!((expected.scale - found.scale).abs() <= precision(spec.scale) * expected.scale, "{context}");
            assert!((expected.offset - found.offset).abs() <= precision(steps) * expected.offset.abs(), "{context}");
        }
    }
}

device_tests!(the_range_of_the_extremes: cpu, software_gpu);
fn the_range_of_the_extremes(device: Device) {
    for (shape, group_size) in [([1, 1], 1), ([3, 5], 2), ([37, 100], 32), ([3, 300], 300), ([5, 1300], 1300)] {
        let more = [(1, SYMMETRIES[0], ScaleType::F16), (8, SYMMETRIES[1], ScaleType::F16)];
        let more = more.map(|(bits, symmetry, kind)| GridSpec::new(bits, group_size, symmetry, kind));
        for spec in kinds::own(group_size).into_iter().map(|(_, spec)| spec).chain(more) {
            check(&device, shape, &random(spec.bits.into(), shape[0] * shape[1]), &spec, Search::MinMax);
        }
    }
}

device_tests!(the_best_shrunken_range: cpu, software_gpu);
fn the_best_shrunken_range(device: Device) {
    for (shape, group_size) in [([3, 5], 2), ([37, 100], 32), ([3, 130], 64), ([3, 300], 300), ([3, 1300], 1300)] {
        for (_, spec) in kinds::own(group_size) {
            // With heavy tails a smaller range loses less.
            let values: Vec<f32> = random(9, shape[0] * shape[1]).iter().map(|v| 0.05 * v.powi(5)).collect();
            for search in [Search::Mse, Search::Weighted] {
                check(&device, shape, &values, &spec, search);
            }
        }
    }
}

device_tests!(a_search_loses_no_more_than_the_whole_range: cpu, software_gpu);
/// Also where scales share units: the units of both grids are rounded, and so the searched grid may lose a little more in a group,
/// but not in sum.
fn a_search_loses_no_more_than_the_whole_range(device: Device) {
    for ([m, n], group_size) in [([3, 5], 2), ([37, 100], 3), ([3, 330], 16), ([3, 300], 300)] {
        let values: Vec<f32> = random(9, m * n).iter().map(|v| 0.05 * v.powi(5)).collect();
        for (kind, spec) in kinds::own(group_size).into_iter().chain(kinds::shared(group_size)) {
            for how in [Search::Mse, Search::Weighted] {
                let mut rec = recorder(&device);
                let w = rec.upload(&[m, n], values.clone()).unwrap();
                let weights = column_weights(how, n);
                let on_device = rec.upload(&[n, 1], weights.clone()).unwrap();
                let given = (how == Search::Weighted).then_some(&on_device);
                let power = if how == Search::Weighted { 2.0 } else { 2.4 };
                let mut losses = |given, how| -> Vec<f64> {
                    let grid = search(&mut rec, &w, given, &spec, how).unwrap();
                    let levels = levels(&mut rec, &spec, &grid);
                    cells(&values, &weights, group_size)
                        .map(|(row, group, w, weights)| loss(w, weights, power, levels.of_group(row, group), spec.bits))
                        .collect()
                };
                let (searched, whole) = (losses(given, how), losses(None, Search::MinMax));
                let context = format!("{} {m} × {n} {kind} {how:?}", device.name());
                let (sum, most): (f64, f64) = (searched.iter().sum(), whole.iter().sum());
                assert!(sum <= most * (1.0 + 1e-4), "{context}: {sum}, {most} without a search");
            }
        }
    }
}

device_tests!(a_range_shrunk_as_asked: cpu, software_gpu);
fn a_range_shrunk_as_asked(device: Device) {
    let mut rec = recorder(&device);
    for ([m, n], group_size) in [([3, 5], 2), ([37, 100], 32), ([3, 300], 300)] {
        for (_, spec) in kinds::own(group_size) {
            let values = random(4, m * n);
            let w = rec.upload(&[m, n], values.clone()).unwrap();
            for percent in [100, 85, 55, 1] {
                let grid = shrunk(&mut rec, &w, &spec, percent).unwrap();
                let levels = levels(&mut rec, &spec, &grid);
                for (row, group, w, _) in cells(&values, &vec![1.0; n], group_size) {
                    let (found, expected) = (levels.of_group(row, group), candidate(w, percent as f64 / 100.0, &spec));
                    let context = format!("{} {m} × {n} row {row} group {group} at {percent} %", device.name());
                    // Scales may be neighbours in their type, and the zero points with them.
                    assert!((found.scale / expected.scale - 1.0).abs() < precision(spec.scale), "{context}");
                    assert!((found.zero - expected.zero).abs() <= 1.0, "{context}");
                    let slack = precision(spec.scale) * expected.offset.abs();
                    assert!((found.offset - expected.offset).abs() <= slack, "{context}");
                }
            }
            assert!(shrunk(&mut rec, &w, &spec, 0).is_err() && shrunk(&mut rec, &w, &spec, 101).is_err());
        }
    }
}

device_tests!(weights_of_one_sign_zeros_and_extreme_magnitudes: cpu, software_gpu);
fn weights_of_one_sign_zeros_and_extreme_magnitudes(device: Device) {
    let values = [
        [0.0; 5],
        [-0.1, -0.7, -0.2, -0.9, -0.4],
        [0.1, 0.7, 0.2, 0.9, 0.4],
        [1e-5, -3e-5, 2e-5, 0.0, 5e-6],
        [1e-9, -3e-9, 2e-9, 0.0, 5e-10],
        [1e6, -3e6, 2e6, 0.0, 5e5],
    ];
    for symmetry in SYMMETRIES {
        for (search, scale_type) in
            [(Search::MinMax, ScaleType::F32), (Search::MinMax, ScaleType::F16), (Search::Mse, ScaleType::F16)]
        {
            let spec = GridSpec::new(4, 5, symmetry, scale_type);
            check(&device, [6, 5], values.as_flattened(), &spec, search);
        }
    }
    for kind in [ScaleType::F32, ScaleType::F16, ScaleType::Bf16] {
        check(&device, [6, 5], values.as_flattened(), &GridSpec::with_offsets(4, 5, kind), Search::MinMax);
        for search in [Search::MinMax, Search::Mse] {
            check(&device, [6, 5], values.as_flattened(), &kinds::signed(4, 8, 5, kind), search);
        }
    }
}

device_tests!(zeros_are_kept_on_every_grid: cpu, software_gpu);
fn zeros_are_kept_on_every_grid(device: Device) {
    let (m, n, group_size) = (3, 37, 4);
    // Row 0 has none but zeros, row 1 a group of them, and row 2 none.
    let zero = |i: usize, j: usize| i == 0 || (i == 1 && j / group_size == 2);
    let values = random(11, m * n);
    let w = Dense::from_fn(m, n, |i, j| if zero(i, j) { 0.0 } else { f64::from(values[i * n + j]) });
    let mut rec = recorder(&device);
    let on_device = rec.upload(&[m, n], w.f32()).unwrap();
    let weights = rec.upload(&[n, 1], vec![1.0; n]).unwrap();
    for (kind, spec) in kinds::own(group_size).into_iter().chain(kinds::shared(group_size)) {
        for how in [Search::MinMax, Search::Mse, Search::Weighted] {
            let given = (how == Search::Weighted).then_some(&weights);
            let grid = search(&mut rec, &on_device, given, &spec, how).unwrap();
            let levels = levels(&mut rec, &spec, &grid);
            let values = levels.values(&levels.codes(&w));
            let context = format!("{} {kind} {how:?}", device.name());
            assert!(levels.scales.values.iter().all(|&s| s.is_finite() && s != 0.0), "{context}: {levels:?}");
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|&(i, j)| zero(i, j)) {
                assert_eq!(values.at(i, j).abs(), 0.0, "{context} ({i}, {j})");
            }
        }
    }
}

device_tests!(the_side_of_the_largest_magnitude_has_more_levels: cpu, software_gpu);
fn the_side_of_the_largest_magnitude_has_more_levels(device: Device) {
    let mut rec = recorder(&device);
    let w = rec.upload(&[3, 3], vec![-1.0f32, 0.4, 0.9, 1.0, -0.4, -0.9, 0.5, -1.0, 1.0]).unwrap();
    // Of 0 to 15 around 8, more codes are below. Of 0 to 3 around 1, more are above.
    for (spec, signs) in [
        (kinds::signed(4, 8, 3, ScaleType::F16), [1.0, -1.0, 1.0]),
        (kinds::signed(2, 1, 3, ScaleType::F16), [-1.0, 1.0, -1.0]),
    ] {
        for how in [Search::MinMax, Search::Mse] {
            let grid = search(&mut rec, &w, None, &spec, how).unwrap();
            let found: Vec<f64> = levels(&mut rec, &spec, &grid).scales.values.iter().map(|s| s.signum()).collect();
            assert_eq!(found, signs, "{} {spec:?} {how:?}", device.name());
        }
    }
}

#[test]
fn a_specification_that_makes_no_sense_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[2, 3]).unwrap();
    let spec = GridSpec::new(4, 3, Symmetry::Symmetric, ScaleType::F32);
    for (bits, group_size) in [(0, 3), (9, 3), (4, 0)] {
        assert!(search(&mut rec, &w, None, &GridSpec { bits, group_size, ..spec }, Search::MinMax).is_err());
    }
    let weights = [rec.zeros(&[3, 1]).unwrap(), rec.zeros(&[2, 1]).unwrap()];
    assert!(search(&mut rec, &w, Some(&weights[0]), &spec, Search::Weighted).is_ok());
    assert!(search(&mut rec, &w, Some(&weights[1]), &spec, Search::Weighted).is_err());
    assert!(search(&mut rec, &w, None, &spec, Search::Weighted).is_err());
    assert!(search(&mut rec, &w, Some(&weights[0]), &spec, Search::Mse).is_err());
    // Scales share units, and offsets do not, or the reverse.
    let (shared, own) = (kinds::shared_offsets(4, 3, 6, 8), GridSpec::with_offsets(4, 3, ScaleType::F16));
    for wrong in [GridSpec { zero: own.zero, ..shared }, GridSpec { zero: shared.zero, ..own }] {
        assert!(search(&mut rec, &w, None, &wrong, Search::MinMax).is_err());
    }
}
