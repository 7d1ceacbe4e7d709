//! `ops::fit`: scales and offsets by least squares, compared with Lloyd's algorithm in float64.

use crate::common::dense::Level;
use crate::common::{device_tests, grid_of, kinds, levels, random, recorder};
use aquatint::device::Device;
use aquatint::ops::fit::fit;
use aquatint::ops::grid::{GridSpec, ScaleType, Steps, Zero, shrunk};
use half::{bf16, f16};

/// The most rounds of the fit.
const ROUNDS: usize = 8;

/// One group of one row.
struct Cell<'a> {
    w: &'a [f32],
    weights: &'a [f32],
    bits: u32,
}

impl Cell<'_> {
    /// The weights with their column weights, in float64.
    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> {
        self.w.iter().zip(self.weights).map(|(&w, &weight)| (f64::from(w), f64::from(weight)))
    }

    fn codes(&self, level: Level) -> Vec<f64> {
        self.w.iter().map(|&w| level.code(f64::from(w), self.bits)).collect()
    }

    fn loss(&self, level: Level) -> f64 {
        let error = |w: f64| w - level.value(level.code(w, self.bits));
        self.pairs().map(|(w, weight)| weight * error(w).powi(2)).sum()
    }

    /// The scale and the offset of least loss for `codes`. `None` if many pairs have it, or if the scale is not positive.
    fn solve(&self, codes: &[f64]) -> Option<Level> {
        let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
            self.pairs().zip(codes).map(|((w, weight), &code)| weight * term(w, code)).sum()
        };
        let [one, q, qq] = [sum(&|_, _| 1.0), sum(&|_, q| q), sum(&|_, q| q * q)];
        let [t, qt] = [sum(&|w, _| w), sum(&|w, q| q * w)];
        let determinant = one * qq - q * q;
        let scale = (one * qt - q * t) / determinant;
        let exists = determinant > 1e-5 * one * qq && scale > 0.0;
        exists.then(|| Level { scale, zero: 0.0, offset: (t - scale * q) / one })
    }

    /// Lloyd's algorithm from `level`: the best pair, and whether further rounds would keep it.
    fn lloyd(&self, mut level: Level) -> (Level, bool) {
        let mut best = level;
        for _ in 0..ROUNDS {
            if self.loss(level) < self.loss(best) {
                best = level;
            }
            let Some(next) = self.solve(&self.codes(level)) else { return (best, true) };
            level = next;
        }
        (best, (level.scale - best.scale).abs() <= 1e-9 * best.scale)
    }
}

/// Column weights: very different ones, and one that is 0.
fn column_weights(n: usize) -> Vec<f32> {
    (0..n).map(|j| if j == 1 { 0.0 } else { 2.0f32.powi(j as i32 * 7 % 13 - 6) }).collect()
}

const SHAPES: [([usize; 2], usize); 6] =
    [([1, 1], 1), ([3, 5], 2), ([37, 100], 32), ([5, 130], 64), ([3, 300], 300), ([7, 3], 5)];

device_tests!(the_loss_falls_to_that_of_the_definition: cpu, software_gpu);
fn the_loss_falls_to_that_of_the_definition(device: Device) {
    for ([m, n], group_size) in SHAPES {
        for (bits, kind) in [(2, ScaleType::F32), (3, ScaleType::F32), (2, ScaleType::F16), (4, ScaleType::Bf16)] {
            for weighted in [false, true] {
                let spec = GridSpec::with_offsets(bits, group_size, kind);
                let values: Vec<f32> = random(7, m * n).iter().map(|v| v.powi(3) + 0.2).collect();
                let weights = if weighted { column_weights(n) } else { vec![1.0; n] };
                let mut rec = recorder(&device);
                let w = rec.upload(&[m, n], values.clone()).unwrap();
                let on_device = rec.upload(&[n, 1], weights.clone()).unwrap();
                let mut grid = shrunk(&mut rec, &w, &spec, 100).unwrap();
                let start = levels(&mut rec, &spec, &grid);
                fit(&mut rec, &w, weighted.then_some(&on_device), &spec, &mut grid).unwrap();
                let found = levels(&mut rec, &spec, &grid);
                let groups = n.div_ceil(group_size);
                // Cells whose pair is not the solution for its codes, here and in the definition, and the losses of both.
                let (mut unsolved, mut unfinished, mut sums) = (0, 0, [0.0; 3]);
                for (i, g) in (0..m).flat_map(|i| (0..groups).map(move |g| (i, g))) {
                    let columns = g * group_size..n.min((g + 1) * group_size);
                    let w = &values[i * n..(i + 1) * n][columns.clone()];
                    let cell = Cell { w, weights: &weights[columns], bits };
                    let context = format!("{} {m} × {n} cell ({i}, {g}) {spec:?}", device.name());
                    let (before, after) = (start.of_group(i, g), found.of_group(i, g));
                    let (most, loss) = (cell.loss(before), cell.loss(after));
                    assert!(loss <= most * (1.0 + 1e-5) + 1e-12, "{context}: {most} became {loss}");
                    let (best, is_final) = cell.lloyd(before);
                    sums = [sums[0] + most, sums[1] + loss, sums[2] + cell.loss(best)];
                    unfinished += usize::from(!is_final);
                    match cell.solve(&cell.codes(after)) {
                        Some(solution) => {
                            let step = after.scale.abs();
                            let same = (solution.scale - after.scale).abs() < 1e-4 * step
                                && (solution.offset - after.offset).abs() < 1e-3 * step;
                            unsolved += usize::from(!same);
                        }
                        None => assert!(after.scale > 0.0, "{context}"),
                    }
                    for x in [after.scale, after.offset] {
                        let stored = match kind {
                            ScaleType::F32 => x,
                            ScaleType::F16 => f64::from(f16::from_f64(x)),
                            ScaleType::Bf16 => f64::from(bf16::from_f64(x)),
                        };
                        assert_eq!(stored, x, "{context}");
                    }
                }
                let context = format!("{} {m} × {n} {spec:?}, weighted {weighted}", device.name());
                // Where numbers are rounded, the pairs go other ways.
                if kind == ScaleType::F32 {
                    assert!(
                        unsolved <= unfinished + 1 + m * groups / 50,
                        "{context}: {unsolved} cells, not {unfinished}"
                    );
                    assert!(sums[1] <= sums[2] * 1.02 + 1e-9, "{context}: losses {sums:?}");
                }
                if group_size > 10 {
                    assert!(sums[1] < 0.9 * sums[0], "{context}: the fit must matter here: {sums:?}");
                }
            }
        }
    }
}

