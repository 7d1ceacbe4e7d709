//! `ops::rms_norm`: compared with float64, at widths that are no multiples of a workgroup.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::rms_norm::rms_norm;

device_tests!(rows_of_odd_widths: cpu, software_gpu);
fn rows_of_odd_widths(device: Device) {
    let mut rec = recorder(&device);
    for (case, [tokens, width]) in [[1, 1], [3, 6], [2, 128], [5, 129], [4099, 7]].into_iter().enumerate() {
        let (values, weights) = (random(case as u64, tokens * width), random(50 + case as u64, width));
        let epsilon = 1e-2f32;
        let x = rec.upload(&[tokens, width], values.clone()).unwrap();
        let weight = rec.upload(&[width], weights.clone()).unwrap();
        let ours = rms_norm(&mut rec, &x, &weight, epsilon).unwrap();
        let mut expected = Vec::new();
        for row in values.chunks(width) {
            let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
            let scale = (mean + f64::from(epsilon)).sqrt().recip();
            expected.extend(row.iter().zip(&weights).map(|(&v, &w)| f64::from(v) * scale * f64::from(w)));
        }
        let error = relative_error(&read(&mut rec, &ours), &expected);
        assert!(error < 1e-6, "{} {tokens}×{width}: {error}", device.name());
    }
}
