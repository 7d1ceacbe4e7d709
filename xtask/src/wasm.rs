//! Sets up builds for wasm32. With rustup it adds the target. Without rustup, or if its server cannot be reached, it unpacks
//! Debian's `rustc-web` into the target folder: a compiler that comes with the source of the standard library.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages;
use crate::process::{self, Failure, Result};

/// The compilation target of the web page.
const TARGET: &str = "wasm32-unknown-unknown";
/// Debian's packages: the compiler, the files with which it finds `core`, and the source of the standard library.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"];
/// The beginnings of the packages with the compiler's own libraries. The rest of such a name is a version.
const LIBRARIES: [&str; 2] = ["libstd-rust-web-", "libllvm"];

/// Returns the folder of the compiled wasm for a profile of cargo.
pub fn output(profile: &str) -> PathBuf {
    build_folder().join(TARGET).join(profile)
}

/// Returns the target folder of wasm builds. It is separate from that of other builds, because the standard library may be built
/// in it.
fn build_folder() -> PathBuf {
    process::target().join("wasm")
}

/// Returns `cargo ARGUMENTS` for wasm32, with the compiler that this machine has or can get.
///
/// Errors: there is no compiler for wasm32, and none can be installed.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = process::cargo(arguments);
    command.args(["--target", TARGET, "--target-dir"]).arg(build_folder());
    let sysroot = sysroot()?;
    if has_target(&sysroot) || (add_target() && has_target(&sysroot)) {
        return Ok(command);
    }
    let rustc = debian_compiler()?;
    let linker = host(&sysroot).map(|host| sysroot.join("lib/rustlib").join(host).join("bin/rust-lld"));
    let Some(linker) = linker.filter(|linker| linker.is_file()) else {
        return Err(Failure::new(format!(
            "no rust-lld in {}; install Rust by rustup (https://rustup.rs)",
            sysroot.display()
        )));
    };
    // Cargo's feature that builds the standard library is unstable. RUSTC_BOOTSTRAP enables it for this build only.
    command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    command.arg("-Zbuild-std=std,panic_abort");
    Ok(command)
}

fn sysroot() -> Result<PathBuf> {
    let printed = Command::new("rustc").args(["--print", "sysroot"]).output();
    let printed = printed.map_err(|error| Failure::new(format!("cannot start rustc: {error}")))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim()))
}

fn has_target(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

/// Adds the target with rustup, if rustup is installed. A failure is not shown, because Debian's compiler can be used instead.
fn add_target() -> bool {
    process::succeeds(Command::new("rustup").args(["target", "add", TARGET]))
}

/// Returns the host's target triple: the name of the folder with its libraries and programs.
fn host(sysroot: &Path) -> Option<String> {
    let folders = fs::read_dir(sysroot.join("lib/rustlib")).ok()?.flatten();
    let names = folders.filter(|folder| folder.path().join("bin").is_dir()).map(|folder| folder.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).next()
}

/// Returns a script that starts Debian's compiler. The compiler is unpacked at the first use (about 900 MB); no package is
/// installed.
///
/// Errors: this is not Debian, or the packages cannot be downloaded or unpacked.
fn debian_compiler() -> Result<PathBuf> {
    let home = process::target().join("wasm-toolchain");
    let wrapper = home.join("rustc");
    if wrapper.is_file() {
        return Ok(wrapper);
    }
    let impossible = |why: &str| Failure::new(format!("{why}; run `rustup target add {TARGET}`"));
    let mut list = Command::new("apt-cache");
    list.args(["depends", "--recurse", "--no-suggests", "--no-recommends", PACKAGES[0]]);
    let mut needed = || {
        let listed = list.output().map_err(|_| impossible("no wasm32 target, and this is no Debian"))?;
        Ok(needed(&String::from_utf8_lossy(&listed.stdout)))
    };
    let all = PACKAGES.len() + LIBRARIES.len();
    let mut names = needed()?;
    if names.len() < all {
        packages::update();
        names = needed()?;
    }
    if names.len() < all {
        return Err(impossible("no wasm32 target, and Debian's rustc-web is not to be had (apt-get update?)"));
    }
    eprintln!("xtask: set-up: the wasm32 target is missing; unpacking Debian's {} into target", PACKAGES[0]);
    let partial = process::target().join("wasm-toolchain.partial");
    let _ = fs::remove_dir_all(&partial);
    let write = |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", partial.display()));
    fs::create_dir_all(&partial).map_err(write)?;
    process::step("set-up", Command::new("apt-get").arg("download").args(&names).current_dir(&partial))?;
    for file in fs::read_dir(&partial).map_err(write)?.flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::step("set-up", Command::new("dpkg").arg("-x").arg(&file).arg(partial.join("root")))?;
            fs::remove_file(&file).map_err(write)?;
        }
    }
    let root = home.join("root");
    fs::write(partial.join("rustc"), start_script(&root, &partial.join("root"))).map_err(write)?;
    process::step("set-up", Command::new("chmod").arg("+x").arg(partial.join("rustc")))?;
    fs::rename(&partial, &home).map_err(write)?;
    Ok(wrapper)
}

/// Selects the packages to unpack from apt's list of all dependencies of the compiler.
fn needed(listed: &str) -> Vec<String> {
    let mut names: Vec<String> = PACKAGES.map(String::from).to_vec();
    for line in listed.lines().filter(|line| !line.starts_with([' ', '|', '<'])) {
        if LIBRARIES.iter().any(|library| line.starts_with(library)) && !names.iter().any(|name| name == line) {
            names.push(line.to_owned());
        }
    }
    names
}

/// Returns the text of a script that starts the compiler with its own libraries. Their folders depend on architecture and version.
fn start_script(root: &Path, unpacked: &Path) -> String {
    let mut folders = Vec::new();
    let below = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in below(unpacked.join("usr/lib")) {
        folders.push(root.join("usr/lib").join(&name));
        folders.push(root.join("usr/lib").join(&name).join("lib"));
    }
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    format!("#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}/usr/bin/rustc' \"$@\"\n", folders.join(":"), root.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_whatever_their_version() {
        let listed = "rustc-web\n  Depends: libc6\nlibc6\nlibllvm22\n  Depends: zlib1g\nlibstd-rust-web-1.96\n<perl>\n";
        let expected = ["rustc-web", "libstd-rust-web-dev", "rust-web-src", "libllvm22", "libstd-rust-web-1.96"];
        assert_eq!(needed(listed), expected);
    }
}
