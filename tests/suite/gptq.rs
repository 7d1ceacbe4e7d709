//! `ops::gptq`: the column loop, compared with the textbook GPTQ in float64, which takes a Cholesky factor of an inverse.

use crate::common::dense::{self, Dense, Level, hessian, objective, shuffled};
use crate::common::kinds;
use crate::common::{device_tests, grid_of, levels, random, read, recorder, relative_error};
use aquatint::device::{Device, Recorder, Tensor};
use aquatint::ops::cholesky::{Factor, factor, normalised_columns};
use aquatint::ops::gptq::{Block, LONGEST_BLOCK, quantize_block, updated_group};
use aquatint::ops::gram;
use aquatint::ops::grid::{Grid, GridSpec, ScaleType, Search, Symmetry, search};
use aquatint::ops::matmul::{Orientation, Rows, accumulate};
use aquatint::ops::permute::{from_columns, to_columns};

const RIDGE: f32 = 0.5;

/// A layer on a device, in the middle of its column loop.
struct Layer {
    rec: Recorder,
    factor: Factor,
    order: Tensor<u32>,
    /// W `[m, n]` in the original order of its columns, and `[n, m]` in processing order.
    w: Tensor,
    columns: Tensor,
    d: Tensor,
    codes: Tensor<u32>,
}

impl Layer {
    fn new(device: &Device, w: &Dense, h: &Dense, order: &[u32]) -> Self {
        let mut rec = recorder(device);
        let [m, n] = [w.rows, w.columns];
        let dense = rec.upload(&[n, n], h.f32()).unwrap();
        let packed = gram::pack(&mut rec, &dense).unwrap();
        let factor = pollster::block_on(factor(&mut rec, &packed, order, RIDGE)).unwrap().expect("positive definite");
        let order = rec.upload(&[n], order.to_vec()).unwrap();
        let w = rec.upload(&[m, n], w.f32()).unwrap();
        let columns = to_columns(&mut rec, &w, &order).unwrap();
        let (d, codes) = (rec.zeros(&[n, m]).unwrap(), rec.zeros(&[n, m]).unwrap());
        Self { rec, factor, order, w, columns, d, codes }
    }

    /// The slab of Rn, and t, for the columns start..start + count. The errors d of the columns before them are known.
    fn targets(&mut self, start: usize, count: usize) -> (Tensor, Tensor) {
        let rec = &mut self.rec;
        let m = self.columns.shape()[1];
        let slab = normalised_columns(rec, &self.factor, start, count).unwrap();
        let w = read(rec, &self.columns);
        let mut t = rec.upload(&[count, m], w[start * m..(start + count) * m].to_vec()).unwrap();
        let rows = |tensor| Rows { tensor, start: 0, count: start };
        accumulate(rec, Orientation::Tn, rows(&slab), rows(&self.d), &mut t, 0).unwrap();
        (slab, t)
    }

    /// Rounds the columns from..to in blocks of `length`.
    fn quantize(&mut self, [from, to]: [usize; 2], length: usize, grid: &Grid, group_of: &[u32], spec: &GridSpec) {
        let group_of = self.rec.upload(&[group_of.len()], group_of.to_vec()).unwrap();
        for start in (from..to).step_by(length) {
            let count = length.min(to - start);
            let (slab, t) = self.targets(start, count);
            let w = &self.columns;
            let block = Block { w, t: &t, columns: &slab, spec, grid, group_of: &group_of, start, count };
            quantize_block(&mut self.rec, block, &mut self.d, &mut self.codes).unwrap();
        }
    }

    /// The codes, and the errors W − Q, in processing order.
    fn result(&mut self) -> (Dense, Dense) {
        let [n, m] = [self.d.shape()[0], self.d.shape()[1]];
        let codes = pollster::block_on(self.rec.read(&self.codes)).unwrap();
        let errors = Dense::new(n, m, &read(&mut self.rec, &self.d)).transposed();
        (Dense::from_fn(m, n, |i, j| f64::from(codes[j * m + i])), errors)
    }
}

fn spec(bits: u32, group_size: usize) -> GridSpec {
    GridSpec::new(bits, group_size, Symmetry::Asymmetric, ScaleType::F32)
}

fn columns_in(order: &[u32], w: &Dense) -> Dense {
    Dense::from_fn(w.rows, w.columns, |i, j| w.at(i, order[j] as usize))
}

/// Checks that at most one code in a thousand differs, and that the objectives are within 1e-4 of each other.
fn compare(context: &str, layer: &mut Layer, w: &Dense, h: &Dense, codes: &Dense, quantized: &Dense) {
    let (found, errors) = layer.result();
    let different = found.values.iter().zip(&codes.values).filter(|(a, b)| a != b).count();
    assert!(different * 1000 <= codes.values.len(), "{context}: {different} of {} codes differ", codes.values.len());
    let (found, expected) = (objective(&errors, h), objective(&w.minus(quantized), h));
    // Where the grid holds every weight exactly, only the rounding errors of f32 are left.
    let slack = 1e-4 * expected + 1e-12 * objective(w, h);
    assert!((found - expected).abs() <= slack, "{context}: objective {found}, not {expected}");
}

