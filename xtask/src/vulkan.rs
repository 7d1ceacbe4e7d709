//! Set-up for the GPU tests. They need a Vulkan loader and a software adapter, Mesa's lavapipe. This file looks for both, installs
//! them if no password is needed, and reads whether the adapter can run the fast tier.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{self, System};
use crate::process::{self, Failure, Result};

/// Whether the GPU tests can run.
#[derive(Debug, PartialEq)]
pub enum Readiness {
    /// They can: the loader and the software adapter are installed, or the platform has its own adapter (Metal).
    Ready,
    /// They cannot. The text names what is missing and the command that installs it.
    Missing(String),
}

/// The packages of Debian and Ubuntu with the loader and the adapter.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Looks for the loader and the adapter. On Debian and Ubuntu it installs what is missing if that needs no password.
///
/// Errors: in CI, where the GPU tests must not be ignored, whatever is still missing.
pub fn set_up() -> Result<Readiness> {
    if cfg!(target_os = "macos") {
        return Ok(Readiness::Ready);
    }
    let places = Places::of_this_machine();
    let mut missing = places.missing();
    if !missing.is_empty() {
        packages::install(&PACKAGES);
        missing = places.missing();
    }
    if missing.is_empty() {
        eprintln!("xtask: set-up: Vulkan loader and software adapter found");
        return Ok(Readiness::Ready);
    }
    let advice = format!("{} missing ({})", missing.join(" and "), advice(System::of_this_machine()));
    if process::in_ci() { Err(Failure::new(advice)) } else { Ok(Readiness::Missing(advice)) }
}

/// This variable names another adapter for the tests than lavapipe, by its number or by a part of its name.
const TEST_DEVICE: &str = "AQUATINT_TEST_DEVICE";

/// Returns the tier of the tests' adapter as `aquatint devices` prints it: "fast, …" or "portable, …". `program` is aquatint.
///
/// Errors: the program cannot be started, or it does not list the adapter.
pub fn tier(program: &Path) -> Result<String> {
    let wanted = std::env::var(TEST_DEVICE).unwrap_or_else(|_| "llvmpipe".into());
    let output = Command::new(program).arg("devices").output();
    let output = output.map_err(|error| Failure::new(format!("cannot start {}: {error}", program.display())))?;
    let table = String::from_utf8_lossy(&output.stdout);
    let missing = || Failure::new(format!("`aquatint devices` lists no adapter {wanted:?}"));
    tier_of(&wanted, &table).map(str::to_string).ok_or_else(missing)
}

/// Finds the tier of an adapter in the table that `aquatint devices` prints. Columns are at least two spaces apart. The first is
/// the adapter's number, the second its name, and the fifth its tier.
fn tier_of<'a>(wanted: &str, table: &'a str) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let columns = |line: &'a str| -> Vec<&'a str> {
        line.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
    };
    let named = |row: &Vec<&str>| row.len() > 4 && (row[0] == wanted || row[1].to_lowercase().contains(&wanted));
    table.lines().map(columns).find(named).map(|row| row[4])
}

/// Returns the command that installs the loader and the adapter.
fn advice(system: System) -> String {
    match system {
        System::Debian => format!("sudo apt-get update && sudo apt-get install -y {}", PACKAGES.join(" ")),
        System::Fedora => "sudo dnf install vulkan-loader mesa-vulkan-drivers".into(),
        System::Arch => "sudo pacman -S vulkan-icd-loader vulkan-swrast".into(),
        System::Alpine => "sudo apk add vulkan-loader mesa-vulkan-swrast".into(),
        System::Other => "install the Vulkan loader and Mesa's lavapipe driver".into(),
    }
}

/// The places of the loader's library and of the adapters' manifests.
struct Places {
    libraries: Vec<PathBuf>,
    /// Folders of manifests, or manifests.
    manifests: Vec<PathBuf>,
}

