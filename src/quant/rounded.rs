//! A rounded weight on the device: codes on their grid where there are any, and what they stand for.
//!
//! Base quantizers make it, descent improves it, and `solve` turns it into a stored layer.

use crate::device::{Recorder, Tensor};
use crate::error::{Setting, phrase};
use crate::ops::grid::{Grid, GridSpec};
use crate::stored::{DenseLinear, QuantizedLinear, StoredLinear};
use crate::{Error, Result};

/// A rounded weight.
#[derive(Debug)]
pub struct RoundedWeight {
    /// Codes and their grid; `None` where the result lies on no grid.
    pub codes: Option<Codes>,
    /// Q, `[m, n]`: the model computes with it from now on.
    pub dequantized: Tensor,
}

/// A weight as codes on a grid.
#[derive(Debug)]
pub struct Codes {
    /// What kind of grid it is.
    pub spec: GridSpec,
    /// q, `[m, n]`. After AWQ, codes and grid are those of W·diag(s).
    pub codes: Tensor<u32>,
    /// s, and z or o, `[m, groups]` each, and the units of scales.
    pub grid: Grid,
}

impl RoundedWeight {
    /// The layer `name` as it is stored. Waits for the device.
    ///
    /// Errors: `Error::NotFinite` if a scale or a weight is not finite.
    pub async fn store(&self, rec: &mut Recorder, name: &str) -> Result<StoredLinear> {
        let not_finite = |what: &str| Error::NotFinite {
            place: format!("{name}: its {what}"),
            remedy: phrase![
                "the weights overflow; try ",
                Setting::Alpha.set_to("off"),
                " or a larger ",
                Setting::CorrectionDamping,
            ],
        };
        let [rows, columns] = self.dequantized.matrix("store")?;
        let name = name.to_string();
        let Some(Codes { spec, codes, grid }) = &self.codes else {
            let weight = rec.read(&self.dequantized).await?;
            if weight.iter().any(|w| !w.is_finite()) {
                return Err(not_finite("rounded weight"));
            }
            return Ok(StoredLinear::Dense(DenseLinear { name, rows, columns, weight }));
        };
        let codes = rec.read(codes).await?.into_iter().map(|code| code as u8).collect();
        let scales: Vec<f32> = rec.read(&grid.scales).await?;
        let zeros = rec.read(&grid.zeros).await?;
        let usable = |s: &f32| s.is_finite() && if spec.signed { *s != 0.0 } else { *s > 0.0 };
        if !scales.iter().all(usable) || !zeros.iter().all(|zero| zero.is_finite()) {
            return Err(not_finite("scales"));
        }
        let units = match &grid.units {
            Some(units) => rec.read(units).await?,
            None => Vec::new(),
        };
        let grid = *spec;
        Ok(StoredLinear::Codes(QuantizedLinear { name, rows, columns, grid, codes, scales, zeros, units }))
    }
}
