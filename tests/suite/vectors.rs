//! Every quantity of the float64 test vectors (tests/fixtures/vectors), on each device.

use std::path::Path;

use crate::common::{device_tests, group_rounder, read, recorder, relative_error};
use aquatint::device::{Device, Recorder, Tensor};
use aquatint::ops::gram::{self, Packed};
use aquatint::ops::grid::{self, Grid, GridSpec, ScaleType, Search, Symmetry};
use aquatint::ops::pieces::Pieces;
use aquatint::ops::rtn;
use aquatint::ops::scale::scale_columns;
use aquatint::quant::alpha::HeldOut;
use aquatint::quant::correction::Corrector;
use aquatint::quant::methods::Layer;
use aquatint::quant::{ActivationOrder, HessianDiagonal, Quantities, QuantizeOptions, Statistics};
use pollster::block_on;
use safetensors::{Dtype, SafeTensors};

/// A file of test vectors.
struct Vectors {
    bytes: Vec<u8>,
    group: usize,
    name: &'static str,
}

impl Vectors {
    fn load(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/vectors/{name}.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let group = metadata.metadata().as_ref().unwrap()["group"].parse().unwrap();
        Self { bytes, group, name }
    }

    fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.bytes).unwrap().names().into_iter().map(str::to_string).collect()
    }

    fn get(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap_or_else(|_| panic!("{} has no {name}", self.name));
        let values = match view.dtype() {
            Dtype::F32 => view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
            other => panic!("{name} is {other:?}"),
        };
        (view.shape().to_vec(), values)
    }

    fn wide(&self, name: &str) -> Vec<f64> {
        self.get(name).1.into_iter().map(f64::from).collect()
    }

    fn upload(&self, rec: &mut Recorder, name: &str) -> Tensor {
        let (shape, values) = self.get(name);
        rec.upload(&shape, values).unwrap()
    }

    /// Some rows of a matrix, on the device.
    fn upload_rows(&self, rec: &mut Recorder, name: &str, rows: std::ops::Range<usize>) -> Tensor {
        let (shape, values) = self.get(name);
        let values = values[rows.start * shape[1]..rows.end * shape[1]].to_vec();
        rec.upload(&[rows.len(), shape[1]], values).unwrap()
    }

    fn hessian(&self, rec: &mut Recorder) -> Packed {
        let dense = self.upload(rec, "hessian");
        gram::pack(rec, &dense).unwrap()
    }

    /// W, with zeros in the columns of dead inputs: those whose diagonal element of H is zero.
    fn weight_without_dead(&self, rec: &mut Recorder, diagonal: &HessianDiagonal) -> Tensor {
        let mut weight = self.upload(rec, "w");
        let alive = diagonal.alive();
        let alive = rec.upload(&[alive.len()], alive).unwrap();
        scale_columns(rec, &mut weight, &alive).unwrap();
        weight
    }
}

const WITH_STREAMS: [&str; 3] = ["square", "ragged", "tiny"];
const ALL: [&str; 4] = ["square", "ragged", "tiny", "wide"];

