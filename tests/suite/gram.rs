//! `ops::gram`: the Hessian and the error correlation, compared with float64, and the packed form of a symmetric matrix.

use crate::common::dense::Dense;
use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::{Device, Recorder};
use aquatint::ops::gram::{self, Packed};
use aquatint::ops::matmul::{Orientation, matmul};
use aquatint::ops::pieces::{Pieces, symmetric_product};
use aquatint::tensor::Tensor;

const EXTENTS: [usize; 8] = [1, 5, 63, 64, 65, 100, 130, 300];

fn upload(rec: &mut Recorder, rows: usize, columns: usize, values: &[f32]) -> Tensor {
    rec.upload(&[rows, columns], values.to_vec()).unwrap()
}

fn dense(rec: &mut Recorder, h: &Packed) -> Vec<f32> {
    let tensor = gram::unpack(rec, h).unwrap();
    read(rec, &tensor)
}

device_tests!(accumulates_and_reads_the_diagonal: cpu, software_gpu);
fn accumulates_and_reads_the_diagonal(device: Device) {
    let mut rec = recorder(&device);
    for n in EXTENTS {
        let mut h = Packed::zeros(&mut rec, n).unwrap();
        let mut expected = Dense::from_fn(n, n, |_, _| 0.0);
        for (seed, tokens) in [(1, 1), (2, 37), (3, 64)] {
            let values = random(seed, tokens * n);
            let x = upload(&mut rec, tokens, n, &values);
            gram::accumulate(&mut rec, &x, &mut h).unwrap();
            let x = Dense::new(tokens, n, &values);
            let sum = x.transposed().times(&x);
            expected = Dense::from_fn(n, n, |i, j| expected.at(i, j) + sum.at(i, j));
        }
        assert_eq!(h.n(), n);
        let error = relative_error(&dense(&mut rec, &h), &expected.values);
        assert!(error < 1e-6, "{} n {n}: {error}", device.name());
        let diagonal = pollster::block_on(gram::diagonal(&mut rec, &h)).unwrap();
        let expected: Vec<f64> = (0..n).map(|i| expected.at(i, i)).collect();
        let error = relative_error(&diagonal, &expected);
        assert!(error < 1e-6, "{} n {n}: {error}", device.name());
    }
}

device_tests!(takes_more_tokens_than_one_dispatch: cpu, software_gpu);
fn takes_more_tokens_than_one_dispatch(device: Device) {
    let mut rec = recorder(&device);
    let (tokens, n) = (2051, 5);
    let (vx, vy) = (random(1, tokens * n), random(2, tokens * n));
    let (x, y) = (upload(&mut rec, tokens, n, &vx), upload(&mut rec, tokens, n, &vy));
    let mut h = Packed::zeros(&mut rec, n).unwrap();
    gram::accumulate(&mut rec, &x, &mut h).unwrap();
    let mut d = rec.zeros(&[n, n]).unwrap();
    gram::cross(&mut rec, &x, &y, 0, &mut d).unwrap();
    let (x, y) = (Dense::new(tokens, n, &vx), Dense::new(tokens, n, &vy));
    assert!(relative_error(&dense(&mut rec, &h), &x.transposed().times(&x).values) < 1e-6);
    assert!(relative_error(&read(&mut rec, &d), &x.minus(&y).transposed().times(&y).values) < 1e-6);
}

/// The extents reach every shape of rectangle that the CPU twin cuts the triangle into.
#[test]
fn accumulates_a_matrix_of_many_tiles_on_the_cpu() {
    let mut rec = recorder(&Device::Cpu);
    for n in [700, 64 * 35 + 7] {
        let tokens = 3;
        let values = random(n as u64, tokens * n);
        let x = upload(&mut rec, tokens, n, &values);
        let mut h = Packed::zeros(&mut rec, n).unwrap();
        gram::accumulate(&mut rec, &x, &mut h).unwrap();
        let x = Dense::new(tokens, n, &values);
        assert!(relative_error(&dense(&mut rec, &h), &x.transposed().times(&x).values) < 1e-6);
    }
}

device_tests!(the_cross_product_has_the_error_on_its_rows: cpu, software_gpu);
fn the_cross_product_has_the_error_on_its_rows(device: Device) {
    let mut rec = recorder(&device);
    for n in EXTENTS {
        let tokens = 37;
        let (vx, vy) = (random(1, tokens * n), random(2, tokens * n));
        let start = random(3, n * n);
        let (x, y) = (upload(&mut rec, tokens, n, &vx), upload(&mut rec, tokens, n, &vy));
        let mut d = upload(&mut rec, n, n, &start);
        gram::cross(&mut rec, &x, &y, 0, &mut d).unwrap();
        let (x, y) = (Dense::new(tokens, n, &vx), Dense::new(tokens, n, &vy));
        let mut expected = x.minus(&y).transposed().times(&y);
        for (sum, start) in expected.values.iter_mut().zip(start) {
            *sum += f64::from(start);
        }
        let error = relative_error(&read(&mut rec, &d), &expected.values);
        assert!(error < 1e-6, "{} n {n}: {error}", device.name());
    }
}