/// (m, n, group size, block length, bits)
const CASES: [(usize, usize, usize, usize, u32); 9] = [
    (1, 1, 1, 128, 4),
    (3, 5, 2, 128, 2),
    (3, 63, 63, 17, 3),
    (37, 64, 32, 128, 4),
    (3, 65, 32, 64, 2),
    (37, 100, 32, 128, 3),
    (65, 130, 130, 128, 4),
    (37, 130, 50, 33, 8),
    (70, 300, 128, 128, 3),
];

device_tests!(equals_the_textbook_on_static_grids: cpu, software_gpu);
fn equals_the_textbook_on_static_grids(device: Device) {
    for (case, (m, n, group_size, length, bits)) in CASES.into_iter().enumerate() {
        for (spec, act_order) in kinds::unrounded(bits, group_size)
            .into_iter()
            .zip([true, true, false])
            .chain([(spec(bits, group_size), false)])
        {
            let w = Dense::new(m, n, &random(case as u64, m * n));
            let h = hessian(case as u64, n);
            let order = if act_order { shuffled(1, n) } else { (0..n as u32).collect() };
            let group_of: Vec<u32> = order.iter().map(|&i| i / group_size as u32).collect();
            let mut layer = Layer::new(&device, &w, &h, &order);
            let grid = kinds::grid_without_ties(&mut layer.rec, &layer.w, &spec);
            layer.quantize([0, n], length, &grid, &group_of, &spec);
            let levels = levels(&mut layer.rec, &spec, &grid);
            let level = |i: usize, j: usize| levels.of_group(i, group_of[j] as usize);
            let (w, h) = (columns_in(&order, &w), h.damped(f64::from(RIDGE)).permuted(&order));
            let (codes, quantized) = dense::gptq(&w, &h, bits, |i, j, _| level(i, j));
            let context = format!("{} case {case}, act-order {act_order}, {:?}", device.name(), spec.zero);
            compare(&context, &mut layer, &w, &h, &codes, &quantized);
        }
    }
}

device_tests!(equals_ldlq_on_reversed_columns: cpu, software_gpu);
fn equals_ldlq_on_reversed_columns(device: Device) {
    for (m, n, bits) in [(3, 65, 2), (37, 100, 3)] {
        let w = Dense::new(m, n, &random(4, m * n));
        let h = hessian(4, n);
        let order: Vec<u32> = (0..n as u32).collect();
        let mut layer = Layer::new(&device, &w, &h, &order);
        let grid = search(&mut layer.rec, &layer.w, None, &spec(bits, n), Search::MinMax).unwrap();
        layer.quantize([0, n], 128, &grid, &vec![0; n], &spec(bits, n));
        let levels = levels(&mut layer.rec, &spec(bits, n), &grid);
        // LDLQ decomposes H of the reversed columns as L·D·Lᵀ, starts with the last column, and feeds errors back through L.
        let reversed: Vec<u32> = order.iter().rev().copied().collect();
        let h = h.damped(f64::from(RIDGE));
        let l = h.permuted(&reversed).cholesky();
        let flipped = columns_in(&reversed, &w);
        let (mut codes, mut quantized) = (flipped.clone(), flipped.clone());
        for i in 0..m {
            let level = levels.at(i, 0);
            for k in (0..n).rev() {
                let feedback: f64 =
                    (k + 1..n).map(|j| (flipped.at(i, j) - quantized.at(i, j)) * l.at(j, k) / l.at(k, k)).sum();
                let code = level.code(flipped.at(i, k) + feedback, bits);
                codes.set(i, k, code);
                quantized.set(i, k, level.value(code));
            }
        }
        let (codes, quantized) = (columns_in(&reversed, &codes), columns_in(&reversed, &quantized));
        compare(&format!("{} {m} × {n}", device.name()), &mut layer, &w, &h, &codes, &quantized);
    }
}

device_tests!(equals_the_textbook_on_grids_of_the_updated_weights: cpu, software_gpu);
fn equals_the_textbook_on_grids_of_the_updated_weights(device: Device) {
    for (m, n, group_size, bits) in
        [(3, 5, 2, 2), (37, 100, 32, 3), (3, 130, 130, 4), (65, 300, 128, 3), (37, 300, 140, 4)]
    {
        let w = Dense::new(m, n, &random(6, m * n));
        let h = hessian(6, n);
        let order: Vec<u32> = (0..n as u32).collect();
        let mut layer = Layer::new(&device, &w, &h, &order);
        for start in (0..n).step_by(group_size) {
            let count = group_size.min(n - start);
            let (slab, t) = layer.targets(start, count);
            let rec = &mut layer.rec;
            let updated = updated_group(rec, &layer.columns, &t, &slab, start, count).unwrap();
            let sequential = rec.upload(&[count], (0..count as u32).collect()).unwrap();
            let updated = from_columns(rec, &updated, &sequential).unwrap();
            let grid = search(rec, &updated, None, &spec(bits, count), Search::MinMax).unwrap();
            layer.quantize([start, start + count], LONGEST_BLOCK, &grid, &vec![0; n], &spec(bits, count));
        }
        let h = h.damped(f64::from(RIDGE));
        let mut levels: Vec<Vec<Level>> = vec![Vec::new(); m];
        let (codes, quantized) = dense::gptq(&w, &h, bits, |i, j, w| {
            if j % group_size == 0 {
                levels[i].push(Level::min_max((j..n.min(j + group_size)).map(|k| w.at(i, k)), bits));
            }
            levels[i][j / group_size]
        });
        let context = format!("{} {m} × {n} groups of {group_size}", device.name());
        compare(&context, &mut layer, &w, &h, &codes, &quantized);
    }
}

