//! The fast tier: products by cooperative matrices of f16 that add up in f32. What of it an adapter offers, the shapes in which
//! it can run, and which of them is the quickest on this machine.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which kernels large products may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Split f16 on matrix units where the device has them and they pass the check at its opening: as exact as f32, other bits.
    Fast,
    /// f32 in shaders that run anywhere. What every record was made with that does not say.
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

/// A way to spread a product over subgroups: a variant of `shaders/cooperative.wgsl`. Shapes of one extent give the same bits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The variant that writes a dense matrix.
    pub dense: &'static str,
    /// The variant that adds to a packed one.
    pub gram: &'static str,
    /// Rows, columns and depth of a cooperative matrix.
    pub extent: usize,
    /// Rows, and columns, of the part of the result that a workgroup makes.
    pub block: usize,
    /// Subgroups of a workgroup.
    pub subgroups: u32,
}

const fn shape(dense: &'static str, gram: &'static str, extent: usize, block: usize, subgroups: u32) -> Shape {
    Shape { dense, gram, extent, block, subgroups }
}

/// As `shaders/permutations` has them.
pub(crate) static SHAPES: [Shape; 6] = [
    shape("cooperative_8_a", "cooperative_8_a_gram", 8, 64, 4),
    shape("cooperative_8_b", "cooperative_8_b_gram", 8, 64, 1),
    shape("cooperative_8_c", "cooperative_8_c_gram", 8, 64, 8),
    shape("cooperative_16_a", "cooperative_16_a_gram", 16, 128, 4),
    shape("cooperative_16_b", "cooperative_16_b_gram", 16, 128, 8),
    shape("cooperative_16_c", "cooperative_16_c_gram", 16, 64, 4),
];

/// Rows of planes are padded to a multiple of this, which every block divides.
pub(crate) const BLOCK: usize = 128;

/// What an adapter has for the fast tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// Rows, columns and depth of its cooperative matrices of f16 that add up in f32.
    extent: usize,
    /// Invocations of a subgroup.
    lanes: u32,
}

/// What the kernels of [`Offer`] need.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

impl Offer {
    /// What `adapter` has, or why the fast tier cannot run there, in a phrase.
    pub(super) fn of(adapter: &wgpu::Adapter) -> Result<Self, String> {
        // wgpu knows no cooperative matrices there, and this keeps the features out of what is asked for.
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
        let offer = Self { extent: extent as usize, lanes };
        match offer.shapes().all(|shape| shape.subgroups * lanes <= threads) {
            true => Ok(offer),
            false => Err(format!("subgroups of {lanes} are too large for workgroups of {threads}")),
        }
    }

    /// The shapes that could run.
    pub(super) fn shapes(self) -> impl Iterator<Item = &'static Shape> {
        SHAPES.iter().filter(move |shape| shape.extent == self.extent)
    }

    /// Invocations of a workgroup of this kernel, if it is one of the fast tier.
    pub(super) fn threads(self, kernel: &str) -> Option<u32> {
        let shape = SHAPES.iter().find(|shape| shape.dense == kernel || shape.gram == kernel)?;
        Some(shape.subgroups * self.lanes)
    }
}

/// The quickest shape of each adapter and driver that was ever measured here: a small file in the user's cache directory. That
/// it cannot be read or written is no error.
#[derive(Debug)]
pub(super) struct Measured {
    path: Option<PathBuf>,
    key: String,
}

impl Measured {
    /// For this adapter with this driver, and this version of the kernels.
    pub(super) fn new(adapter: &wgpu::AdapterInfo) -> Self {
        let wgpu::AdapterInfo { name, backend, driver, driver_info, .. } = adapter;
        let key = format!("{name} | {backend} | {driver} {driver_info} | aquatint {}", env!("CARGO_PKG_VERSION"));
        Self { path: cache_directory().map(|directory| directory.join("aquatint").join("shapes.json")), key }
    }

    fn all(&self) -> serde_json::Map<String, serde_json::Value> {
        let read = || serde_json::from_slice(&std::fs::read(self.path.as_ref()?).ok()?).ok();
        read().unwrap_or_default()
    }

    /// The shape that was the quickest.
    pub(super) fn read(&self) -> Option<&'static Shape> {
        let all = self.all();
        let name = all.get(&self.key)?.as_str()?;
        SHAPES.iter().find(|shape| shape.dense == name)
    }

    /// Keeps it for the next run.
    pub(super) fn write(&self, shape: &Shape) {
        let Some(path) = &self.path else { return };
        let mut all = self.all();
        all.insert(self.key.clone(), shape.dense.into());
        let temporary = path.with_extension(std::process::id().to_string());
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            std::fs::write(&temporary, serde_json::to_string_pretty(&all)?)?;
            std::fs::rename(&temporary, path)
        };
        if write().is_err() {
            // The next run measures again.
            let _ = std::fs::remove_file(&temporary);
        }
    }
}

/// Where a user's caches are.
fn cache_directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(target_arch = "wasm32") {
        return None;
    }
    let home = || absolute("HOME");
    absolute("XDG_CACHE_HOME").or_else(|| match std::env::consts::OS {
        "windows" => absolute("LOCALAPPDATA"),
        "macos" => home().map(|home| home.join("Library").join("Caches")),
        _ => home().map(|home| home.join(".cache")),
    })
}