impl Places {
    /// Returns the places that the dynamic linker and the Vulkan loader search, according to this process's environment.
    fn of_this_machine() -> Self {
        let paths = |name: &str| std::env::var_os(name).map(split).unwrap_or_default();
        let triplet = PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let mut libraries = paths("LD_LIBRARY_PATH");
        libraries.push(triplet);
        libraries.extend(["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib"].map(PathBuf::from));

        // If one of these variables names manifests, the loader reads no others.
        let mut manifests = paths("VK_DRIVER_FILES");
        if manifests.is_empty() {
            manifests = paths("VK_ICD_FILENAMES");
        }
        if manifests.is_empty() {
            let mut roots = paths("XDG_DATA_DIRS");
            roots.extend(paths("HOME").into_iter().map(|home| home.join(".local/share")));
            roots.extend(["/usr/share", "/usr/local/share", "/etc"].map(PathBuf::from));
            manifests = roots.into_iter().map(|root| root.join("vulkan/icd.d")).collect();
        }
        Self { libraries, manifests }
    }

    /// Returns the parts that the GPU tests need and these places lack.
    fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.libraries.iter().any(|folder| folder.join("libvulkan.so.1").exists()) {
            missing.push("the Vulkan loader (libvulkan.so.1)");
        }
        if !self.manifests.iter().any(|place| holds_lavapipe(place)) {
            missing.push("the software adapter lavapipe (lvp_icd*.json)");
        }
        missing
    }
}

/// Splits a list of paths as the platform does. Empty entries are dropped.
fn split(list: OsString) -> Vec<PathBuf> {
    std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// Tells whether `place` is lavapipe's manifest or a folder with it. On some systems the manifest's name has the architecture.
fn holds_lavapipe(place: &Path) -> bool {
    let is_manifest = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("lvp_icd") && name.ends_with(".json") && path.is_file()
    };
    is_manifest(place)
        || fs::read_dir(place).is_ok_and(|entries| entries.flatten().any(|entry| is_manifest(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary folder of one test. It is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("aquatint-xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn with(self, file: &str) -> Self {
            fs::write(self.0.join(file), "{}").unwrap();
            self
        }

        fn places(&self) -> Places {
            Places { libraries: vec![self.0.clone()], manifests: vec![self.0.clone()] }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn both_are_missed_in_an_empty_folder() {
        let missing = Folder::new("empty").places().missing();
        assert_eq!(missing.len(), 2);
        assert!(missing[0].contains("libvulkan.so.1") && missing[1].contains("lavapipe"));
    }

    #[test]
    fn another_adapter_is_no_substitute() {
        let folder = Folder::new("radeon").with("libvulkan.so.1").with("radeon_icd.x86_64.json").with("lvp_icd.txt");
        assert_eq!(folder.places().missing(), ["the software adapter lavapipe (lvp_icd*.json)"]);
    }

    #[test]
    fn manifests_are_found_with_and_without_the_architecture() {
        for name in ["lvp_icd.json", "lvp_icd.x86_64.json", "lvp_icd.aarch64.json"] {
            let folder = Folder::new(name).with("libvulkan.so.1").with(name);
            assert!(folder.places().missing().is_empty(), "{name}");
        }
    }

    #[test]
    fn a_manifest_may_be_named_itself() {
        let folder = Folder::new("direct").with("lvp_icd.json");
        assert!(holds_lavapipe(&folder.0.join("lvp_icd.json")));
        assert!(!holds_lavapipe(&folder.0.join("lvp_icd.x86_64.json")));
    }

    #[test]
    fn the_tier_is_read_from_the_list_of_devices() {
        let table =
            "      name                   backend  kind      tier                               binding     threads
 0    Intel(R) Arc(tm) A770  vulkan   GPU       fast, f16 in squares of 8, error   128.00 MiB  1024
 1    llvmpipe (LLVM 15)     vulkan   software  portable, no cooperative matrices  128.00 MiB  1024
 cpu  2 threads
auto takes Intel(R) Arc(tm) A770: the first real GPU";
        assert_eq!(tier_of("llvmpipe", table), Some("portable, no cooperative matrices"));
        assert_eq!(tier_of("arc(TM)", table), Some("fast, f16 in squares of 8, error"));
        assert_eq!(tier_of("1", table), Some("portable, no cooperative matrices"));
        assert_eq!(tier_of("cpu", table), None);
        assert_eq!(tier_of("nvidia", table), None);
    }

    #[test]
    fn advice_names_every_package() {
        for package in PACKAGES {
            assert!(advice(System::Debian).contains(package));
        }
    }
}