device_tests!(packs_unpacks_and_adds: cpu, software_gpu);
fn packs_unpacks_and_adds(device: Device) {
    let mut rec = recorder(&device);
    for n in EXTENTS {
        let half = Dense::new(n, n, &random(n as u64, n * n));
        let symmetric = Dense::from_fn(n, n, |i, j| half.at(i.max(j), i.min(j)));
        // `pack` does not read above the diagonal.
        let tensor = upload(&mut rec, n, n, &half.f32());
        let mut packed = gram::pack(&mut rec, &tensor).unwrap();
        assert_eq!(dense(&mut rec, &packed), symmetric.f32(), "{} n {n}", device.name());
        let other = gram::pack(&mut rec, &tensor).unwrap();
        packed.add_assign(&mut rec, &other).unwrap();
        let twice: Vec<f32> = symmetric.f32().iter().map(|v| v + v).collect();
        assert_eq!(dense(&mut rec, &packed), twice, "{} n {n}", device.name());
    }
}

#[test]
fn extents_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let x = upload(&mut rec, 2, 3, &[0.0; 6]);
    let y = upload(&mut rec, 3, 2, &[0.0; 6]);
    let mut h = Packed::zeros(&mut rec, 4).unwrap();
    assert!(gram::accumulate(&mut rec, &x, &mut h).is_err());
    let mut d = rec.zeros(&[3, 3]).unwrap();
    assert!(gram::cross(&mut rec, &x, &y, 0, &mut d).is_err());
    assert!(gram::pack(&mut rec, &x).is_err());
    let other = Packed::zeros(&mut rec, 3).unwrap();
    assert!(h.add_assign(&mut rec, &other).is_err());
}

device_tests!(a_matrix_in_pieces_is_the_whole_matrix: cpu, software_gpu);
fn a_matrix_in_pieces_is_the_whole_matrix(device: Device) {
    let mut rec = recorder(&device);
    // The last extent has more rows than are unpacked at a time.
    let shapes = [(3, 70, 9, 64), (5, 130, 33, 64), (1, 65, 1, 1), (64, 64, 70, 128), (2, 2100, 3, 1024)];
    for (m, n, tokens, rows) in shapes {
        let x = rec.upload(&[tokens, n], random(1, tokens * n)).unwrap();
        let y = rec.upload(&[tokens, n], random(2, tokens * n)).unwrap();
        let a = rec.upload(&[m, n], random(3, m * n)).unwrap();
        let mut whole = rec.zeros(&[n, n]).unwrap();
        gram::cross(&mut rec, &x, &y, 0, &mut whole).unwrap();
        let mut pieces = Pieces::of_rows(&mut rec, n, rows).unwrap();
        pieces.accumulate_cross(&mut rec, &x, &y).unwrap();
        assert_eq!(pieces.iter().count(), n.div_ceil(rows));
        let joined: Vec<f32> = pieces.iter().flat_map(|(_, piece)| read(&mut rec, piece)).collect();
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let expected = wide(read(&mut rec, &whole));
        assert!(relative_error(&joined, &expected) < 1e-6, "{} {n} in {rows}", device.name());
        let expected = matmul(&mut rec, Orientation::Nn, &a, &whole).unwrap();
        let product = pieces.left_product(&mut rec, &a).unwrap();
        let expected = wide(read(&mut rec, &expected));
        assert!(relative_error(&read(&mut rec, &product), &expected) < 1e-5, "{} {n} in {rows}", device.name());

        let mut h = Packed::zeros(&mut rec, n).unwrap();
        gram::accumulate(&mut rec, &x, &mut h).unwrap();
        let dense = gram::unpack(&mut rec, &h).unwrap();
        let (start, count) = (n / 3, n / 2);
        let some = gram::unpack_rows(&mut rec, &h, start, count).unwrap();
        assert_eq!(read(&mut rec, &some), read(&mut rec, &dense)[start * n..(start + count) * n]);
        let expected = matmul(&mut rec, Orientation::Nn, &a, &dense).unwrap();
        let product = symmetric_product(&mut rec, &a, &h).unwrap();
        let expected = wide(read(&mut rec, &expected));
        assert!(relative_error(&read(&mut rec, &product), &expected) < 1e-5, "{} {n}", device.name());
    }
    let mut d = rec.zeros(&[4, 8]).unwrap();
    let x = rec.zeros(&[2, 8]).unwrap();
    assert!(gram::cross(&mut rec, &x, &x, 5, &mut d).is_err());
    assert!(gram::unpack_rows(&mut rec, &Packed::zeros(&mut Recorder::new(&device), 8).unwrap(), 5, 4).is_err());
}
