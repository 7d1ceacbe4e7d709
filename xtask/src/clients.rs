//! `cargo xtask clients` checks that other programs load our checkpoints correctly. It quantizes a checkpoint, loads the results
//! with those programs, and compares the perplexities with those of `aquatint eval`. There are two groups of programs: llama.cpp,
//! gguf-py and mlx-lm (`xtask/light_clients.py`), and transformers with GPTQModel (`xtask/clients.py`), which needs torch.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::process::{self, Failure, Result};
use crate::python::Environment;
use crate::smollm2;

/// The help text of this chore.
pub const HELP: &str = "\
Usage: cargo xtask clients [OPTIONS]

  --only GROUP        light: GGUF files in llama.cpp and gguf-py, MLX checkpoints in mlx-lm; Linux, some 400 MB of packages
                      torch: GPTQ checkpoints in transformers with GPTQModel; gigabytes of packages
                      [both]
  --cases NAME,NAME   Only these checkpoints of the group light, such as Q4_0,mlx-4bit-group64 [all]
  --model DIR         Checkpoint to quantize; left out, SmolLM2 is fetched to target/smollm2
  --venv DIR          Virtual environment of the group torch, to use or make [target/clients-venv]
  --light-venv DIR    Virtual environment of the group light, to use or make [target/light-clients-venv]
  --out DIR           Where quantized checkpoints and records go [target/clients]
  --calibration FILE  Calibration text [the bundled one]
  --text FILE         Evaluation text [the bundled one]
  --samples N         Calibration windows [32]
  --seq-len N         Tokens per window, in calibration and evaluation [512]
  --windows N         Evaluation windows [16]
  --device DEVICE     Passed on to `aquatint quantize` and `aquatint eval` [their default]";

/// The folder of the bundled texts, relative to the root of the workspace.
const BUNDLED: &str = "tests/fixtures/tiny-llama";

/// The checkpoints to make: a name, and the options of the grid. Symmetric grids are written as GPTQ v1, asymmetric ones as v2.
const GRIDS: [(&str, &[&str]); 2] = [
    ("4bit-group64-sym", &["--bits", "4", "--group-size", "64", "--sym"]),
    ("3bit-channel-asym", &["--bits", "3", "--group-size", "-1", "--asym"]),
];

/// A group of clients that share a virtual environment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Group {
    /// llama.cpp, gguf-py and mlx-lm.
    Light,
    /// transformers and GPTQModel.
    Torch,
}

impl Group {
    /// All groups, in the order of the run: the one that costs less comes first.
    const ALL: [Self; 2] = [Self::Light, Self::Torch];

    /// The group's name in options.
    fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Torch => "torch",
        }
    }
}

/// The options of this chore.
#[derive(Debug, PartialEq)]
pub struct Options {
    groups: Vec<Group>,
    cases: Option<OsString>,
    model: Option<PathBuf>,
    venv: PathBuf,
    light_venv: PathBuf,
    out: PathBuf,
    calibration: PathBuf,
    text: PathBuf,
    samples: OsString,
    seq_len: OsString,
    windows: OsString,
    device: Option<OsString>,
}

impl Default for Options {
    fn default() -> Self {
        let (target, bundled) = (process::target(), process::root().join(BUNDLED));
        Self {
            groups: Group::ALL.to_vec(),
            cases: None,
            model: None,
            venv: target.join("clients-venv"),
            light_venv: target.join("light-clients-venv"),
            out: target.join("clients"),
            calibration: bundled.join("calibration.txt"),
            text: bundled.join("evaluation.txt"),
            samples: "32".into(),
            seq_len: "512".into(),
            windows: "16".into(),
            device: None,
        }
    }
}

