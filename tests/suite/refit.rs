//! `ops::refit`: the scale of a group, and its offset, by least squares, compared with the normal equations in float64.

use crate::common::dense::{Dense, Levels, hessian, objective};
use crate::common::{device_tests, grid_of, kinds, levels, random, read, recorder};
use aquatint::device::{Device, Recorder, Tensor};
use aquatint::ops::grid::{Grid, GridSpec, ScaleType, Search, Steps, Symmetry, Zero, search};
use aquatint::ops::matmul::{Orientation, Rows, accumulate};
use aquatint::ops::refit::{Group, refit};
use half::{bf16, f16};
use pollster::block_on;

const RIDGE: f32 = 0.25;

/// (m, n, group size, bits)
const CASES: [(usize, usize, usize, u32); 6] =
    [(1, 1, 1, 4), (3, 5, 2, 2), (37, 64, 32, 3), (65, 130, 130, 2), (37, 130, 50, 8), (70, 300, 128, 3)];

/// A layer on a device whose grid is being fitted to its codes.
struct Layer {
    rec: Recorder,
    /// The original weight and H, in float64.
    w: Dense,
    h: Dense,
    codes: Dense,
    spec: GridSpec,
    grid: Grid,
    hessian: Tensor,
    stored: Tensor<u32>,
    errors: Tensor,
}

impl Layer {
    /// With any codes: they are rounded to nearest on a grid that is a third too fine.
    fn new(device: &Device, w: Dense, h: Dense, spec: &GridSpec) -> Self {
        let mut rec = recorder(device);
        let [m, n] = [w.rows, w.columns];
        let weight = rec.upload(&[m, n], w.f32()).unwrap();
        let grid = search(&mut rec, &weight, None, spec, Search::MinMax).unwrap();
        let mut finer = levels(&mut rec, spec, &grid);
        let numbers = finer.clone();
        finer.scales.values.iter_mut().for_each(|scale| *scale /= 1.3);
        let codes = finer.codes(&w);
        let errors = w.minus(&numbers.values(&codes)).transposed().f32();
        Self {
            hessian: rec.upload(&[n, n], h.f32()).unwrap(),
            stored: rec.upload(&[n, m], codes.transposed().values.iter().map(|&code| code as u32).collect()).unwrap(),
            errors: rec.upload(&[n, m], errors).unwrap(),
            rec,
            w,
            h,
            codes,
            spec: *spec,
            grid,
        }
    }

    fn levels(&mut self) -> Levels {
        levels(&mut self.rec, &self.spec, &self.grid)
    }

    fn exact_errors(&self, levels: &Levels) -> Dense {
        self.w.minus(&levels.values(&self.codes))
    }

    /// Fits the group that starts at column `start`.
    fn refit(&mut self, start: usize) {
        let [m, n] = [self.w.rows, self.w.columns];
        let (size, levels) = (self.spec.group_size, self.levels());
        let count = size.min(n - start);
        let inside = |j: usize| (start..start + count).contains(&j);
        let values = levels.values(&self.codes);
        let rounded = Dense::from_fn(m, n, |i, j| if inside(j) { values.at(i, j) } else { 0.0 });
        let ones = Dense::from_fn(1, n, |_, j| f64::from(u8::from(inside(j))));
        let rec = &mut self.rec;
        let mut g: Tensor = rec.zeros(&[count, m]).unwrap();
        let rows = Rows { tensor: &self.hessian, start, count };
        accumulate(rec, Orientation::Nn, rows, Rows::all(&self.errors), &mut g, 0).unwrap();
        let v = rec.upload(&[n, m], rounded.times(&self.h).transposed().f32()).unwrap();
        let ones = rec.upload(&[n, 1], ones.times(&self.h).f32()).unwrap();
        let ones = self.spec.has_offsets().then_some(&ones);
        let group = Group { spec: &self.spec, codes: &self.stored, g: &g, v: &v, ones, ridge: RIDGE, start };
        refit(rec, group, &mut self.grid, &mut self.errors).unwrap();
    }
}

/// The loss of one row as a function of the scale s and the offset o of one group: with u = q − z and 1 in the group and 0
/// elsewhere, and with e the error of the row where the group is left out, it is (e − s·u − o·1)·A·(e − s·u − o·1)ᵀ.
struct Parabola {
    /// ⟨u, A·u⟩, ⟨u, A·1⟩ and ⟨1, A·1⟩.
    curvature: [f64; 3],
    /// ⟨u, A·e⟩ and ⟨1, A·e⟩.
    pull: [f64; 2],
}

