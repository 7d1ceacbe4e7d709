//! `ops::descent`: coordinate descent over codes, compared with the textbook in float64, and the loss that it takes off GPTQ.

use crate::common::dense::{Dense, Levels, hessian, objective};
use crate::common::kinds;
use crate::common::{device_tests, grid_of, group_rounder, levels, random, read, recorder};
use aquatint::device::{Device, Tensor};
use aquatint::ops::descent::{Block, descend_block};
use aquatint::ops::gptq::LONGEST_BLOCK;
use aquatint::ops::gram;
use aquatint::ops::grid::{GridSpec, ScaleType, Search, Symmetry};
use aquatint::ops::matmul::{Orientation, Rows, accumulate};
use aquatint::quant::methods::Layer;
use aquatint::quant::{ActivationOrder, Codes, HessianDiagonal, QuantizeOptions};
use pollster::block_on;

const RIDGE: f32 = 0.5;

/// (m, n, group size, block length, bits)
const CASES: [(usize, usize, usize, usize, u32); 7] = [
    (1, 1, 1, 128, 4),
    (3, 5, 2, 128, 2),
    (3, 63, 63, 17, 3),
    (37, 64, 32, 128, 4),
    (65, 130, 130, 128, 2),
    (37, 130, 50, 33, 8),
    (70, 300, 128, 128, 3),
];

/// The textbook: a layer, its codes and its grid. All matrices are `[m, …]`.
struct Textbook {
    w: Dense,
    levels: Levels,
    codes: Dense,
}

impl Textbook {
    /// The start is poor: every weight is rounded to the nearest code.
    fn new(w: Dense, levels: Levels) -> Self {
        let codes = levels.codes(&w);
        Self { w, levels, codes }
    }

    fn errors(&self) -> Dense {
        self.w.minus(&self.levels.values(&self.codes))
    }

    /// Makes one pass: every weight in turn takes the code of least loss, found by trying them all.
    fn descend(&mut self, h: &Dense) {
        let mut errors = self.errors();
        for i in 0..self.w.rows {
            for j in 0..self.w.columns {
                let slope: f64 = (0..self.w.columns).map(|k| errors.at(i, k) * h.at(k, j)).sum();
                let level = self.levels.at(i, j);
                let value = |code: u32| level.value(f64::from(code));
                let change = |code: u32| errors.at(i, j) - self.w.at(i, j) + value(code);
                let loss = |code: &u32| -2.0 * change(*code) * slope + change(*code).powi(2) * h.at(j, j);
                let best = (0..1u32 << self.levels.spec.bits).min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
                self.codes.set(i, j, f64::from(best));
                errors.set(i, j, self.w.at(i, j) - value(best));
            }
        }
    }
}

fn spec(bits: u32, group_size: usize) -> GridSpec {
    GridSpec::new(bits, group_size, Symmetry::Asymmetric, ScaleType::F32)
}

