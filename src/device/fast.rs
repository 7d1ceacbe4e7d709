//! The fast tier as data: which matrix units an adapter has, and the kernels that use them.
//!
//! Matrix units (tensor cores, simdgroup matrices) multiply small f16 matrices and add the products up in f32. WGSL calls such
//! a matrix a cooperative matrix, because the invocations of a subgroup hold it together. The fast kernels are in
//! `shaders/cooperative.wgsl`, and `crate::ops::cooperative` dispatches them. `crate::ops::tier` decides which one a device uses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which kernels large products may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The fast kernels, where the device has matrix units and the kernels pass their check when the device is opened. Their
    /// results are as exact as f32, but not the same bits as those of the portable kernels.
    Fast,
    /// Kernels in f32 that run on any GPU. Records that do not name a precision were made with these.
    #[default]
    Portable,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "portable" => Ok(Self::Portable),
            _ => Err(format!("found '{text}', expected fast or portable")),
        }
    }
}

/// One variant of `shaders/cooperative.wgsl`: how the tiles of a product are shared out among subgroups.
///
/// Variants of the same extent add in the same order, so they give the same bits. They differ in speed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FastShape {
    /// The kernel that writes a dense matrix.
    pub dense: &'static str,
    /// The kernel that adds to a packed symmetric matrix.
    pub gram: &'static str,
    /// Rows, columns and depth of a cooperative matrix.
    pub extent: usize,
    /// Rows and columns of the block of the result that one workgroup computes.
    pub block: usize,
    /// Subgroups per workgroup.
    pub subgroups: u32,
}

const fn shape(dense: &'static str, gram: &'static str, extent: usize, block: usize, subgroups: u32) -> FastShape {
    FastShape { dense, gram, extent, block, subgroups }
}

/// The variants that `shaders/permutations` lists.
static SHAPES: [FastShape; 6] = [
    shape("cooperative_8_a", "cooperative_8_a_gram", 8, 64, 4),
    shape("cooperative_8_b", "cooperative_8_b_gram", 8, 64, 1),
    shape("cooperative_8_c", "cooperative_8_c_gram", 8, 64, 8),
    shape("cooperative_16_a", "cooperative_16_a_gram", 16, 128, 4),
    shape("cooperative_16_b", "cooperative_16_b_gram", 16, 128, 8),
    shape("cooperative_16_c", "cooperative_16_c_gram", 16, 64, 4),
];

/// The shape that a device uses for large products, and how exact it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FastTier {
    /// The shape in use.
    pub shape: &'static FastShape,
    /// The largest error that the check found: of an element, relative to the norms of the row and the column it comes from.
    pub error: f64,
}

/// The matrix units of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MatrixUnits {
    /// Rows, columns and depth of the largest cooperative matrix with f16 operands and an f32 result.
    extent: usize,
    /// Invocations per subgroup.
    lanes: u32,
}

/// The features that the fast kernels need.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

impl MatrixUnits {
    /// The matrix units of `adapter`. Errors: a phrase that says why the fast kernels cannot run there.
    pub(crate) fn of(adapter: &wgpu::Adapter) -> Result<Self, String> {
        // wgpu has no cooperative matrices in a browser. Returning here also keeps the features out of the device request.
        if cfg!(target_arch = "wasm32") {
            return Err("a browser has no cooperative matrices".to_string());
        }
        let missing = FEATURES - adapter.features();
        if missing.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            return Err("no cooperative matrices".to_string());
        }
        if !missing.is_empty() {
            return Err(format!("the adapter lacks {missing}"));
        }
        let usable = |extent: u32| {
            use wgpu::CooperativeScalarType::{F16, F32};
            let fits = |p: &wgpu::CooperativeMatrixProperties| {
                [p.m_size, p.n_size, p.k_size] == [extent; 3] && p.ab_type == F16 && p.cr_type == F32
            };
            adapter.cooperative_matrix_properties().iter().any(fits)
        };
        let extent = [16, 8].into_iter().find(|&extent| usable(extent));
        let extent = extent.ok_or("no cooperative matrices of f16 that add up in f32 in squares of 16 or 8")?;
        let lanes = adapter.get_info().subgroup_max_size;
        let threads = adapter.limits().max_compute_invocations_per_workgroup;
        let units = Self { extent: extent as usize, lanes };
        match units.shapes().all(|shape| shape.subgroups * lanes <= threads) {
            true => Ok(units),
            false => Err(format!("subgroups of {lanes} are too large for workgroups of {threads}")),
        }
    }

    /// The shapes that fit these units.
    pub(super) fn shapes(self) -> impl Iterator<Item = &'static FastShape> {
        SHAPES.iter().filter(move |shape| shape.extent == self.extent)
    }

    /// Invocations per workgroup of `kernel`, if it is a fast kernel.
    pub(super) fn workgroup_size(self, kernel: &str) -> Option<u32> {
        let shape = SHAPES.iter().find(|shape| shape.dense == kernel || shape.gram == kernel)?;
        Some(shape.subgroups * self.lanes)
    }
}