impl Parabola {
    /// `a`: H + λI; `levels` and `codes`: before the fit.
    fn new(w: &Dense, a: &Dense, levels: &Levels, codes: &Dense, row: usize, start: usize) -> Self {
        let n = w.columns;
        let columns = start..n.min(start + levels.spec.group_size);
        let u: Vec<f64> = columns.clone().map(|j| codes.at(row, j) - levels.at(row, j).zero).collect();
        let e: Vec<f64> = (0..n)
            .map(|j| match columns.contains(&j) {
                true => w.at(row, j),
                false => w.at(row, j) - levels.at(row, j).value(codes.at(row, j)),
            })
            .collect();
        let mut parabola = Self { curvature: [0.0; 3], pull: [0.0; 2] };
        for (i, &at) in columns.clone().zip(&u) {
            let pull: f64 = (0..n).map(|j| a.at(i, j) * e[j]).sum();
            parabola.pull[0] += at * pull;
            parabola.pull[1] += pull;
            for (j, &other) in columns.clone().zip(&u) {
                let terms = [at * other, at, 1.0];
                terms.iter().zip(&mut parabola.curvature).for_each(|(term, sum)| *sum += term * a.at(i, j));
            }
        }
        parabola
    }

    /// The best scale without an offset.
    fn scale_alone(&self) -> f64 {
        self.pull[0] / self.curvature[0]
    }

    /// The best scale beside the best offset, and the share of the determinant in the products that it is the difference of.
    fn scale_beside_offset(&self) -> (f64, f64) {
        let ([uu, u1, ones], [u, one]) = (self.curvature, self.pull);
        let determinant = uu * ones - u1 * u1;
        ((u * ones - one * u1) / determinant, determinant / (uu * ones))
    }

    /// The best offset beside this scale.
    fn offset(&self, scale: f64) -> f64 {
        (self.pull[1] - scale * self.curvature[1]) / self.curvature[2]
    }
}

/// How far a number may be from the best one because of its type.
fn rounding(steps: Steps, x: f64) -> f64 {
    match steps {
        Steps::Own(ScaleType::F16) => {
            assert_eq!(f64::from(f16::from_f64(x)), x, "no f16");
            x.abs() / 2048.0
        }
        Steps::Own(ScaleType::Bf16) => {
            assert_eq!(f64::from(bf16::from_f64(x)), x, "no bf16");
            x.abs() / 256.0
        }
        _ => 0.0,
    }
}

/// Checks the scale and the offset that the fit of one row left behind. `old`: the scale before the fit.
fn check_pair(context: &str, spec: &GridSpec, parabola: &Parabola, old: f64, [scale, offset]: [f64; 2]) {
    let (best, share) = match spec.has_offsets() {
        true => parabola.scale_beside_offset(),
        false => (parabola.scale_alone(), 1.0),
    };
    if share > 1e-3 && best * old > 1e-3 * old * old {
        let slack = 2e-4 * best.abs() / share.sqrt() + rounding(spec.scale, scale);
        assert!((scale - best).abs() <= slack, "{context}: scale {scale}, not {best}");
    } else if share < 1e-9 {
        assert_eq!(scale, old, "{context}: the scale and the offset are one and the same");
    }
    if let Zero::Offset(steps) = spec.zero {
        if share > 1e-3 && best * old <= 0.0 {
            return;
        }
        let best = parabola.offset(scale);
        let slack = 2e-4 * (best.abs() + scale.abs() * f64::from(spec.top())) + rounding(steps, offset);
        assert!((offset - best).abs() <= slack, "{context}: offset {offset}, not {best}");
    }
}

/// The grids whose groups have numbers of their own, at `bits` bits.
fn own_grids(bits: u32, size: usize) -> Vec<GridSpec> {
    let [zeros, offsets, signed] = kinds::unrounded(bits, size);
    let half = Steps::Own(ScaleType::F16);
    vec![
        zeros,
        offsets,
        signed,
        GridSpec { scale: half, ..zeros },
        GridSpec { scale: half, ..signed },
        GridSpec::with_offsets(bits, size, ScaleType::F16),
        GridSpec::with_offsets(bits, size, ScaleType::Bf16),
    ]
}

