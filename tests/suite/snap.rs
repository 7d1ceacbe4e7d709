//! `ops::snap`: the units that groups share, and the whole numbers of them, by their definition in float64.

use crate::common::{device_tests, kinds, random, read, recorder};
use aquatint::device::{Device, Recorder};
use aquatint::ops::grid::{Grid, GridSpec, ScaleType, Steps, Zero, shrunk};
use aquatint::ops::snap::snap;
use half::f16;

/// The numbers of a grid: scales, zero points or offsets, and units.
type Numbers = [Vec<f32>; 3];

fn numbers(rec: &mut Recorder, grid: &Grid) -> Numbers {
    let units = grid.units.as_ref().map_or_else(Vec::new, |units| read(rec, units));
    [read(rec, &grid.scales), read(rec, &grid.zeros), units]
}

/// The grid of `w` before and after its numbers move to multiples.
fn snapped(device: &Device, [m, n]: [usize; 2], w: &[f32], spec: &GridSpec) -> [Numbers; 2] {
    let mut rec = recorder(device);
    let w = rec.upload(&[m, n], w.to_vec()).unwrap();
    let mut grid = shrunk(&mut rec, &w, spec, 95).unwrap();
    let before = numbers(&mut rec, &grid);
    snap(&mut rec, spec, &mut grid).unwrap();
    [before, numbers(&mut rec, &grid)]
}

/// Checks the numbers of the groups that share one unit. `least` and `most`: the range of numbers of units; `none`: whether a number
/// may be 0.
fn check(context: &str, unit: f64, [least, most]: [f64; 2], none: bool, before: &[f64], after: &[f64]) {
    let size = |x: &f64| x.abs();
    let largest = before.iter().copied().max_by(|a, b| size(a).total_cmp(&size(b))).unwrap();
    let extreme = if least < 0.0 { least } else { most };
    let exact = (largest / extreme).abs();
    // Tiny numbers are no f16, and 0 is only the unit of offsets that are all 0.
    let expected = if exact == 0.0 { 0.0 } else { f16::from_f64(exact).to_f64().max(2.0f64.powi(-24)) };
    assert!((unit.abs() - expected).abs() <= 1e-3 * expected, "{context}: unit {unit}, not {expected}");
    assert_eq!(f16::from_f64(unit).to_f64(), unit, "{context}");
    assert!(none || unit != 0.0, "{context}: a unit of 0");
    assert!(least < 0.0 || unit >= 0.0, "{context}: unit {unit}");
    for (&x, &found) in before.iter().zip(after) {
        let number = if unit == 0.0 { found } else { found / unit };
        assert!(number.fract() == 0.0 && (least..=most).contains(&number), "{context}: {number} units");
        assert!(none || number != 0.0, "{context}: 0 units");
        assert!(x * found >= 0.0, "{context}: {x} became {found}");
        if unit == 0.0 {
            continue;
        }
        let wanted = x / unit;
        // A unit that is an f16 below the normal ones can be too small or too large.
        let fits = exact >= 2.0f64.powi(-14);
        let slack = if (!none && wanted.abs() < 0.5) || wanted > most || (!fits && wanted.abs() > most) {
            f64::INFINITY
        } else {
            0.5 + 1e-6 * wanted.abs() + if wanted < least { 0.1 } else { 0.0 }
        };
        assert!((number - wanted).abs() <= slack, "{context}: {x} is {wanted} units and became {number}");
        if wanted > most && fits {
            assert_eq!(number, most, "{context}");
        }
        if !none && wanted.abs() < 0.5 {
            assert_eq!(number.abs(), 1.0, "{context}");
        }
    }
}

