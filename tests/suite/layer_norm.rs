//! Layer normalisation against float64, at widths that do not fit a workgroup.

use crate::common::{device_tests, random, read, recorder, relative_error};
use aquatint::device::Device;
use aquatint::ops::layer_norm::layer_norm;

device_tests!(rows_of_odd_widths: cpu, software_gpu);
fn rows_of_odd_widths(device: Device) {
    let mut rec = recorder(&device);
    for (case, [tokens, width]) in [[1, 1], [3, 6], [2, 128], [5, 129], [4099, 7]].into_iter().enumerate() {
        let [gains, biases] = [50, 90].map(|seed| random(seed + case as u64, width));
        // A mean that is not zero must come off.
        let values: Vec<f32> = random(case as u64, tokens * width).iter().map(|v| v + 0.7).collect();
        let epsilon = 1e-2f32;
        let x = rec.upload(&[tokens, width], values.clone()).unwrap();
        let [weight, bias] = [&gains, &biases].map(|values| rec.upload(&[width], values.clone()).unwrap());
        let ours = layer_norm(&mut rec, &x, &weight, &bias, epsilon).unwrap();
        let mut expected = Vec::new();
        for row in values.chunks(width) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = (variance + f64::from(epsilon)).sqrt().recip();
            let gained = row.iter().zip(&gains).map(|(&v, &w)| (f64::from(v) - mean) * scale * f64::from(w));
            expected.extend(gained.zip(&biases).map(|(v, &b)| v + f64::from(b)));
        }
        let error = relative_error(&read(&mut rec, &ours), &expected);
        assert!(error < 1e-6, "{} {tokens}×{width}: {error}", device.name());
    }
}
