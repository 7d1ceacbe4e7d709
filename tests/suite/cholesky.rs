//! `ops::cholesky`: the factor of the order-reversed Hessian, compared with float64, and the matrices that have none.

use crate::common::dense::{Dense, hessian, shuffled};
use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::{Device, Recorder};
use aquatint::ops::cholesky::{Factor, factor, normalised_columns};
use aquatint::ops::gram::{self, Packed};

const EXTENTS: [usize; 8] = [1, 5, 63, 64, 65, 100, 130, 300];
const RIDGE: f32 = 0.25;

fn pack(rec: &mut Recorder, h: &Dense) -> Packed {
    let tensor = rec.upload(&[h.rows, h.rows], h.f32()).unwrap();
    gram::pack(rec, &tensor).unwrap()
}

fn factored(rec: &mut Recorder, h: &Dense, order: &[u32], ridge: f32) -> Option<Factor> {
    let h = pack(rec, h);
    pollster::block_on(factor(rec, &h, order, ridge)).unwrap()
}

fn slab(rec: &mut Recorder, factor: &Factor, start: usize, count: usize) -> Dense {
    let tensor = normalised_columns(rec, factor, start, count).unwrap();
    Dense::new(start + count, count, &read(rec, &tensor))
}

/// The normalised factor of `h`: R, upper triangular with `R·Rᵀ = h`, each column divided by its diagonal element.
fn reference(h: &Dense) -> Dense {
    let n = h.rows;
    let m = Dense::from_fn(n, n, |i, j| h.at(n - 1 - i, n - 1 - j)).cholesky();
    Dense::from_fn(n, n, |j, i| m.at(n - 1 - j, n - 1 - i) / m.at(n - 1 - i, n - 1 - i))
}

device_tests!(the_normalised_factor_equals_float64_in_any_order: cpu, software_gpu);
fn the_normalised_factor_equals_float64_in_any_order(device: Device) {
    let mut rec = recorder(&device);
    for n in EXTENTS {
        let h = hessian(n as u64, n);
        let order = shuffled(n as u64, n);
        let f = factored(&mut rec, &h, &order, RIDGE).expect("positive definite");
        assert_eq!(f.n(), n);
        let rn = slab(&mut rec, &f, 0, n);
        let expected = reference(&h.damped(f64::from(RIDGE)).permuted(&order));
        let error = relative_error(&rn.f32(), &expected.values);
        assert!(error < 1e-5, "{} n {n}: {error}", device.name());
        for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
            assert_eq!(rn.at(i, j), f64::from(i == j), "{} n {n}: not unit upper triangular", device.name());
        }
    }
}

device_tests!(the_factor_times_its_transpose_is_the_damped_matrix: cpu, software_gpu);
fn the_factor_times_its_transpose_is_the_damped_matrix(device: Device) {
    let mut rec = recorder(&device);
    for n in EXTENTS {
        let h = hessian(n as u64, n);
        let order = shuffled(7, n);
        let expected = h.damped(f64::from(RIDGE)).permuted(&order);
        let f = factored(&mut rec, &h, &order, RIDGE).expect("positive definite");
        let rn = slab(&mut rec, &f, 0, n);
        // R·Rᵀ = Rn·diag(s)·Rnᵀ, where s follows from the diagonal of the product, last first.
        let mut s = vec![0.0; n];
        for i in (0..n).rev() {
            s[i] = expected.at(i, i) - (i + 1..n).map(|c| rn.at(i, c).powi(2) * s[c]).sum::<f64>();
        }
        let scaled = Dense::from_fn(n, n, |i, j| rn.at(i, j) * s[j]);
        let error = relative_error(&scaled.times(&rn.transposed()).f32(), &expected.values);
        assert!(error < 1e-5, "{} n {n}: {error}", device.name());
    }
}

device_tests!(slabs_are_parts_of_the_whole: cpu, software_gpu);
fn slabs_are_parts_of_the_whole(device: Device) {
    let mut rec = recorder(&device);
    let n = 130;
    let order = shuffled(3, n);
    let f = factored(&mut rec, &hessian(3, n), &order, RIDGE).expect("positive definite");
    let whole = slab(&mut rec, &f, 0, n);
    for (start, count) in [(0, 1), (1, 128), (63, 2), (100, 30), (129, 1), (130, 0)] {
        let part = slab(&mut rec, &f, start, count);
        let expected = Dense::from_fn(start + count, count, |j, c| whole.at(j, start + c));
        assert_eq!(part, expected, "{} {start}+{count}", device.name());
    }
    assert!(normalised_columns(&mut rec, &f, 100, 31).is_err());
}