device_tests!(every_scale_and_offset_is_the_best_for_its_codes: cpu, software_gpu);
fn every_scale_and_offset_is_the_best_for_its_codes(device: Device) {
    for (case, (m, n, size, bits)) in CASES.into_iter().enumerate() {
        for (spec, shift) in own_grids(bits, size).into_iter().flat_map(|spec| [(spec, 0.0), (spec, 1.5)]) {
            let values = random(case as u64, m * n);
            let w = Dense::from_fn(m, n, |i, j| f64::from(values[i * n + j] + shift));
            let mut layer = Layer::new(&device, w, hessian(case as u64, n), &spec);
            let damped = layer.h.damped(f64::from(RIDGE));
            for start in (0..n).step_by(size) {
                let before = layer.levels();
                layer.refit(start);
                let after = layer.levels();
                for row in 0..m {
                    let context = format!("{} case {case} {spec:?} + {shift} row {row} from {start}", device.name());
                    let parabola = Parabola::new(&layer.w, &damped, &before, &layer.codes, row, start);
                    let (old, new) = (before.at(row, start), after.at(row, start));
                    assert_eq!(new.zero, old.zero, "{context}");
                    assert!(new.scale * old.scale > 0.0, "{context}: scale {} became {}", old.scale, new.scale);
                    if !spec.has_offsets() && parabola.curvature[0] == 0.0 {
                        assert_eq!(new.scale, old.scale, "{context}: no weight on this scale");
                        continue;
                    }
                    check_pair(&context, &spec, &parabola, old.scale, [new.scale, new.offset]);
                }
                let loss = |levels| objective(&layer.exact_errors(levels), &damped);
                let (least, most) = (loss(&after), loss(&before));
                // Nothing is rounded where numbers are f32.
                if spec.scale == Steps::Own(ScaleType::F32) {
                    let slack = 1e-9 * most + 1e-13 * objective(&layer.w, &damped);
                    assert!(least <= most + slack, "{} case {case} {spec:?}: {most} became {least}", device.name());
                }
            }
            let after = layer.levels();
            let kept = Dense::new(n, m, &read(&mut layer.rec, &layer.errors)).transposed();
            let apart = kept.minus(&layer.exact_errors(&after)).values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            assert!(apart < 2e-5, "{} case {case} {spec:?}: the errors kept are {apart} off", device.name());
        }
    }
}

device_tests!(numbers_that_share_a_unit_stay_multiples_of_it: cpu, software_gpu);
fn numbers_that_share_a_unit_stay_multiples_of_it(device: Device) {
    for (case, (m, n, size)) in [(3, 5, 2), (37, 100, 4), (66, 300, 16), (5, 130, 7)].into_iter().enumerate() {
        for (kind, spec) in kinds::shared(size) {
            let w = Dense::new(m, n, &random(case as u64, m * n));
            let mut layer = Layer::new(&device, w, hessian(case as u64, n), &spec);
            let damped = layer.h.damped(f64::from(RIDGE));
            let shared = spec.shared_groups().unwrap();
            let Steps::Shared { bits, signed, .. } = spec.scale else { panic!("{spec:?} shares no units") };
            let top = f64::from((1u32 << bits) - 1);
            let [least, most] = if signed { [-(top + 1.0) / 2.0, (top - 1.0) / 2.0] } else { [0.0, top] };
            let tensor = layer.grid.units.as_ref().unwrap();
            let (per_row, units) = (tensor.shape()[1], read(&mut layer.rec, tensor));
            for start in (0..n).step_by(size) {
                let before = layer.levels();
                layer.refit(start);
                let after = layer.levels();
                assert_eq!(read(&mut layer.rec, layer.grid.units.as_ref().unwrap()), units, "units stay");
                for row in 0..m {
                    let context = format!("{} case {case} {kind} row {row} from {start}", device.name());
                    let unit = |row: usize| f64::from(units[row * per_row + start / size / shared]);
                    let parabola = Parabola::new(&layer.w, &damped, &before, &layer.codes, row, start);
                    let (old, new) = (before.at(row, start), after.at(row, start));
                    let number = new.scale / unit(row);
                    assert!(number.fract() == 0.0 && number != 0.0, "{context}: {number} units");
                    assert!((least..=most).contains(&number), "{context}: {number} units");
                    assert!(new.scale * old.scale > 0.0, "{context}: {} became {}", old.scale, new.scale);
                    let (best, share) = match spec.has_offsets() {
                        true => parabola.scale_beside_offset(),
                        false => (parabola.scale_alone(), 1.0),
                    };
                    let wanted = best / unit(row);
                    if share > 1e-3 && best * old.scale > 0.0 {
                        // No number of units is 0.
                        let lowest = if least == 0.0 || wanted >= 0.0 { 1.0 } else { least };
                        let highest = if wanted < 0.0 { -1.0 } else { most };
                        let slack = 0.5 + 1e-3 * wanted.abs() / share.sqrt();
                        let wanted = wanted.clamp(lowest, highest);
                        assert!((number - wanted).abs() <= slack, "{context}: {number} units, not {wanted}");
                    }
                    if spec.has_offsets() {
                        let unit = unit(m + row);
                        let number = if unit == 0.0 { 0.0 } else { -new.offset / unit };
                        assert!(number.fract() == 0.0 && (0.0..=top).contains(&number), "{context}: {number} units");
                        if unit > 0.0 && best * old.scale > 0.0 {
                            let wanted = (-parabola.offset(new.scale) / unit).clamp(0.0, top);
                            let slack = 0.5 + 1e-3 * (wanted + new.scale * f64::from(spec.top()) / unit);
                            assert!((number - wanted).abs() <= slack, "{context}: {number} units, not {wanted}");
                        }
                    }
                }
            }
            let after = layer.levels();
            let kept = Dense::new(n, m, &read(&mut layer.rec, &layer.errors)).transposed();
            let apart = kept.minus(&layer.exact_errors(&after)).values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            assert!(apart < 2e-5, "{} case {case} {kind}: the errors kept are {apart} off", device.name());
        }
    }
}

