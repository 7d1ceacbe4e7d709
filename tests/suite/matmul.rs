//! `ops::matmul`: products, compared with a triple loop in float64, at shapes that are no multiples of a tile.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::matmul::{Orientation, Rows, accumulate, matmul};

/// Element (i, j) of X or of its transpose. X is row-major with `columns` columns.
fn at(x: &[f32], columns: usize, i: usize, j: usize, transposed: bool) -> f64 {
    f64::from(if transposed { x[j * columns + i] } else { x[i * columns + j] })
}

fn reference(o: Orientation, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let (ta, tb) = (o == Orientation::Tn, o == Orientation::Nt);
    let (ca, cb) = (if ta { m } else { k }, if tb { k } else { n });
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|l| at(a, ca, i, l, ta) * at(b, cb, l, j, tb)).sum());
        }
    }
    c
}

device_tests!(products_of_odd_shapes: cpu, software_gpu);
fn products_of_odd_shapes(device: Device) {
    let mut rec = recorder(&device);
    for (case, shape) in [[1, 1, 1], [3, 5, 2], [64, 64, 16], [65, 63, 17], [37, 130, 100]].into_iter().enumerate() {
        for orientation in [Orientation::Nt, Orientation::Nn, Orientation::Tn] {
            let [m, n, k] = shape;
            let (va, vb) = (random(case as u64, m * k), random(100 + case as u64, n * k));
            let a_shape = if orientation == Orientation::Tn { [k, m] } else { [m, k] };
            let b_shape = if orientation == Orientation::Nt { [n, k] } else { [k, n] };
            let a = rec.upload(&a_shape, va.clone()).unwrap();
            let b = rec.upload(&b_shape, vb.clone()).unwrap();
            let c = matmul(&mut rec, orientation, &a, &b).unwrap();
            let expected = reference(orientation, &va, &vb, shape);
            let error = relative_error(&read(&mut rec, &c), &expected);
            assert!(error < 1e-6, "{} {orientation:?} {shape:?}: {error}", device.name());
        }
    }
}

device_tests!(accumulates_into_a_range_of_rows_and_leaves_the_others: cpu, software_gpu);
fn accumulates_into_a_range_of_rows_and_leaves_the_others(device: Device) {
    let mut rec = recorder(&device);
    let (va, vb, vc) = (random(1, 7 * 5), random(2, 9 * 6), random(3, 8 * 6));
    let a = rec.upload(&[7, 5], va.clone()).unwrap();
    let b = rec.upload(&[9, 6], vb.clone()).unwrap();
    let mut c = rec.upload(&[8, 6], vc.clone()).unwrap();
    let (ra, rb) = (Rows { tensor: &a, start: 2, count: 3 }, Rows { tensor: &b, start: 4, count: 3 });
    accumulate(&mut rec, Orientation::Tn, ra, rb, &mut c, 1).unwrap();
    let product = reference(Orientation::Tn, &va[10..25], &vb[24..42], [5, 6, 3]);
    let mut expected: Vec<f64> = vc.iter().map(|&v| f64::from(v)).collect();
    for (value, product) in expected[6..36].iter_mut().zip(product) {
        *value += product;
    }
    let error = relative_error(&read(&mut rec, &c), &expected);
    assert!(error < 1e-6, "{}: {error}", device.name());
}

#[test]
fn extents_that_do_not_fit_are_an_error() {
    let mut rec = recorder(&aquatint::device::Device::Cpu);
    let a = rec.upload(&[2, 3], vec![0.0; 6]).unwrap();
    let b = rec.upload(&[2, 4], vec![0.0; 8]).unwrap();
    assert!(matmul(&mut rec, Orientation::Nt, &a, &b).unwrap_err().to_string().contains("[2, 3] and [2, 4]"));
}
