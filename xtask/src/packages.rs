//! Packages of the operating system. This file tells which kind of system this is, and installs packages on Debian and Ubuntu if
//! no password is needed.

use std::fs;
use std::process::Command;

use crate::process;

/// Installs Debian packages if that needs no password. A failure is printed and does not end the chore: the machine may be
/// offline, and the caller looks for the packages afterwards.
pub fn install(packages: &[&str]) {
    let install = [&["apt-get", "install", "-y", "-qq", "--no-install-recommends"][..], packages].concat();
    privileged(&[&UPDATE, &install]);
}

/// Updates Debian's lists of packages under the same conditions.
pub fn update() {
    privileged(&[&UPDATE]);
}

const UPDATE: [&str; 3] = ["apt-get", "update", "-qq"];

/// Runs commands that need root, in order. Stops at the first that fails.
fn privileged(commands: &[&[&str]]) {
    if System::of_this_machine() != System::Debian {
        return;
    }
    let Some(prefix) = privileges() else {
        eprintln!("xtask: not root, and sudo asks for a password: nothing can be installed from here");
        return;
    };
    for command in commands {
        let line = [&prefix[..], &["env", "DEBIAN_FRONTEND=noninteractive"], command].concat();
        if let Err(failure) = process::step("set-up", Command::new(line[0]).args(&line[1..])) {
            failure.report();
            break;
        }
    }
}

/// Returns the prefix of a command that needs root: empty for root, `sudo -n` if sudo needs no password. `None` otherwise.
fn privileges() -> Option<Vec<&'static str>> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.trim_ascii() == b"0" {
        return Some(vec![]);
    }
    process::succeeds(Command::new("sudo").args(["-n", "true"])).then(|| vec!["sudo", "-n"])
}

/// The kinds of system, by package manager.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum System {
    /// Debian, Ubuntu and their derivatives.
    Debian,
    /// Fedora, Red Hat and their derivatives.
    Fedora,
    /// Arch and its derivatives.
    Arch,
    /// Alpine.
    Alpine,
    /// Anything else.
    Other,
}

impl System {
    /// Reads the kind from `/etc/os-release`.
    pub fn of_this_machine() -> Self {
        fs::read_to_string("/etc/os-release").map_or(Self::Other, |text| Self::from_os_release(&text))
    }

    /// Reads the kind from the `ID` and `ID_LIKE` lines of an os-release file.
    fn from_os_release(text: &str) -> Self {
        let values = text.lines().filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")));
        let mut words = values.flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace());
        words
            .find_map(|word| match word {
                "debian" | "ubuntu" => Some(Self::Debian),
                "fedora" | "rhel" | "centos" => Some(Self::Fedora),
                "arch" => Some(Self::Arch),
                "alpine" => Some(Self::Alpine),
                _ => None,
            })
            .unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_told_by_name_and_by_kinship() {
        let told = |text| System::from_os_release(text);
        assert_eq!(told("NAME=\"Debian GNU/Linux\"\nID=debian\n"), System::Debian);
        assert_eq!(told("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), System::Debian);
        assert_eq!(told("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), System::Fedora);
        assert_eq!(told("ID=manjaro\nID_LIKE=arch\n"), System::Arch);
        assert_eq!(told("ID=alpine\n"), System::Alpine);
        assert_eq!(told("VERSION_ID=debian\nID=void\n"), System::Other);
    }
}
