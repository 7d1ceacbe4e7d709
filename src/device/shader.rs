//! The WGSL sources in `shaders/`, and the preprocessor that makes kernels of them.
//!
//! `shaders/permutations` lists the kernels, one per line, as `name: file DEFINE …`. The preprocessor takes the file, resolves
//! `#import` and `#ifdef`, and gives the text to naga, or to the browser.

use std::collections::HashSet;

/// Embeds the sources in the binary.
macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../shaders/", $path, ".wgsl")))),*]
    };
}

/// Each shader file: its path below `shaders/` without the extension, and its text.
const SOURCES: &[(&str, &str)] = sources![
    "activate",
    "add",
    "attention",
    "cholesky_columns",
    "cholesky_diagonal",
    "cholesky_gather",
    "cholesky_panel",
    "cholesky_trailing",
    "clip",
    "columns",
    "cooperative",
    "dequantize",
    "descent",
    "embedding",
    "fit",
    "gptq",
    "gram",
    "grid",
    "grouped_product",
    "kl",
    "layer_norm",
    "magnitude",
    "matmul",
    "nll",
    "packed",
    "permute",
    "reduce",
    "refit",
    "rms_norm",
    "rope",
    "rtn",
    "scale",
    "shared/group",
    "shared/plane",
    "shared/product",
    "shared/quantizer",
    "shared/stored",
    "shared/tanh",
    "shared/tiles",
    "shared/units",
    "shared/walk",
    "snap",
    "softcap",
    "solve",
    "solve_order",
    "split",
    "split_range",
    "widen",
];

const PERMUTATIONS: &str = include_str!("../../shaders/permutations");

/// A kernel: one variant of a shader file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    /// The name by which ops dispatch it.
    pub name: &'static str,
    /// The file below `shaders/`, without the extension.
    pub file: &'static str,
    /// The defines, separated by spaces.
    defines: &'static str,
}

impl Permutation {
    /// Whether it belongs to the fast tier. Such a kernel is compiled only where the device has cooperative matrices of f16.
    pub fn is_fast(&self) -> bool {
        self.file == "cooperative"
    }

    /// The WGSL text, with imports and conditions resolved. `subgroups` says whether reductions may use subgroup operations.
    ///
    /// Panics if a file is missing or a condition is not closed. A test expands every kernel.
    pub fn source(&self, subgroups: bool) -> String {
        let mut text = String::new();
        let defines = self.defines.split_whitespace().chain(subgroups.then_some("SUBGROUPS"));
        expand(self.file, &defines.collect(), &mut HashSet::new(), &mut text);
        text
    }
}

/// All kernels, in the order of `shaders/permutations`.
pub fn permutations() -> impl Iterator<Item = Permutation> {
    PERMUTATIONS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (name, rest) = line.split_once(':').unwrap_or_else(|| panic!("shaders/permutations: no colon in '{line}'"));
        let (file, defines) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        Permutation { name: name.trim(), file, defines }
    })
}

/// The texts that all kernels come from, each with its path below `shaders/`: every source file, then `permutations`.
pub fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().chain([("permutations", PERMUTATIONS)])
}

/// The kernel of this name. Panics on an unknown name, which is a bug in an op.
pub(super) fn permutation(name: &str) -> Permutation {
    permutations().find(|p| p.name == name).unwrap_or_else(|| panic!("shaders/permutations has no variant '{name}'"))
}

fn source(path: &str) -> &'static str {
    SOURCES.iter().find(|(name, _)| *name == path).unwrap_or_else(|| panic!("shaders/{path}.wgsl is not embedded")).1
}

/// Appends the text of `path` to `out`. `#import file` inserts a file of `shaders/shared/` unless it was inserted before.
/// `#ifdef NAME` … `#else` … `#endif` keeps the lines that `defines` selects.
fn expand(path: &str, defines: &HashSet<&str>, imported: &mut HashSet<String>, out: &mut String) {
    let mut conditions: Vec<bool> = Vec::new();
    for line in source(path).lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("#ifdef"), Some(name)) => conditions.push(defines.contains(name)),
            (Some("#else"), None) => {
                let last = conditions.last_mut().unwrap_or_else(|| panic!("{path}: #else outside #ifdef"));
                *last = !*last;
            }
            (Some("#endif"), None) => {
                conditions.pop().unwrap_or_else(|| panic!("{path}: #endif outside #ifdef"));
            }
            _ if conditions.contains(&false) => {}
            (Some("#import"), Some(name)) => {
                if imported.insert(name.to_string()) {
                    expand(&format!("shared/{name}"), defines, imported, out);
                }
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    assert!(conditions.is_empty(), "{path}: #ifdef without #endif");
}