device_tests!(numbers_move_to_the_nearest_multiple_of_a_half: cpu, software_gpu);
fn numbers_move_to_the_nearest_multiple_of_a_half(device: Device) {
    for ([m, n], group_size) in
        [([1, 1], 1), ([3, 5], 2), ([5, 100], 4), ([9, 523], 16), ([2, 1040], 16), ([70, 64], 8)]
    {
        for (kind, spec) in kinds::shared(group_size) {
            let mut values: Vec<f32> = random(5, m * n).iter().map(|v| 0.05 * v.powi(3)).collect();
            // A row of zeros, a group of zeros, a row of tiny numbers, and one of numbers between them.
            values.iter_mut().enumerate().for_each(|(at, value)| match (at / n, at % n / group_size) {
                (1, _) | (0, 2) => *value = 0.0,
                (2, _) => *value *= 1e-8,
                (3, _) => *value *= 3e-4,
                _ => {}
            });
            let [before, after] = snapped(&device, [m, n], &values, &spec);
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let [scales, seconds, units] = after.each_ref().map(|values| wide(values));
            let Steps::Shared { bits, signed, groups: shared } = spec.scale else { panic!("{spec:?} shares no units") };
            let top = f64::from((1u32 << bits) - 1);
            let range = if signed { [-(top + 1.0) / 2.0, (top - 1.0) / 2.0] } else { [0.0, top] };
            let groups = n.div_ceil(group_size);
            let per_row = groups.div_ceil(shared);
            assert_eq!(units.len(), per_row * m * if spec.has_offsets() { 2 } else { 1 });
            for (row, index) in (0..m).flat_map(|row| (0..per_row).map(move |index| (row, index))) {
                let context = format!("{} {m} × {n} {kind} row {row} unit {index}", device.name());
                let cells = row * groups + index * shared..row * groups + groups.min((index + 1) * shared);
                let unit = units[row * per_row + index];
                check(&context, unit, range, false, &wide(&before[0][cells.clone()]), &scales[cells.clone()]);
                match spec.zero {
                    Zero::Offset(_) => {
                        let minus = |values: Vec<f64>| values.iter().map(|x| -x).collect::<Vec<f64>>();
                        let offsets = [wide(&before[1][cells.clone()]), seconds[cells].to_vec()].map(minus);
                        let unit = units[(m + row) * per_row + index];
                        check(&format!("{context}, offsets"), unit, range, true, &offsets[0], &offsets[1]);
                    }
                    _ => assert_eq!(before[1][cells.clone()], after[1][cells]),
                }
            }
        }
    }
}

/// On the same grid, both choose the same numbers.
#[test]
#[cfg_attr(feature = "test-without-gpu", ignore = "no software Vulkan adapter, or AQUATINT_GPU_TESTS=skip")]
fn the_twin_equals_the_kernel() {
    let gpu = crate::common::software_gpu();
    for ([m, n], group_size) in [([3, 5], 2), ([5, 100], 4), ([9, 523], 16)] {
        for (kind, spec) in kinds::shared(group_size) {
            let mut values: Vec<f32> = random(6, m * n).iter().map(|v| 0.05 * v.powi(3)).collect();
            values[n..2 * n].fill(0.0);
            let start = snapped(&Device::Cpu, [m, n], &values, &spec)[0].clone();
            let [twin, kernel] = [&Device::Cpu, &gpu].map(|device| {
                let mut rec = recorder(device);
                let shape = [m, n.div_ceil(group_size)];
                let [scales, zeros, _] = start.clone();
                let mut grid = crate::common::grid_of(&mut rec, shape, scales, zeros);
                snap(&mut rec, &spec, &mut grid).unwrap();
                numbers(&mut rec, &grid)
            });
            assert_eq!(twin, kernel, "{m} × {n} {kind}");
        }
    }
}

#[test]
fn grids_without_units_stay_and_half_shared_ones_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let mut grid = crate::common::grid_of(&mut rec, [1, 2], vec![0.3, 0.4], vec![-0.5, 0.6]);
    snap(&mut rec, &GridSpec::with_offsets(4, 2, ScaleType::F16), &mut grid).unwrap();
    assert!(grid.units.is_none());
    assert_eq!(numbers(&mut rec, &grid)[..2], [vec![0.3, 0.4], vec![-0.5, 0.6]]);
    let shared = kinds::shared_offsets(4, 2, 6, 8);
    for wrong in [
        GridSpec { zero: Zero::Code, ..shared },
        GridSpec { zero: Zero::Offset(Steps::Own(ScaleType::F16)), ..shared },
        GridSpec { zero: Zero::Offset(Steps::Shared { bits: 6, signed: false, groups: 4 }), ..shared },
        GridSpec { zero: Zero::Offset(Steps::Shared { bits: 6, signed: true, groups: 8 }), ..shared },
        GridSpec { scale: Steps::Own(ScaleType::F16), ..shared },
    ] {
        assert!(snap(&mut rec, &wrong, &mut grid).is_err(), "{wrong:?}");
    }
}
