//! The recorder: the order of its copies and clears, its flags, its read-backs, and allocations that a GPU refuses.

use aquatint::Error;
use aquatint::device::{Choice, Device, Precision, Recorder};
use aquatint::error::Phrase;
use aquatint::ops::tier;
use pollster::block_on;

use crate::common::{device_tests, read, recorder};

device_tests!(an_array_that_cannot_be_bound_is_out_of_memory: software_gpu);
fn an_array_that_cannot_be_bound_is_out_of_memory(gpu: Device) {
    let too_many = (gpu.largest_array() / 4 + 1) as usize;
    match recorder(&gpu).empty::<f32>(&[too_many]) {
        Err(Error::OutOfMemory { bytes, .. }) => assert!(bytes > gpu.largest_array()),
        other => panic!("{other:?}"),
    }
}

device_tests!(uploads_and_clears_are_ordered_with_what_is_recorded: cpu, software_gpu);
fn uploads_and_clears_are_ordered_with_what_is_recorded(device: Device) {
    let mut rec = recorder(&device);
    // Each round drops its tensors. So the next round gets the same memory, while copies of this one are not yet submitted.
    for round in 0..20u32 {
        let source = rec.upload(&[64, 64], vec![round as f32; 4096]).unwrap();
        let copy = rec.duplicate(&source).unwrap();
        drop(source);
        let other = rec.upload(&[64, 64], vec![-1.0; 4096]).unwrap();
        let zeros = rec.zeros::<f32>(&[64, 64]).unwrap();
        let mut rows = rec.copy_rows(&copy, 3, 2).unwrap();
        let one = rec.copy_rows(&other, 0, 1).unwrap();
        rec.write_rows(&one, &mut rows, 1).unwrap();
        assert!(read(&mut rec, &zeros).iter().all(|&v| v == 0.0), "{}", device.name());
        assert!(read(&mut rec, &copy).iter().all(|&v| v == round as f32), "{}", device.name());
        let rows = read(&mut rec, &rows);
        assert!(rows[..64].iter().all(|&v| v == round as f32) && rows[64..].iter().all(|&v| v == -1.0));
    }
}

#[test]
fn a_shape_that_does_not_hold_the_values_is_an_error() {
    let mut rec = Recorder::new(&Device::Cpu);
    assert!(matches!(rec.upload(&[2, 3], vec![0.0f32; 5]), Err(Error::Shape { .. })));
    let a = rec.upload(&[2, 3], vec![0.0f32; 6]).unwrap();
    assert!(matches!(rec.copy_rows(&a, 1, 2), Err(Error::Shape { .. })));
    assert!(a.reshape(&[4]).is_err());
}

device_tests!(a_raised_flag_is_the_error_of_the_next_wait_and_of_no_later_one: cpu, software_gpu);
fn a_raised_flag_is_the_error_of_the_next_wait_and_of_no_later_one(device: Device) {
    let named = |place: &str| Error::NotFinite { place: place.to_string(), remedy: Phrase::default() };
    let mut rec = recorder(&device);
    let value = rec.upload(&[3], vec![1.0f32, 2.0, 3.0]).unwrap();
    let mut raise = |flags: &[u32]| -> Option<String> {
        let raised = flags.iter().enumerate().find_map(|(i, &flag)| {
            let flag = rec.upload(&[1], vec![flag]).unwrap();
            rec.fail_if(flag, named(&format!("flag {i}"))).err()
        });
        assert!(raised.is_none() || matches!(device, Device::Cpu), "a GPU cannot know yet");
        raised.or_else(|| block_on(rec.read(&value)).err()).map(|error| error.to_string())
    };
    assert_eq!(raise(&[0, 0, 0]), None, "{}", device.name());
    for flag in [1, 1 << 31] {
        assert!(raise(&[0, flag, 0, flag]).unwrap().starts_with("flag 1:"), "{}", device.name());
        assert_eq!(raise(&[]), None, "{}", device.name());
    }
    assert_eq!(read(&mut rec, &value), [1.0, 2.0, 3.0]);
    let two = rec.zeros(&[2]).unwrap();
    assert!(matches!(rec.fail_if(two, named("")), Err(Error::Shape { .. })));
}

device_tests!(bytes_become_words_and_the_last_one_is_filled_up: cpu, software_gpu);
fn bytes_become_words_and_the_last_one_is_filled_up(device: Device) {
    let bytes: Vec<u8> = (1..=23).collect();
    let mut rec = recorder(&device);
    for length in (0..=9).chain([23]) {
        let tensor = rec.upload_bytes(&bytes[..length]).unwrap();
        let mut expected = bytes[..length].to_vec();
        expected.resize(length.next_multiple_of(4), 0);
        let expected: Vec<u32> = expected.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(block_on(rec.read(&tensor)).unwrap(), expected, "{} {length}", device.name());
    }
}

#[test]
fn automatic_choice_never_takes_a_software_adapter() {
    let (device, reason) = block_on(tier::open(&Choice::Auto, Precision::Portable, &())).unwrap();
    if let Device::Gpu(_) = &device {
        assert!(!device.name().contains("llvmpipe"), "{reason}");
    }
    assert!(matches!(block_on(tier::open(&Choice::Index(99), Precision::Portable, &())), Err(Error::Input { .. })));
}

device_tests!(a_reading_has_what_was_there_when_it_began_however_late_it_ends: cpu, software_gpu);
fn a_reading_has_what_was_there_when_it_began_however_late_it_ends(device: Device) {
    let mut rec = recorder(&device);
    let mut readings = Vec::new();
    for round in 0..5 {
        // Each tensor is dropped, so that later tensors get its memory.
        let tensor = rec.upload(&[3, 50], vec![round as f32; 150]).unwrap();
        readings.push((round, rec.begin_read(&tensor).unwrap()));
    }
    let last = rec.zeros::<f32>(&[3, 50]).unwrap();
    for (round, reading) in readings.into_iter().rev() {
        assert_eq!(block_on(rec.end_read(reading)).unwrap(), [round as f32; 150], "{}", device.name());
    }
    assert!(read(&mut rec, &last).iter().all(|&v| v == 0.0));
    let nothing = rec.zeros::<f32>(&[0, 50]).unwrap();
    let reading = rec.begin_read(&nothing).unwrap();
    assert!(block_on(rec.end_read(reading)).unwrap().is_empty());
}
