//! `ops::softcap`: a soft bound, compared with its definition in float64.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::softcap::softcap;

device_tests!(bounds_every_element: cpu, software_gpu);
fn bounds_every_element(device: Device) {
    let mut rec = recorder(&device);
    for (shape, cap, spread) in
        [([1, 1], 30.0, 10.0), ([3, 173], 50.0, 1.0), ([65, 9], 20.0, 200.0), ([1027, 1025], 0.7, 2.0)]
    {
        let values: Vec<f32> = random(1, shape[0] * shape[1]).iter().map(|x| x * spread).collect();
        let mut x = rec.upload(&shape, values.clone()).unwrap();
        softcap(&mut rec, &mut x, cap).unwrap();
        let cap = f64::from(cap);
        // The error is relative to each value, so that small values are seen, too.
        let error = |(&out, &x): (&f32, &f32)| f64::from(out) / (cap * (f64::from(x) / cap).tanh()) - 1.0;
        let worst = read(&mut rec, &x).iter().zip(&values).map(|pair| error(pair).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-6, "{} {shape:?}, cap {cap}: {worst}", device.name());
    }
}

device_tests!(large_and_small_numbers_are_exact: cpu, software_gpu);
fn large_and_small_numbers_are_exact(device: Device) {
    let mut rec = recorder(&device);
    let mut x = rec.upload(&[5], vec![-1e30, -1e5, 0.0, 1e4, 1e30]).unwrap();
    softcap(&mut rec, &mut x, 32.0).unwrap();
    assert_eq!(read(&mut rec, &x), [-32.0, -32.0, 0.0, 32.0, 32.0], "{}", device.name());
}

#[test]
fn a_bound_that_is_not_positive_is_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let mut x = rec.zeros(&[4]).unwrap();
    for cap in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        assert!(softcap(&mut rec, &mut x, cap).is_err(), "{cap}");
    }
}
