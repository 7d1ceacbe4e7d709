//! `aquatint generate`: prints the continuation as it is generated, and a summary to standard error.

use std::io::{Read, Write, stdin, stdout};
use std::time::Instant;

use aquatint::device::Recorder;
use aquatint::{Error, GenerateOptions, Generator, Result, Stop};
use pollster::block_on;

use super::args::GenerateArgs;
use super::{open_device, open_model};

/// Continues the prompt and prints the continuation.
pub fn run(args: GenerateArgs) -> Result<()> {
    let options = GenerateOptions { tokens: args.tokens, temperature: args.temperature, seed: args.seed };
    options.validate()?;
    let model = open_model(args.model.as_deref())?;
    let prompt = if args.prompt == "-" { read_prompt()? } else { args.prompt };
    let context = match args.context {
        Some(context) => context,
        // An empty prompt becomes one token.
        None => block_on(model.tokenizer())?.encode(&prompt)?.len().max(1).saturating_add(options.tokens),
    };
    let device = open_device(&args.device)?;
    let mut rec = Recorder::new(&device);
    let mut generator = block_on(Generator::load(&mut rec, &model, None, context))?;
    let started = Instant::now();
    block_on(generator.start(&mut rec, &prompt, options))?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    while let Some(piece) = block_on(generator.next(&mut rec))? {
        write(&piece)?;
    }
    write("\n")?;
    let seconds = started.elapsed().as_secs_f64() - prompt_seconds;
    let tokens = generator.generated().len();
    eprintln!(
        "prompt: {} tokens in {prompt_seconds:.2} s; continuation: {tokens} tokens in {seconds:.2} s, {:.1} tokens/s; stopped: {}",
        generator.prompt().len(),
        tokens as f64 / seconds,
        generator.stop().map_or("", Stop::label)
    );
    Ok(())
}

fn read_prompt() -> Result<String> {
    let mut text = String::new();
    stdin().read_to_string(&mut text).map_err(|source| Error::Io {
        path: "standard input".into(),
        action: "read",
        source,
        remedy: "give the prompt as UTF-8 text".into(),
    })?;
    let end = text.strip_suffix('\n').map_or(text.len(), |line| line.strip_suffix('\r').unwrap_or(line).len());
    text.truncate(end);
    Ok(text)
}

/// Writes a piece and flushes, so that it is seen before the next one is computed.
fn write(piece: &str) -> Result<()> {
    let mut out = stdout();
    out.write_all(piece.as_bytes()).and_then(|()| out.flush()).map_err(|source| Error::Io {
        path: "standard output".into(),
        action: "write",
        source,
        remedy: "keep the reader of the text open".into(),
    })
}
