//! `ops::magnitude`: sums of absolute values per channel, compared with float64.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::magnitude::accumulate;

device_tests!(adds_up_absolute_values_chunk_after_chunk: cpu, software_gpu);
fn adds_up_absolute_values_chunk_after_chunk(device: Device) {
    let mut rec = recorder(&device);
    for (chunks, n) in [(vec![1], 1), (vec![3, 7], 5), (vec![64, 1, 100], 33), (vec![2500, 2049], 70), (vec![9], 300)] {
        let mut sums = rec.zeros(&[n]).unwrap();
        let mut expected = vec![0.0; n];
        for (seed, tokens) in chunks.into_iter().enumerate() {
            let values = random(seed as u64, tokens * n);
            values.iter().enumerate().for_each(|(at, &x)| expected[at % n] += f64::from(x.abs()));
            let x = rec.upload(&[tokens, n], values).unwrap();
            accumulate(&mut rec, &x, &mut sums).unwrap();
        }
        let error = relative_error(&read(&mut rec, &sums), &expected);
        assert!(error < 3e-7, "{} {n} channels: {error}", device.name());
    }
}

#[test]
fn sums_of_another_width_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let (x, mut sums) = (rec.zeros(&[2, 3]).unwrap(), rec.zeros(&[2]).unwrap());
    assert!(accumulate(&mut rec, &x, &mut sums).is_err());
}