device_tests!(groups_without_a_solution_keep_their_numbers: cpu, software_gpu);
/// Groups of equal weights have one code, and so have groups of one column, and groups where only one column counts.
fn groups_without_a_solution_keep_their_numbers(device: Device) {
    let mut rec = recorder(&device);
    let constants = [0.0f32, 0.7, -0.7, 1e-6];
    for (n, group_size, weights) in
        [(5, 5, [1.0f32; 5]), (5, 2, [1.0; 5]), (5, 1, [1.0; 5]), (5, 5, [0.0, 3.0, 0.0, 0.0, 0.0]), (5, 5, [0.0; 5])]
    {
        let varied = weights.contains(&0.0) || group_size == 1;
        let factor = |j: usize| if varied { 1.0 + 0.1 * j as f32 } else { 1.0 };
        let values = constants.iter().flat_map(|c| (0..n).map(move |j| c * factor(j))).collect();
        let w = rec.upload(&[constants.len(), n], values).unwrap();
        let weights = rec.upload(&[n, 1], weights.to_vec()).unwrap();
        for kind in [ScaleType::F32, ScaleType::F16] {
            let spec = GridSpec::with_offsets(3, group_size, kind);
            let mut grid = shrunk(&mut rec, &w, &spec, 100).unwrap();
            let before = levels(&mut rec, &spec, &grid);
            fit(&mut rec, &w, Some(&weights), &spec, &mut grid).unwrap();
            let after = levels(&mut rec, &spec, &grid);
            let context = format!("{} groups of {group_size} {weights:?} {kind:?}", device.name());
            assert_eq!(after.scales, before.scales, "{context}");
            assert_eq!(after.seconds, before.seconds, "{context}");
        }
    }
}

device_tests!(offsets_that_share_a_unit_are_not_positive: cpu, software_gpu);
fn offsets_that_share_a_unit_are_not_positive(device: Device) {
    let (m, n, group_size) = (5, 100, 16);
    let mut rec = recorder(&device);
    for shift in [0.0, 0.6, 2.0] {
        let w = rec.upload(&[m, n], random(3, m * n).iter().map(|v| v + shift).collect()).unwrap();
        let own = GridSpec::with_offsets(2, group_size, ScaleType::F32);
        let mut offsets = [own, kinds::shared_offsets(2, group_size, 4, 16)].map(|spec| {
            let mut grid = shrunk(&mut rec, &w, &spec, 100).unwrap();
            fit(&mut rec, &w, None, &spec, &mut grid).unwrap();
            levels(&mut rec, &spec, &grid).seconds.values
        });
        assert!(offsets[1].iter().all(|&o| o <= 0.0), "{}: {:?}", device.name(), offsets[1]);
        offsets[0].retain(|&o| o > 0.0);
        assert_eq!(offsets[0].is_empty(), shift == 0.0, "{}: {:?}", device.name(), offsets[0]);
    }
}

#[test]
fn shapes_are_checked() {
    let mut rec = recorder(&Device::Cpu);
    let w = rec.zeros(&[2, 5]).unwrap();
    let weights = [rec.zeros(&[5, 1]).unwrap(), rec.zeros(&[4, 1]).unwrap()];
    let mut grid = grid_of(&mut rec, [2, 2], vec![1.0; 4], vec![0.0; 4]);
    let spec = GridSpec::with_offsets(4, 3, ScaleType::F32);
    assert!(fit(&mut rec, &w, Some(&weights[0]), &spec, &mut grid).is_ok());
    assert!(fit(&mut rec, &w, Some(&weights[1]), &spec, &mut grid).is_err());
    let code = GridSpec { zero: Zero::Code, ..spec };
    for wrong in [GridSpec { group_size: 2, ..spec }, GridSpec { group_size: 0, ..spec }, code] {
        assert!(fit(&mut rec, &w, None, &wrong, &mut grid).is_err(), "{wrong:?}");
    }
    assert_eq!(spec.scale, Steps::Own(ScaleType::F32));
}
