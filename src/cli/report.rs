//! `aquatint report`: a page of records, or of several together.

use std::path::{Path, PathBuf};

use aquatint::report::{Document, Run, html};
use aquatint::study::files::write_whole;
use aquatint::{Error, Result};

use super::args::ReportArgs;
use super::check_writable;
use super::names::OptionNames;

/// Reads all files, then writes the page.
pub fn run(args: ReportArgs) -> Result<()> {
    check_writable(&[("--out", Some(&args.out))])?;
    let mut documents = args.files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let mut document = match documents.len() {
        1 => documents.remove(0),
        _ => compare(&args.files, documents),
    };
    if let Some(title) = args.title {
        document.title = title;
    }
    write_whole(&args.out, html::html(&document, &OptionNames)?.as_bytes())?;
    let runs = document.runs.len();
    say!("wrote {runs} {} to {}", if runs == 1 { "run" } else { "runs" }, args.out.display());
    Ok(())
}

fn read(path: &Path) -> Result<Document> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
        remedy: "give a file that --json or --report wrote".into(),
    })?;
    Document::read(&path.display().to_string(), &bytes)
}

/// One document of the runs of all files. The label of a run begins with the name of its file.
fn compare(files: &[PathBuf], documents: Vec<Document>) -> Document {
    let mut runs = Vec::new();
    for (path, document) in files.iter().zip(documents) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let named = |run: Run| {
            let label = if run.label.is_empty() { stem.to_string() } else { format!("{stem}: {}", run.label) };
            Run { label, ..run }
        };
        runs.extend(document.runs.into_iter().map(named));
    }
    Document::new(format!("{} runs compared", runs.len()), "report", runs)
}