fn each(device: &Device, names: &[&'static str], check: impl Fn(&mut Recorder, &Vectors)) {
    for &name in names {
        check(&mut recorder(device), &Vectors::load(name));
    }
}

fn statistics(rec: &mut Recorder, v: &Vectors, rows: std::ops::Range<usize>) -> Statistics {
    let (x, x_hat) = (v.upload_rows(rec, "x", rows.clone()), v.upload_rows(rec, "x_hat", rows));
    let quantities = Quantities { error_correlation: true, magnitudes: false };
    let mut statistics = Statistics::zeros(rec, x.shape()[1], quantities).unwrap();
    // The tokens come in two chunks, the second of which starts at an odd place.
    let tokens = x.shape()[0];
    let cut = tokens / 3 + 1;
    for (start, count) in [(0, cut), (cut, tokens - cut)] {
        let (x, x_hat) = (rec.copy_rows(&x, start, count).unwrap(), rec.copy_rows(&x_hat, start, count).unwrap());
        statistics.accumulate(rec, &x, &x_hat).unwrap();
    }
    statistics
}

device_tests!(hessian_and_error_correlation: cpu, software_gpu);
fn hessian_and_error_correlation(device: Device) {
    each(&device, &WITH_STREAMS, |rec, v| {
        let tokens = v.get("x").0[0];
        let s = statistics(rec, v, 0..tokens);
        let h = gram::unpack(rec, &s.hessian).unwrap();
        let error = relative_error(&read(rec, &h), &v.wide("hessian"));
        assert!(error < 1e-6, "{} {}: H {error}", device.name(), v.name);
        let error = relative_error(
            &read(rec, s.error_correlation.unwrap().iter().next().unwrap().1),
            &v.wide("error_correlation"),
        );
        assert!(error < 1e-5, "{} {}: D {error}", device.name(), v.name);
    });
}

device_tests!(corrected_weights: cpu, software_gpu);
fn corrected_weights(device: Device) {
    each(&device, &WITH_STREAMS, |rec, v| {
        let hessian = v.hessian(rec);
        let diagonal = block_on(HessianDiagonal::of(rec, &hessian, "test")).unwrap();
        let weight = v.weight_without_dead(rec, &diagonal);
        let d = Pieces::whole(v.upload(rec, "error_correlation")).unwrap();
        let mut checked = 0;
        for name in v.names().iter().filter(|name| name.starts_with("corrected.")) {
            let (alpha, rho) = name.strip_prefix("corrected.alpha").unwrap().split_once(".damp").unwrap();
            let rho = rho.parse().unwrap();
            let corrector = block_on(Corrector::new(rec, &hessian, &diagonal, rho, "test")).unwrap();
            let correction = corrector.correction(rec, &weight, &d).unwrap();
            let mut corrected = rec.duplicate(&weight).unwrap();
            aquatint::ops::add::add_scaled(rec, &mut corrected, alpha.parse().unwrap(), &correction).unwrap();
            let error = relative_error(&read(rec, &corrected), &v.wide(name));
            assert!(error < 1e-5, "{} {} {name}: {error}", device.name(), v.name);
            checked += 1;
        }
        assert_eq!(checked, 3, "{}", v.name);
    });
}

device_tests!(automatic_alpha: cpu, software_gpu);
fn automatic_alpha(device: Device) {
    each(&device, &WITH_STREAMS, |rec, v| {
        let tokens = v.get("x").0[0];
        let fit = v.get("auto_alpha.fit_tokens").1[0] as usize;
        let fitted = statistics(rec, v, 0..fit);
        let held_out = statistics(rec, v, fit..tokens);
        let diagonal = block_on(HessianDiagonal::of(rec, &fitted.hessian, "test")).unwrap();
        let corrector = block_on(Corrector::new(rec, &fitted.hessian, &diagonal, 0.01, "test")).unwrap();
        let alive = v.weight_without_dead(rec, &diagonal);
        let correction = corrector.correction(rec, &alive, &fitted.error_correlation.unwrap()).unwrap();
        let held_out = HeldOut::new(held_out).unwrap();
        let weight = v.upload(rec, "w");
        let output_correlation = held_out.output_correlation(rec, &weight).unwrap();
        let alpha = block_on(held_out.best_alpha(rec, &output_correlation, &correction)).unwrap();
        let expected = v.wide("auto_alpha")[0];
        assert!((alpha - expected).abs() < 1e-4, "{} {}: {alpha}, not {expected}", device.name(), v.name);
    });
}

/// The grid and the search that a name like `rtn.3bit.g32.asym.mse` stands for.
fn spec(name: &str, columns: usize) -> (GridSpec, Search) {
    let parts: Vec<&str> = name.split('.').collect();
    let group: isize = parts[2][1..].parse().unwrap();
    let bits = parts[1].strip_suffix("bit").unwrap().parse().unwrap();
    let group_size = if group < 0 { columns } else { group as usize };
    let symmetry = if parts[3] == "sym" { Symmetry::Symmetric } else { Symmetry::Asymmetric };
    let search = if parts[4] == "mse" { Search::Mse } else { Search::MinMax };
    (GridSpec::new(bits, group_size, symmetry, ScaleType::F32), search)
}

device_tests!(grids_and_rtn_codes: cpu, software_gpu);
fn grids_and_rtn_codes(device: Device) {
    each(&device, &ALL, |rec, v| {
        let weight = v.upload(rec, "w");
        let columns = weight.shape()[1];
        let names = v.names();
        let cases: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".codes")).collect();
        assert!(cases.len() >= 24, "{} has {} RTN cases", v.name, cases.len());
        for case in cases {
            let at = format!("{} {} {case}", device.name(), v.name);
            let (spec, search) = spec(case, columns);
            let grid = grid::search(rec, &weight, None, &spec, search).unwrap();
            let groups = columns.div_ceil(spec.group_size);
            let weights = v.wide("w");
            let cell = |i: usize| (i / columns) * groups + i % columns / spec.group_size;
            // The implementation that made the vectors follows the original GPTQ code: where a group has no negative weight, its
            // symmetric range is [0, max], half of which is clipped. Ours is ±max|w|, as the definition says.
            let mut one_sided = vec![spec.is_symmetric(); grid.scales.len()];
            for i in (0..weights.len()).filter(|&i| weights[i] < 0.0) {
                one_sided[cell(i)] = false;
            }
            let zero_row = |c: usize| (0..weights.len()).filter(|&i| cell(i) == c).all(|i| weights[i] == 0.0);
            let skipped: Vec<bool> = (0..one_sided.len()).map(|c| one_sided[c] && !zero_row(c)).collect();
            assert!(skipped.iter().filter(|&&skip| skip).count() <= 8, "{at}: too little is compared");
            let compared = |values: Vec<f64>| -> Vec<f64> {
                values.into_iter().zip(&skipped).filter_map(|(value, skip)| (!skip).then_some(value)).collect()
            };
            let ours = |values: Vec<f32>| compared(values.into_iter().map(f64::from).collect());
            let (scales, zeros) = (ours(read(rec, &grid.scales)), ours(read(rec, &grid.zeros)));
            let expected_scales = compared(v.wide(&format!("{case}.scales")));
            let apart = |(a, b): (&f64, &f64)| (a / b - 1.0).abs();
            let worst = scales.iter().zip(&expected_scales).map(apart).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{at}: scales are {worst} apart");
            assert_eq!(zeros, compared(v.wide(&format!("{case}.zeros"))), "{at}: zeros");
            let (codes, _) = rtn::round(rec, &weight, &grid, &spec).unwrap();
            let codes: Vec<f32> = block_on(rec.read(&codes)).unwrap().into_iter().map(|c| c as f32).collect();
            let (expected, scales) = (v.wide(&format!("{case}.codes")), v.wide(&format!("{case}.scales")));
            // The ends of a symmetric range are exact ties. The last bit of s decides them, so either code is right.
            let tied = |i: usize| ((weights[i] / scales[cell(i)]).abs().fract() - 0.5).abs() < 1e-5;
            let of_interest: Vec<usize> = (0..codes.len()).filter(|&i| !skipped[cell(i)]).collect();
            let distance = |i: usize| (f64::from(codes[i]) - expected[i]).abs();
            let wrong = of_interest.iter().filter(|&&i| distance(i) > 0.0 && !tied(i)).count();
            assert!(wrong as f64 <= 1e-3 * codes.len() as f64, "{at}: {wrong} codes differ");
            assert!(of_interest.iter().all(|&i| distance(i) <= 1.0), "{at}: codes differ by more than one");
        }
    });
}