device_tests!(equals_the_textbook: cpu, software_gpu);
fn equals_the_textbook(device: Device) {
    let kinds = |(case, (m, n, group_size, length, bits))| {
        kinds::unrounded(bits, group_size).map(|spec| (case, [m, n], spec, length))
    };
    for (case, [m, n], spec, length) in CASES.into_iter().enumerate().flat_map(kinds) {
        let mut rec = recorder(&device);
        let (w, h) = (Dense::new(m, n, &random(case as u64, m * n)), hessian(case as u64, n));
        let on_device = rec.upload(&[m, n], w.f32()).unwrap();
        let grid = kinds::grid_without_ties(&mut rec, &on_device, &spec);
        let mut layer = Textbook::new(w, levels(&mut rec, &spec, &grid));

        let mut errors = rec.upload(&[n, m], layer.errors().transposed().f32()).unwrap();
        let start: Vec<u32> = layer.codes.transposed().values.iter().map(|&code| code as u32).collect();
        let mut codes = rec.upload(&[n, m], start).unwrap();
        let hessian = rec.upload(&[n, n], h.f32()).unwrap();
        for start in (0..n).step_by(length) {
            let count = length.min(n - start);
            let mut g: Tensor = rec.zeros(&[count, m]).unwrap();
            let rows = Rows { tensor: &hessian, start, count };
            accumulate(&mut rec, Orientation::Nn, rows, Rows::all(&errors), &mut g, 0).unwrap();
            let rows = rec.copy_rows(&hessian, start, count).unwrap();
            let (hessian, ridge, g, spec, grid) = (&rows, RIDGE, &g, &spec, &grid);
            let block = Block { hessian, ridge, g, spec, grid, start, count };
            descend_block(&mut rec, block, &mut errors, &mut codes).unwrap();
        }

        let damped = h.damped(f64::from(RIDGE));
        let before = objective(&layer.errors(), &damped);
        layer.descend(&damped);
        let found = found_codes(&mut rec, &codes, [m, n]);
        let context = format!("{} case {case}, {:?}", rec.device().name(), spec.zero);
        let different = found.values.iter().zip(&layer.codes.values).filter(|(a, b)| a != b).count();
        assert!(different * 1000 <= m * n, "{context}: {different} of {} codes differ", m * n);
        let expected = objective(&layer.errors(), &damped);
        layer.codes = found;
        let after = objective(&layer.errors(), &damped);
        assert!((after - expected).abs() <= 1e-4 * expected, "{context}: loss {after}, not {expected}");
        assert!(after <= before, "{context}: loss {before} became {after}");
        let errors = Dense::new(n, m, &read(&mut rec, &errors)).transposed();
        let apart = errors.minus(&layer.errors()).values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        assert!(apart < 1e-4, "{context}: the errors kept are {apart} off");
    }
}

fn found_codes(rec: &mut aquatint::device::Recorder, codes: &Tensor<u32>, [m, n]: [usize; 2]) -> Dense {
    let codes = block_on(rec.read(codes)).unwrap();
    Dense::from_fn(m, n, |i, j| f64::from(codes[j * m + i]))
}

device_tests!(no_single_code_can_be_bettered_after_enough_passes_and_the_loss_of_gptq_falls: cpu, software_gpu);
fn no_single_code_can_be_bettered_after_enough_passes_and_the_loss_of_gptq_falls(device: Device) {
    let (m, n, group_size) = (40, 200, 32);
    let (w, h) = (Dense::new(m, n, &random(1, m * n)), hessian(1, n));
    let mut rec = recorder(&device);
    let dense = rec.upload(&[n, n], h.f32()).unwrap();
    let packed = gram::pack(&mut rec, &dense).unwrap();
    let weight = rec.upload(&[m, n], w.f32()).unwrap();
    let diagonal = block_on(HessianDiagonal::of(&mut rec, &packed, "test")).unwrap();
    let mut losses = Vec::new();
    for (passes, order) in [0, 1, 20]
        .into_iter()
        .flat_map(|passes| [ActivationOrder::Natural, ActivationOrder::Descending].map(|order| (passes, order)))
    {
        let options =
            QuantizeOptions { bits: 2, descent_passes: passes, activation_order: order, ..Default::default() };
        let rounder = group_rounder(&mut rec, &options, &packed, &diagonal);
        let layer = Layer { name: "test", grid: spec(2, group_size) };
        let rounded = block_on(rounder.round(&mut rec, layer, &weight)).unwrap();
        let rounded = rounder.refine(&mut rec, &weight, rounded).unwrap();
        let damped = h.damped(f64::from(diagonal.ridge(options.rounding_damping)));
        let q = Dense::new(m, n, &read(&mut rec, &rounded.dequantized));
        losses.push(objective(&w.minus(&q), &damped));
        if passes == 20 {
            let Codes { codes, grid, .. } = rounded.codes.unwrap();
            let codes = block_on(rec.read(&codes)).unwrap();
            let found = Dense::from_fn(m, n, |i, j| f64::from(codes[i * n + j]));
            let w = Dense::new(m, n, &random(1, m * n));
            let levels = levels(&mut rec, &spec(2, group_size), &grid);
            let mut layer = Textbook { w, levels, codes: found };
            let before = layer.codes.values.clone();
            layer.descend(&damped);
            let moved = before.iter().zip(&layer.codes.values).filter(|(a, b)| a != b).count();
            assert!(moved * 1000 <= m * n, "{}: {moved} of {} codes would still move", device.name(), m * n);
        }
    }
    for pair in losses.chunks(2).collect::<Vec<_>>().windows(2) {
        assert!(pair[1][0] < pair[0][0] && pair[1][1] < pair[0][1], "{}: {losses:?}", device.name());
    }
}

