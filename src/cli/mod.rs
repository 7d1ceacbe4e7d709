//! The command line: options in, progress and tables out. Owns no logic of the method.

mod args;
mod console;
mod demo;
mod devices;
mod error_growth;
mod eval;
mod generate;
mod quantize;
mod sweep;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use aquatint::device::{Device, select};
use aquatint::{Checkpoint, Error, Result, bundled};
use clap::Parser;

use args::{Cli, Command, DeviceArg};

/// Bad input and everything else that a user can act on.
const FAILURE: u8 = 2;
/// As a shell reports a process that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Parses the command line and runs it.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Devices => devices::run(),
        Command::Quantize(args) => quantize::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Sweep(args) => sweep::run(*args),
        Command::ErrorGrowth(args) => error_growth::run(*args),
        Command::Generate(args) => generate::run(args),
        Command::Demo(args) => demo::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aquatint: {error}");
            ExitCode::from(if matches!(error, Error::Cancelled) { INTERRUPTED } else { FAILURE })
        }
    }
}

/// The checkpoint at `path`, or the bundled one.
fn open_model(path: Option<&Path>) -> Result<Checkpoint> {
    pollster::block_on(async {
        match path {
            Some(path) => Checkpoint::open(path).await,
            None => bundled::checkpoint().await,
        }
    })
}

/// Opens what `--device` asks for, and says what was taken.
fn open_device(arg: &DeviceArg) -> Result<Device> {
    let (device, reason) = pollster::block_on(select(&arg.device))?;
    eprintln!("device: {} ({reason})", device.name());
    Ok(device)
}

/// Writes `value` as JSON beside `path` and moves it there.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let refuse = |source| Error::Io {
        path: path.to_owned(),
        action: "write",
        source,
        remedy: "choose another --json file, or make room".to_string(),
    };
    let text = serde_json::to_string_pretty(value).map_err(|e| refuse(e.into()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(temporary)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(temporary, path)
    };
    write().map_err(|e| {
        // The file may not exist; the error to report is the first one.
        let _ = std::fs::remove_file(temporary);
        refuse(e)
    })
}

/// Writes a table of these records to `path`.
fn write_csv(path: &Path, columns: &[&str], records: Vec<Vec<String>>) -> Result<()> {
    let write = || -> csv::Result<()> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(columns)?;
        for record in records {
            writer.write_record(record)?;
        }
        writer.flush()?;
        Ok(())
    };
    write().map_err(|error| Error::Io {
        path: path.to_owned(),
        action: "write",
        source: error.into(),
        remedy: "choose another place, or make room".to_string(),
    })
}
