//! `ops::solve`: solves with the factored Hessian, compared with the inverse in float64.

use crate::common::dense::{Dense, hessian, shuffled};
use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::cholesky::factor;
use aquatint::ops::gram;
use aquatint::ops::solve::solve_rows;

device_tests!(equals_the_inverse_in_any_order: cpu, software_gpu);
fn equals_the_inverse_in_any_order(device: Device) {
    let mut rec = recorder(&device);
    // The last extent has more tile columns than are solved before the ones after them are updated.
    for n in [1, 5, 63, 64, 65, 100, 130, 300, 580] {
        let h = hessian(n as u64, n);
        let ridge = 0.5;
        let inverse = h.damped(f64::from(ridge)).inverse();
        let dense = rec.upload(&[n, n], h.f32()).unwrap();
        let packed = gram::pack(&mut rec, &dense).unwrap();
        let order = shuffled(n as u64, n);
        let f = pollster::block_on(factor(&mut rec, &packed, &order, ridge)).unwrap().expect("positive definite");
        for m in [1, 3, 37, 65] {
            let values = random(m as u64, m * n);
            let b = rec.upload(&[m, n], values.clone()).unwrap();
            let solution = solve_rows(&mut rec, &f, b).unwrap();
            assert_eq!(solution.shape(), [m, n]);
            let expected = Dense::new(m, n, &values).times(&inverse);
            let error = relative_error(&read(&mut rec, &solution), &expected.values);
            assert!(error < 1e-4, "{} n {n} m {m}: {error}", device.name());
        }
        let b = rec.zeros(&[3, n + 1]).unwrap();
        assert!(solve_rows(&mut rec, &f, b).is_err());
    }
}