device_tests!(a_scale_that_nothing_depends_on_or_that_would_change_its_sign_stays: cpu, software_gpu);
fn a_scale_that_nothing_depends_on_or_that_would_change_its_sign_stays(device: Device) {
    let mut rec = recorder(&device);
    // In row 0 the only level is 0. In row 1 a level of 1 stands for a weight of −1, so that the best scale would be negative. In
    // row 2 the scale is negative and the best one would be positive.
    let codes = rec.upload(&[1, 3], vec![2u32, 3, 3]).unwrap();
    let mut grid = grid_of(&mut rec, [3, 1], vec![0.75, 1.0, -1.0], vec![2.0; 3]);
    let mut errors = rec.upload(&[1, 3], vec![0.5f32, -2.0, 2.0]).unwrap();
    let g = rec.upload(&[1, 3], vec![0.5f32, -2.0, 2.0]).unwrap();
    let v = rec.upload(&[1, 3], vec![0.0f32, 1.0, -1.0]).unwrap();
    let spec = &kinds::signed(3, 2, 1, ScaleType::F16);
    let group = Group { spec, codes: &codes, g: &g, v: &v, ones: None, ridge: 0.5, start: 0 };
    refit(&mut rec, group, &mut grid, &mut errors).unwrap();
    assert_eq!(block_on(rec.read(&grid.scales)).unwrap(), [0.75, 1.0, -1.0], "{}", device.name());
    assert_eq!(block_on(rec.read(&errors)).unwrap(), [0.5, -2.0, 2.0], "{}", device.name());
}

#[test]
fn shapes_are_checked() {
    let mut rec = recorder(&Device::Cpu);
    let codes = rec.zeros(&[4, 3]).unwrap();
    let g = rec.zeros(&[2, 3]).unwrap();
    let v = rec.zeros(&[4, 3]).unwrap();
    let ones = rec.zeros(&[4, 1]).unwrap();
    let mut grid = grid_of(&mut rec, [3, 2], vec![0.0; 6], vec![0.0; 6]);
    let mut errors = rec.zeros(&[4, 3]).unwrap();
    let spec = GridSpec::new(4, 2, Symmetry::Asymmetric, ScaleType::F32);
    let offsets = GridSpec::with_offsets(4, 2, ScaleType::F32);
    let group = Group { spec: &spec, codes: &codes, g: &g, v: &v, ones: None, ridge: 1.0, start: 2 };
    assert!(refit(&mut rec, group, &mut grid, &mut errors).is_ok());
    assert!(refit(&mut rec, Group { spec: &offsets, ones: Some(&ones), ..group }, &mut grid, &mut errors).is_ok());
    for wrong in [
        Group { start: 1, ..group },
        Group { start: 4, ..group },
        Group { spec: &GridSpec { group_size: 0, ..spec }, ..group },
        Group { spec: &GridSpec { group_size: 4, ..spec }, start: 0, ..group },
        Group { g: &v, ..group },
        Group { v: &g, ..group },
        Group { ones: Some(&ones), ..group },
        Group { spec: &offsets, ..group },
        Group { spec: &offsets, ones: Some(&v), ..group },
        Group { spec: &kinds::shared_signed(4, 2, 6), ..group },
    ] {
        assert!(refit(&mut rec, wrong, &mut grid, &mut errors).is_err(), "{wrong:?}");
    }
    grid.units = Some(rec.zeros(&[3, 1]).unwrap());
    assert!(refit(&mut rec, group, &mut grid, &mut errors).is_err());
}
