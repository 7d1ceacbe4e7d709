//! `cargo xtask families` checks every family of models beside transformers. `xtask/families.py` makes a random model of each,
//! evaluates it with both programs, quantizes it with aquatint, and reads the results back with both.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::process::{self, Result};
use crate::python::Environment;

/// The help text of this chore.
pub const HELP: &str = "\
Usage: cargo xtask families [OPTIONS]

  --venv DIR          Virtual environment to use or make [target/families-venv]
  --out DIR           Where models and records go [target/families]
  --only NAME,NAME    Only these models, by their names in tests/fixtures/families [all]
  --device DEVICE     Passed on to aquatint [cpu: the models are too small to be worth a GPU]";

/// The options of this chore.
#[derive(Debug, PartialEq)]
pub struct Options {
    venv: PathBuf,
    out: PathBuf,
    only: Option<OsString>,
    device: OsString,
}

impl Default for Options {
    fn default() -> Self {
        let target = process::target();
        Self { venv: target.join("families-venv"), out: target.join("families"), only: None, device: "cpu".into() }
    }
}

impl Options {
    /// Parses pairs of an option and its value. Names of models are not checked; the script checks them.
    ///
    /// Errors: a sentence about the first option that is unknown or has no value.
    pub fn parse(arguments: &[OsString]) -> std::result::Result<Self, String> {
        let mut options = Self::default();
        for pair in arguments.chunks(2) {
            let [option, value] = pair else {
                return Err(format!("{:?} needs a value", pair[0]));
            };
            match option.to_str() {
                Some("--venv") => options.venv = value.into(),
                Some("--out") => options.out = value.into(),
                Some("--only") => options.only = Some(value.clone()),
                Some("--device") => options.device.clone_from(value),
                _ => return Err(format!("`families` has no option {option:?}")),
            }
        }
        Ok(options)
    }
}

/// Builds aquatint and runs the script, which prints a line for each model. The exit code is 1 if one failed. The messages of
/// both programs go to a log beside the models.
pub fn run(options: &Options) -> Result<ExitCode> {
    let environment = Environment::prepare(&options.venv, "families-requirements.txt", &[])?;
    process::step("build", &mut process::aquatint("build"))?;
    process::create_folder(&options.out)?;
    let log = options.out.join("families.log");
    let file = process::create_file(&log)?;
    eprintln!("xtask: the messages of both programs go to {}", log.display());
    // The script starts the program some five hundred times. Cargo would double the time of most of these runs.
    let mut command = environment.script("families.py");
    command.arg("--aquatint").arg(process::program());
    command.arg("--out").arg(&options.out).arg("--device").arg(&options.device);
    if let Some(names) = &options.only {
        command.arg("--only").arg(names);
    }
    process::last_step("compare", command.stderr(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> std::result::Result<Options, String> {
        Options::parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_replace_defaults_one_by_one() {
        let options = parse(&["--only", "opt,bloom", "--out", "some/where"]).unwrap();
        let expected = Options { only: Some("opt,bloom".into()), out: "some/where".into(), ..Options::default() };
        assert_eq!(options, expected);
        assert_eq!(parse(&[]).unwrap(), Options::default());
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parse(&["--only"]).unwrap_err(), "\"--only\" needs a value");
        assert_eq!(parse(&["--olny", "x"]).unwrap_err(), "`families` has no option \"--olny\"");
    }

    #[test]
    fn help_lists_every_option() {
        for option in ["venv", "out", "only", "device"] {
            assert!(HELP.contains(&format!("--{option} ")), "{option}");
            assert!(parse(&[&format!("--{option}"), "1"]).is_ok(), "{option}");
        }
    }
}