impl Options {
    /// Parses pairs of an option and its value. Numbers are not checked; aquatint checks them. Nor are names of cases; the
    /// script checks them.
    ///
    /// Errors: a sentence about the first option that is unknown or has no value, about a group that does not exist, or about
    /// cases of a group that is left out.
    pub fn parse(arguments: &[OsString]) -> std::result::Result<Self, String> {
        let mut options = Self::default();
        for pair in arguments.chunks(2) {
            let [option, value] = pair else {
                return Err(format!("{:?} needs a value", pair[0]));
            };
            match option.to_str() {
                Some("--only") => {
                    let group = Group::ALL.into_iter().find(|group| value == group.name());
                    options.groups = vec![group.ok_or_else(|| format!("--only is light or torch, not {value:?}"))?];
                }
                Some("--cases") => options.cases = Some(value.clone()),
                Some("--model") => options.model = Some(value.into()),
                Some("--venv") => options.venv = value.into(),
                Some("--light-venv") => options.light_venv = value.into(),
                Some("--out") => options.out = value.into(),
                Some("--calibration") => options.calibration = value.into(),
                Some("--text") => options.text = value.into(),
                Some("--samples") => options.samples.clone_from(value),
                Some("--seq-len") => options.seq_len.clone_from(value),
                Some("--windows") => options.windows.clone_from(value),
                Some("--device") => options.device = Some(value.clone()),
                _ => return Err(format!("`clients` has no option {option:?}")),
            }
        }
        if options.cases.is_some() && !options.groups.contains(&Group::Light) {
            return Err("--cases are those of the group light, which --only leaves out".into());
        }
        Ok(options)
    }
}

/// Builds aquatint, then quantizes, evaluates and compares for one group after the other. Each ends in a table. The exit code is
/// 1 if a row of a table failed.
pub fn run(options: &Options) -> Result<ExitCode> {
    for text in [&options.calibration, &options.text] {
        if !text.is_file() {
            return Err(Failure::new(format!("there is no text {}", text.display())));
        }
    }
    let environments = options.groups.iter().map(|&group| prepare(group, options)).collect::<Result<Vec<_>>>()?;
    let model = options.model.clone().unwrap_or_else(smollm2::place);
    if options.model.is_none() {
        smollm2::fetch(&model)?;
    }
    process::step("build", &mut process::aquatint("build"))?;
    process::create_folder(&options.out)?;

    let mut worst = ExitCode::SUCCESS;
    for (group, environment) in options.groups.iter().zip(&environments) {
        let code = match group {
            Group::Light => run_light(options, environment, &model)?,
            Group::Torch => run_torch(options, environment, &model)?,
        };
        if code != ExitCode::SUCCESS {
            worst = code;
        }
    }
    Ok(worst)
}

/// Makes the virtual environment of a group, unless it is there.
fn prepare(group: Group, options: &Options) -> Result<Environment> {
    match group {
        Group::Light => Environment::prepare(&options.light_venv, "light-clients-requirements.txt", &[]),
        Group::Torch => {
            Environment::prepare(&options.venv, "clients-requirements.txt", &["setuptools", "wheel", "torch"])
        }
    }
}

/// Runs the script of the light clients. It starts aquatint itself. The messages of all programs go to a log beside the results.
fn run_light(options: &Options, environment: &Environment, model: &Path) -> Result<ExitCode> {
    let log = options.out.join("light-clients.log");
    let file = process::create_file(&log)?;
    eprintln!("xtask: the messages of all programs go to {}", log.display());
    let mut command = environment.script("light_clients.py");
    command.arg("--aquatint").arg(process::program()).arg("--model").arg(model).arg("--out").arg(&options.out);
    command.arg("--calibration").arg(&options.calibration).arg("--samples").arg(&options.samples);
    command.arg("--text").arg(&options.text).arg("--seq-len").arg(&options.seq_len);
    command.arg("--windows").arg(&options.windows);
    if let Some(cases) = &options.cases {
        command.arg("--only").arg(cases);
    }
    process::last_step("compare", on_device(&mut command, options).stderr(file))
}

