//! The command line: options in, progress and tables out. What a command does is in the library, mostly in `study`.

/// `println!` that ignores a reader who has gone away, as `head` does: the run goes on, since it also writes files.
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
mod families;
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

use std::path::Path;
use std::process::ExitCode;

use aquatint::device::Device;
use aquatint::ops::tier;
use aquatint::study::files::{write_error, write_whole};
use aquatint::{Checkpoint, Error, Result, bundled};
use clap::Parser;

use args::{Cli, Command, DeviceArg};
use names::OptionNames;
use shapes::CommandLine;

/// Exit code of every error but an interruption.
const FAILURE: u8 = 2;
/// Exit code after Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;

/// Parses the command line and runs it.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Devices => devices::run(),
        Command::Families => families::run(),
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

/// Opens the checkpoint at `path`, or the bundled one, and prints what should be known of it.
fn open_model(path: Option<&Path>) -> Result<Checkpoint> {
    let model = pollster::block_on(async {
        match path {
            Some(path) => Checkpoint::open(path).await,
            None => bundled::checkpoint().await,
        }
    })?;
    model.notes().iter().for_each(|note| eprintln!("note: {note}"));
    Ok(model)
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

/// Writes `records` to `path` as CSV under the names of the columns.
fn write_csv(path: &Path, columns: &[&str], records: Vec<Vec<String>>) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = columns.iter().map(|name| name.to_string()).collect();
    for record in std::iter::once(header).chain(records) {
        writer.write_record(record).map_err(|error| write_error(path, error.into()))?;
    }
    let bytes = writer.into_inner().map_err(|error| write_error(path, error.into_error()))?;
    write_whole(path, &bytes)
}

/// Checks before a long run that the files which are written after it have a directory to go to. `files`: each with its option.
fn check_writable(files: &[(&str, Option<&Path>)]) -> Result<()> {
    for (option, path) in files {
        let Some(path) = path else { continue };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let refuse = |found: String, expected: &str| Err(Error::input(*option, found, expected, "choose another file"));
        if path.is_dir() {
            return refuse(format!("{}, which is a directory", path.display()), "a file to write");
        }
        if !folder.is_dir() {
            return refuse(format!("{}", path.display()), "a file in a directory that exists");
        }
    }
    Ok(())
}