device_tests!(updated_weights_follow_the_recurrence: cpu, software_gpu);
/// Compares the recurrence with its definition, for a slab and a t of any values.
fn updated_weights_follow_the_recurrence(device: Device) {
    for (m, n, start, count) in [(1, 5, 1, 1), (3, 65, 1, 64), (37, 300, 17, 283), (65, 200, 60, 40), (3, 64, 0, 64)] {
        let mut rec = recorder(&device);
        let vw = random(1, n * m);
        let vt = if start == 0 { vw[..count * m].to_vec() } else { random(2, count * m) };
        // Small factors keep the recurrence from growing.
        let slab: Vec<f32> = random(3, (start + count) * count).iter().map(|v| v / count as f32).collect();
        let w = rec.upload(&[n, m], vw.clone()).unwrap();
        let t = rec.upload(&[count, m], vt.clone()).unwrap();
        let columns = rec.upload(&[start + count, count], slab.clone()).unwrap();
        let updated = updated_group(&mut rec, &w, &t, &columns, start, count).unwrap();
        let mut x = Dense::from_fn(count, m, |_, _| 0.0);
        let mut expected = x.clone();
        for c in 0..count {
            for r in 0..m {
                let w = f64::from(vw[(start + c) * m + r]);
                let earlier: f64 = (0..c).map(|b| x.at(b, r) * f64::from(slab[(start + b) * count + c])).sum();
                x.set(c, r, f64::from(vt[c * m + r]) - w - earlier);
                expected.set(c, r, w + x.at(c, r));
            }
        }
        let error = relative_error(&read(&mut rec, &updated), &expected.values);
        assert!(error < 1e-5, "{} {m} × {n} at {start}+{count}: {error}", device.name());
    }
}

device_tests!(a_dead_input_is_rounded_like_any_and_changes_nothing_else: cpu, software_gpu);
fn a_dead_input_is_rounded_like_any_and_changes_nothing_else(device: Device) {
    let (m, n, dead) = (37, 100, 7);
    let mut w = Dense::new(m, n, &random(8, m * n));
    let live = hessian(8, n);
    let h = Dense::from_fn(n, n, |i, j| if i == dead || j == dead { 0.0 } else { live.at(i, j) });
    let order: Vec<u32> = (0..n as u32).collect();
    let mut results = Vec::new();
    for value in [0.0, 0.3] {
        (0..m).for_each(|i| w.set(i, dead, value));
        let mut layer = Layer::new(&device, &w, &h, &order);
        let grid = grid_of(&mut layer.rec, [m, 1], vec![0.2; m], vec![8.0; m]);
        layer.quantize([0, n], 128, &grid, &vec![0; n], &spec(4, n));
        results.push(layer.result().0);
    }
    for i in 0..m {
        assert_eq!(results[0].at(i, dead), 8.0, "{}", device.name());
        for j in (0..n).filter(|&j| j != dead) {
            assert_eq!(results[0].at(i, j), results[1].at(i, j), "{} ({i}, {j})", device.name());
        }
    }
}

#[test]
fn blocks_that_do_not_fit_are_an_error() {
    let w = Dense::new(2, 200, &random(1, 400));
    let mut layer = Layer::new(&Device::Cpu, &w, &hessian(1, 200), &(0..200).collect::<Vec<u32>>());
    let rec = &mut layer.rec;
    let grid = search(rec, &layer.w, None, &spec(4, 200), Search::MinMax).unwrap();
    let group_of = rec.zeros(&[200]).unwrap();
    let mut attempt = |start, count, rows, bits| {
        let columns = rec.zeros(&[start + count, count]).unwrap();
        let t = rec.zeros(&[rows, 2]).unwrap();
        let (w, spec) = (&layer.columns, &GridSpec { bits, ..spec(4, 200) });
        let block = Block { w, t: &t, columns: &columns, spec, grid: &grid, group_of: &group_of, start, count };
        quantize_block(rec, block, &mut layer.d, &mut layer.codes)
    };
    assert!(attempt(0, 128, 128, 4).is_ok());
    assert!(attempt(0, 129, 129, 4).is_err());
    assert!(attempt(199, 2, 2, 4).is_err());
    assert!(attempt(0, 5, 4, 4).is_err());
    assert!(attempt(0, 5, 5, 9).is_err());
    assert_eq!(layer.order.shape(), [200]);
}