/// The objective tr((W − Q) H (W − Q)ᵀ), in float64.
fn objective(w: &[f32], q: &[f64], h: &[f64], n: usize) -> f64 {
    w.chunks(n)
        .zip(q.chunks(n))
        .map(|(w, q)| {
            let e: Vec<f64> = w.iter().zip(q).map(|(&w, q)| f64::from(w) - q).collect();
            (0..n).map(|i| e[i] * (0..n).map(|j| h[i * n + j] * e[j]).sum::<f64>()).sum::<f64>()
        })
        .sum()
}

device_tests!(gptq_codes_and_objective: cpu, software_gpu);
fn gptq_codes_and_objective(device: Device) {
    each(&device, &ALL, |rec, v| {
        let hessian = v.hessian(rec);
        let diagonal = block_on(HessianDiagonal::of(rec, &hessian, "test")).unwrap();
        let weight = v.weight_without_dead(rec, &diagonal);
        let original = read(rec, &weight);
        let columns = weight.shape()[1];
        let dense = v.wide("hessian");
        let names = v.names();
        let cases: Vec<&String> = names.iter().filter(|name| name.starts_with("gptq.")).collect();
        assert_eq!(cases.len(), 12, "{}", v.name);
        for case in cases {
            let at = format!("{} {} {case}", device.name(), v.name);
            let order =
                if case.ends_with("act_order") { ActivationOrder::Descending } else { ActivationOrder::Natural };
            let (spec, search) = spec(case, columns);
            let options = QuantizeOptions {
                bits: spec.bits,
                grid: search,
                activation_order: order,
                descent_passes: 0,
                ..QuantizeOptions::default()
            };
            let rounder = group_rounder(rec, &options, &hessian, &diagonal);
            let layer = Layer { name: "test", grid: spec };
            let rounded = block_on(rounder.round(rec, layer, &weight)).unwrap();
            assert_eq!(spec.group_size, if case.contains("g-1") { columns } else { v.group });
            let ours = read(rec, &rounded.dequantized);
            let expected = v.wide(case);
            let objectives = [
                objective(&original, &ours.iter().map(|&q| f64::from(q)).collect::<Vec<_>>(), &dense, columns),
                objective(&original, &expected, &dense, columns),
            ];
            let relative = (objectives[0] / objectives[1] - 1.0).abs();
            assert!(relative < 1e-4, "{at}: objectives {objectives:?}");
            let step = read_step(rec, &rounded.codes.expect("GPTQ has codes").grid);
            let far = |(i, (&a, &b)): (usize, (&f32, &f64))| (f64::from(a) - b).abs() > 0.5 * step[i / columns];
            let share = ours.iter().zip(&expected).enumerate().filter(|&pair| far(pair)).count() as f64;
            assert!(share / ours.len() as f64 <= 1e-3, "{at}: {share} codes differ");
        }
    });
}

/// The smallest scale of each row.
fn read_step(rec: &mut Recorder, grid: &Grid) -> Vec<f64> {
    let groups = grid.scales.shape()[1];
    let scales = read(rec, &grid.scales);
    scales.chunks(groups).map(|row| row.iter().fold(f64::MAX, |a, &b| a.min(f64::from(b)))).collect()
}
