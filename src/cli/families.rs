//! `aquatint families`: the table of model families. docs/families.md holds what it prints.

use aquatint::Result;
use aquatint::family::{FAMILIES, Family, names};

/// Prints the table as Markdown.
pub fn run() -> Result<()> {
    let names = names();
    say!("# Model families\n");
    say!("Written by `aquatint families`. A test compares this page with the program.\n");
    say!("Families: {}.\n", names.join(", "));
    say!(
        "{} architectures of {} families. Each is compared with transformers 5.23.0: the logits of random models of odd shapes \
         (tests/fixtures/families) agree to 1e-5 relative in f32, on the CPU and on a software GPU, whole and token by token with a \
         cache. `cargo xtask families` does it again with models of a second shape, and loads the quantized results in transformers.\n",
        FAMILIES.len(),
        names.len()
    );
    say!("| architecture | models | what is special | fixtures | not done |");
    say!("|---|---|---|---|---|");
    FAMILIES.iter().for_each(|family| say!("{}", row(family)));
    Ok(())
}

/// One row of the table.
fn row(family: &Family) -> String {
    let about = family.about;
    let cells = [family.architecture, about.models, about.features, &about.fixtures.join(", "), about.missing];
    format!("| {} |", cells.join(" | "))
}