/// Quantizes and evaluates with aquatint, then runs the script of the clients that need torch.
fn run_torch(options: &Options, environment: &Environment, model: &Path) -> Result<ExitCode> {
    // The original checkpoint shows that both programs define perplexity in the same way.
    let mut pairs = vec![evaluate(options, model, "unquantized")?];
    for (name, grid) in GRIDS {
        let quantized = options.out.join(name);
        quantize(options, model, &quantized, grid)?;
        pairs.push(evaluate(options, &quantized, name)?);
    }
    compare(options, environment, &pairs)
}

fn quantize(options: &Options, model: &Path, out: &Path, grid: &[&str]) -> Result<()> {
    let mut command = aquatint("quantize");
    command.arg(model).arg("--out").arg(out).arg("--force").args(grid);
    command.arg("--calibration").arg(&options.calibration).arg("--samples").arg(&options.samples);
    command.arg("--seq-len").arg(&options.seq_len);
    process::step("quantize", on_device(&mut command, options))
}

/// Evaluates one checkpoint and returns `CHECKPOINT=RECORD`, an argument of the script.
fn evaluate(options: &Options, checkpoint: &Path, name: &str) -> Result<OsString> {
    let record = options.out.join(format!("{name}.eval.json"));
    let mut command = aquatint("eval");
    command.arg(checkpoint).arg("--text").arg(&options.text).arg("--seq-len").arg(&options.seq_len);
    command.arg("--windows").arg(&options.windows).arg("--json").arg(&record);
    process::step("evaluate", on_device(&mut command, options))?;
    Ok([checkpoint.as_os_str(), OsStr::new("="), record.as_os_str()].into_iter().collect())
}

/// Runs the client. Its many messages go to a log beside the records.
fn compare(options: &Options, environment: &Environment, pairs: &[OsString]) -> Result<ExitCode> {
    let log = options.out.join("clients.log");
    let file = process::create_file(&log)?;
    eprintln!("xtask: the client's own messages go to {}", log.display());
    let mut command = environment.script("clients.py");
    command.arg("--text").arg(&options.text).arg("--seq-len").arg(&options.seq_len);
    command.arg("--windows").arg(&options.windows).args(pairs).stderr(file);
    process::last_step("compare", &mut command)
}

/// Adds `--device` to the command if the option was given.
fn on_device<'a>(command: &'a mut Command, options: &Options) -> &'a mut Command {
    if let Some(device) = &options.device {
        command.arg("--device").arg(device);
    }
    command
}

/// Returns the command `aquatint SUBCOMMAND`. The program must have been built.
fn aquatint(subcommand: &str) -> Command {
    let mut command = process::aquatint("run");
    command.args(["--quiet", "--", subcommand]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> std::result::Result<Options, String> {
        Options::parse(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_replace_defaults_one_by_one() {
        let options = parse(&["--model", "some/where", "--windows", "3", "--only", "light"]).unwrap();
        let expected = Options {
            groups: vec![Group::Light],
            model: Some("some/where".into()),
            windows: "3".into(),
            ..Options::default()
        };
        assert_eq!(options, expected);
        assert_eq!(parse(&[]).unwrap(), Options::default());
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parse(&["--model"]).unwrap_err(), "\"--model\" needs a value");
        assert_eq!(parse(&["--modle", "x"]).unwrap_err(), "`clients` has no option \"--modle\"");
        assert_eq!(parse(&["--only", "lite"]).unwrap_err(), "--only is light or torch, not \"lite\"");
        let complaint = parse(&["--cases", "Q4_0", "--only", "torch"]).unwrap_err();
        assert_eq!(complaint, "--cases are those of the group light, which --only leaves out");
    }

    #[test]
    fn help_lists_every_option() {
        let folders = ["model", "venv", "light-venv", "out"];
        let others = ["only", "cases", "calibration", "text", "samples", "seq-len", "windows", "device"];
        for option in folders.into_iter().chain(others) {
            assert!(HELP.contains(&format!("--{option} ")), "{option}");
            let value = if option == "only" { "torch" } else { "1" };
            assert!(parse(&[&format!("--{option}"), value]).is_ok(), "{option}");
        }
    }
}
