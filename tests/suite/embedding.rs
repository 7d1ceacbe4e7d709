//! `ops::embedding`: the rows of tokens, from a vocabulary in slabs.

use crate::common::{device_tests, random, read, recorder};
use aquatint::device::Device;
use aquatint::ops::embedding::gather;

device_tests!(three_slabs_give_every_token_its_row: cpu, software_gpu);
fn three_slabs_give_every_token_its_row(device: Device) {
    const VOCABULARY: usize = 23;
    let cases = [
        (vec![0], 1),
        (vec![22, 0, 7, 8, 7, 15, 16, 1], 5),
        (vec![9, 21, 3], 300),
        // This takes more workgroups than `spread` gives one axis.
        ((0..5_000).map(|t| t % VOCABULARY as u32).collect(), 2),
    ];
    let mut rec = recorder(&device);
    for (ids, width) in &cases {
        let width = *width;
        let table = random(1, VOCABULARY * width);
        let tokens = ids.len();
        let id_tensor = rec.upload::<u32>(&[tokens], ids.clone()).unwrap();
        let mut out = rec.zeros(&[tokens, width]).unwrap();
        for rows in [0..8, 8..16, 16..VOCABULARY] {
            let slab = table[rows.start * width..rows.end * width].to_vec();
            let slab = rec.upload(&[rows.len(), width], slab).unwrap();
            gather(&mut rec, &slab, rows.start, &id_tensor, &mut out).unwrap();
        }
        let expected: Vec<f32> = ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect();
        assert_eq!(read(&mut rec, &out), expected, "{} {tokens} tokens of {width}", device.name());
    }
}

device_tests!(a_token_outside_the_slab_keeps_its_row: cpu, software_gpu);
fn a_token_outside_the_slab_keeps_its_row(device: Device) {
    let mut rec = recorder(&device);
    let slab = rec.upload(&[2, 3], vec![1.0; 6]).unwrap();
    let ids = rec.upload::<u32>(&[4], vec![3, 4, 6, u32::MAX]).unwrap();
    let mut out = rec.upload(&[4, 3], vec![7.0; 12]).unwrap();
    gather(&mut rec, &slab, 4, &ids, &mut out).unwrap();
    let expected = [[7.0; 3], [1.0; 3], [7.0; 3], [7.0; 3]].concat();
    assert_eq!(read(&mut rec, &out), expected, "{}", device.name());
}

#[test]
fn widths_that_differ_are_an_error() {
    let mut rec = recorder(&aquatint::device::Device::Cpu);
    let slab = rec.zeros(&[2, 3]).unwrap();
    let ids = rec.upload::<u32>(&[1], vec![0]).unwrap();
    let mut out = rec.zeros(&[1, 4]).unwrap();
    assert!(gather(&mut rec, &slab, 0, &ids, &mut out).is_err());
}
