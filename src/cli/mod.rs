//! The command line: options in, progress and tables out. Owns no logic of the method.

/// `println!` for a reader who may have gone away, as `head` does: a run is not for the terminal alone, and goes on.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}

mod args;
mod bench_model;
mod console;
mod demo;
mod devices;
mod error_growth;
mod eval;
mod fingerprint;
mod forecast;
mod generate;
mod memory;
mod names;
mod profile;
mod quantize;
mod report;
mod shapes;
mod speed;
mod sweep;
mod unfinished;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use aquatint::device::Device;
use aquatint::ops::tier;
use aquatint::{Checkpoint, Error, Result, bundled};
use clap::Parser;

use args::{Cli, Command, DeviceArg};
use names::OptionNames;
use shapes::CommandLine;

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
        Command::BenchModel(args) => bench_model::run(args),
        Command::Report(args) => report::run(args),
        Command::Demo(args) => demo::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aquatint: {}", error.sentence(&OptionNames));
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

/// Opens the device that `--device` asks for, and prints which one it is and which kernels it uses.
fn open_device(arg: &DeviceArg) -> Result<Device> {
    let (device, reason) = pollster::block_on(tier::open(&arg.device, arg.precision, &CommandLine))?;
    let reason = reason.with_names(&OptionNames);
    match &device {
        Device::Cpu => eprintln!("device: cpu ({reason})"),
        Device::Gpu(gpu) => {
            eprintln!("device: {} ({reason}); kernels: {}", gpu.name(), gpu.tier().with_names(&OptionNames))
        }
    }
    Ok(device)
}

/// Writes `value` as JSON beside `path` and moves it there.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| unwritable(path, e.into()))?;
    text.push('\n');
    write_whole(path, &text)
}

/// Writes `text` beside `path` and moves it there, so that there is never half a file.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(temporary, path)
    };
    write().map_err(|e| {
        // The file may not exist; the error to report is the first one.
        let _ = std::fs::remove_file(temporary);
        unwritable(path, e)
    })
}

/// Writes a table of these records to `path`, as [`write_whole`] does.
fn write_csv(path: &Path, columns: &[&str], records: Vec<Vec<String>>) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = columns.iter().map(|name| name.to_string()).collect();
    for record in std::iter::once(header).chain(records) {
        writer.write_record(record).map_err(|error| unwritable(path, error.into()))?;
    }
    let bytes = writer.into_inner().map_err(|error| unwritable(path, error.into_error()))?;
    write_whole(path, &String::from_utf8_lossy(&bytes))
}

fn unwritable(path: &Path, source: std::io::Error) -> Error {
    let remedy = "choose another file, or make room".into();
    Error::Io { path: path.to_owned(), action: "write", source, remedy }
}

/// Refuses, before a long run, a file to be written after it whose place cannot hold one.
fn check_writable(option: &str, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |found: String, expected: &str| Err(Error::input(option, found, expected, "choose another file"));
    if path.is_dir() {
        return refuse(format!("{}, which is a directory", path.display()), "a file to write");
    }
    if !folder.is_dir() {
        return refuse(format!("{}", path.display()), "a file in a directory that exists");
    }
    Ok(())
}