device_tests!(where_inputs_do_not_correlate_no_shrunken_range_loses_less_than_the_one_found_by_pivots: cpu, software_gpu);
fn where_inputs_do_not_correlate_no_shrunken_range_loses_less_than_the_one_found_by_pivots(device: Device) {
    let (m, n, group_size, bits) = (9, 70, 32, 2);
    // The weights have heavy tails, and the inputs very different strengths. H is diagonal, so that GPTQ passes no error on and its
    // loss is that of rounding.
    let w = Dense::from_fn(m, n, |i, j| f64::from(random(3, m * n)[i * n + j].powi(5)));
    let h = Dense::from_fn(n, n, |i, j| if i == j { 4.0f64.powi(i as i32 * 7 % 13 - 6) } else { 0.0 });
    let mut rec = recorder(&device);
    let dense = rec.upload(&[n, n], h.f32()).unwrap();
    let packed = gram::pack(&mut rec, &dense).unwrap();
    let weight = rec.upload(&[m, n], w.f32()).unwrap();
    let diagonal = block_on(HessianDiagonal::of(&mut rec, &packed, "test")).unwrap();
    for activation_order in [ActivationOrder::Natural, ActivationOrder::Descending] {
        let errors = [Search::Weighted, Search::Mse, Search::MinMax].map(|grid| {
            let options = QuantizeOptions { bits, grid, activation_order, descent_passes: 0, ..Default::default() };
            let rounder = group_rounder(&mut rec, &options, &packed, &diagonal);
            let layer = Layer { name: "test", grid: spec(bits, group_size) };
            let rounded = block_on(rounder.round(&mut rec, layer, &weight)).unwrap();
            w.minus(&Dense::new(m, n, &read(&mut rec, &rounded.dequantized)))
        });
        let ridge = f64::from(diagonal.ridge(0.01));
        let loss = |errors: &Dense, row: usize, group: usize| -> f64 {
            let columns = group * group_size..n.min((group + 1) * group_size);
            columns.map(|j| (h.at(j, j) + ridge) * errors.at(row, j).powi(2)).sum()
        };
        let mut gains = [0, 0];
        for (row, group) in (0..m).flat_map(|row| (0..n.div_ceil(group_size)).map(move |group| (row, group))) {
            let least = loss(&errors[0], row, group);
            for (gain, other) in gains.iter_mut().zip(&errors[1..]) {
                let other = loss(other, row, group);
                assert!(least <= other * (1.0 + 1e-4), "{} row {row} group {group}", device.name());
                *gain += usize::from(least < 0.95 * other);
            }
        }
        assert!(gains.iter().all(|&gain| gain > m), "{}: {gains:?} groups gain", device.name());
    }
}

#[test]
fn shapes_are_checked() {
    let mut rec = recorder(&aquatint::device::Device::Cpu);
    let hessian = rec.zeros(&[2, 4]).unwrap();
    let g = rec.zeros(&[2, 3]).unwrap();
    let (spec, grid) = (spec(3, 4), grid_of(&mut rec, [3, 1], vec![0.0; 3], vec![0.0; 3]));
    let block = Block { hessian: &hessian, ridge: 1.0, g: &g, spec: &spec, grid: &grid, start: 0, count: 2 };
    let mut errors = rec.zeros(&[4, 3]).unwrap();
    let mut codes = rec.zeros(&[4, 3]).unwrap();
    assert!(descend_block(&mut rec, block, &mut errors, &mut codes).is_ok());
    for wrong in [
        Block { start: 3, ..block },
        Block { count: 3, ..block },
        Block { count: LONGEST_BLOCK + 1, ..block },
        Block { spec: &GridSpec { bits: 9, ..spec }, ..block },
        Block { spec: &GridSpec { group_size: 2, ..spec }, ..block },
        Block { spec: &GridSpec { group_size: 0, ..spec }, ..block },
    ] {
        assert!(descend_block(&mut rec, wrong, &mut errors, &mut codes).is_err(), "{wrong:?}");
    }
}
