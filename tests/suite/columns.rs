//! `ops::columns`: the chosen columns of every run, bit for bit.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::columns::columns;

device_tests!(takes_the_same_columns_of_every_run: cpu, software_gpu);
fn takes_the_same_columns_of_every_run(device: Device) {
    let mut rec = recorder(&device);
    for [tokens, runs, period, start, width] in [
        [1, 1, 1, 0, 1],
        [5, 1, 7, 2, 5],
        [5, 1, 7, 0, 7],
        [3, 4, 9, 3, 3],
        [33, 5, 6, 5, 1],
        [2, 3, 300, 17, 257],
        [1100, 2, 1000, 1, 999],
    ] {
        let values = random(1, tokens * runs * period);
        let x = rec.upload(&[tokens, runs * period], values.clone()).unwrap();
        let out = columns(&mut rec, &x, period, start, width).unwrap();
        assert_eq!(out.shape(), [tokens, runs * width]);
        let expected: Vec<f32> = values.chunks(period).flat_map(|run| run[start..start + width].to_vec()).collect();
        let equal = read(&mut rec, &out) == expected;
        assert!(equal, "{} {tokens} tokens, {runs} runs of {period}, {width} from {start}", device.name());
    }
}

device_tests!(the_parts_of_an_interleaved_projection: cpu, software_gpu);
fn the_parts_of_an_interleaved_projection(device: Device) {
    // Two heads of two columns, stored as q, k and v of the first head, then those of the second.
    let mut rec = recorder(&device);
    let x = rec.upload(&[1, 12], (0..12).map(|i| i as f32).collect()).unwrap();
    for (start, expected) in [(0, [0.0, 1.0, 6.0, 7.0]), (2, [2.0, 3.0, 8.0, 9.0]), (4, [4.0, 5.0, 10.0, 11.0])] {
        let part = columns(&mut rec, &x, 6, start, 2).unwrap();
        assert_eq!(read(&mut rec, &part), expected, "{}", device.name());
    }
}

#[test]
fn columns_outside_a_run_are_an_error() {
    let mut rec = recorder(&Device::Cpu);
    let x = rec.zeros(&[2, 12]).unwrap();
    for (period, start, width, is_right) in
        [(6, 4, 2, true), (12, 0, 12, true), (6, 5, 2, false), (5, 0, 1, false), (6, 0, 0, false), (0, 0, 0, false)]
    {
        assert_eq!(columns(&mut rec, &x, period, start, width).is_ok(), is_right, "{width} of {period} from {start}");
    }
}