device_tests!(the_matrix_stays_as_it_is_and_a_dead_input_counts_as_one: cpu, software_gpu);
fn the_matrix_stays_as_it_is_and_a_dead_input_counts_as_one(device: Device) {
    let mut rec = recorder(&device);
    for (n, dead) in [(5, 2), (100, 7), (100, 64), (130, 129)] {
        let live = hessian(n as u64, n);
        let h = Dense::from_fn(n, n, |i, j| if i == dead || j == dead { 0.0 } else { live.at(i, j) });
        let order = shuffled(1, n);
        let packed = pack(&mut rec, &h);
        let f = pollster::block_on(factor(&mut rec, &packed, &order, RIDGE)).unwrap().expect("positive definite");
        let after = gram::unpack(&mut rec, &packed).unwrap();
        assert_eq!(read(&mut rec, &after), h.f32(), "{} n {n}", device.name());
        let rn = slab(&mut rec, &f, 0, n);
        let expected = reference(&h.damped(f64::from(RIDGE)).permuted(&order));
        let error = relative_error(&rn.f32(), &expected.values);
        assert!(error < 1e-5, "{} n {n}: {error}", device.name());
        // A dead input needs no ridge.
        assert!(factored(&mut rec, &h, &order, 0.0).is_some(), "{} n {n}", device.name());
    }
}

device_tests!(a_pivot_that_is_not_positive_and_finite_gives_none: cpu, software_gpu);
fn a_pivot_that_is_not_positive_and_finite_gives_none(device: Device) {
    let mut rec = recorder(&device);
    for n in [5, 65, 130] {
        let order: Vec<u32> = (0..n as u32).collect();
        let identity = Dense::from_fn(n, n, |i, j| f64::from(i == j));
        assert!(factored(&mut rec, &identity, &order, 0.0).is_some());
        let indefinite = |row: usize, value: f64| {
            let mut h = identity.clone();
            h.set(row, 0, value);
            h.set(0, row, value);
            h
        };
        for row in [1, n / 2, n - 1] {
            let h = indefinite(row, 2.0);
            assert!(factored(&mut rec, &h, &order, 0.5).is_none(), "{} n {n} row {row}", device.name());
            assert!(factored(&mut rec, &h, &order, 1.5).is_some(), "{} n {n} row {row}", device.name());
            // The pivot is exactly zero.
            let h = indefinite(row, 1.0);
            assert!(factored(&mut rec, &h, &order, 0.0).is_none(), "{} n {n} row {row}", device.name());
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
                let h = indefinite(row, value);
                assert!(factored(&mut rec, &h, &order, 0.5).is_none(), "{} n {n} {value}", device.name());
                let mut h = identity.clone();
                h.set(row, row, if value == 1e30 { -1.0 } else { value });
                assert!(factored(&mut rec, &h, &order, 0.5).is_none(), "{} n {n} {value}", device.name());
            }
        }
    }
}

#[test]
fn an_order_that_is_no_permutation_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let h = Packed::zeros(&mut rec, 3).unwrap();
    for order in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, 2, 3]] {
        assert!(pollster::block_on(factor(&mut rec, &h, order, 1.0)).is_err());
    }
}

device_tests!(a_larger_ridge_rescues_a_singular_matrix: cpu, software_gpu);
/// The pipeline raises the ridge and factors the same H again when a factorisation fails.
fn a_larger_ridge_rescues_a_singular_matrix(device: Device) {
    let mut rec = recorder(&device);
    let (n, tokens) = (100, 3);
    let x = Dense::new(tokens, n, &random(5, tokens * n));
    let singular = x.transposed().times(&x);
    let order: Vec<u32> = (0..n as u32).collect();
    let h = pack(&mut rec, &singular.damped(-1e-3));
    assert!(pollster::block_on(factor(&mut rec, &h, &order, 0.0)).unwrap().is_none(), "{}", device.name());
    assert!(pollster::block_on(factor(&mut rec, &h, &order, 0.1)).unwrap().is_some(), "{}", device.name());
}
