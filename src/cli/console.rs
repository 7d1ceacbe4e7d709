//! The observer of the command line: a clock, Ctrl-C, and progress. On a terminal progress is a bar with the time left, elsewhere
//! plain lines.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aquatint::observer::{Event, Group, Observer};
use aquatint::record::Phase;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::memory::{describe, place};
use super::names::OptionNames;

/// Whether Ctrl-C was pressed. A process has one handler, so all consoles share the flag.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Observes runs and prints their progress to standard error.
pub struct Console {
    started: Instant,
    /// When the first block of the current run began.
    blocks_started: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
    quiet: bool,
    blocks: usize,
    /// Groups of linear layers in all blocks.
    groups: usize,
    /// The error of each current run after its last block, as text.
    errors: String,
}

impl Console {
    /// Starts the clock and takes over Ctrl-C.
    pub fn new() -> Self {
        Self::start(false)
    }

    /// As [`new`](Self::new), without progress.
    pub fn quiet() -> Self {
        Self::start(true)
    }

    fn start(quiet: bool) -> Self {
        // This fails if an earlier console has set the handler, or if the program was started with Ctrl-C ignored, as shells start
        // background jobs. Neither needs one.
        let _ = ctrlc::try_set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nstopping after the chunk in hand; press Ctrl-C again to stop at once");
        });
        let terminal = std::io::stderr().is_terminal();
        let started = Instant::now();
        Self {
            started,
            blocks_started: started,
            bar: None,
            terminal,
            quiet,
            blocks: 0,
            groups: 0,
            errors: String::new(),
        }
    }

    fn bar(&mut self, length: usize) -> &ProgressBar {
        self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {msg} [{elapsed}, {eta} left]");
            ProgressBar::new(length as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        })
    }

    /// Forgets an earlier run, before the first block of the next.
    fn start_over(&mut self, blocks: usize) {
        self.blocks = blocks;
        self.blocks_started = Instant::now();
        self.errors.clear();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn planned(&mut self, event: &Event) {
        let Event::Planned { runs, blocks, groups, tokens, held_out, group_size, plan } = *event else { return };
        self.start_over(blocks);
        self.groups = groups;
        let groups = match (runs, group_size) {
            (1, None) => "one grid per row".to_string(),
            (1, Some(size)) => format!("groups of {size}"),
            _ => format!("{runs} runs together"),
        };
        eprintln!(
            "plan: {blocks} blocks, {groups}, {tokens} calibration tokens of which {held_out} held out, {}",
            describe(&plan)
        );
    }

    fn phase(&mut self, block: usize, phase: Phase, label: &str) {
        let so_far = if self.errors.is_empty() { String::new() } else { format!(", error so far {}", self.errors) };
        let message = format!("block {} of {}: {} {label}{so_far}", block + 1, self.blocks, phase.label());
        self.bar(self.groups).set_message(message);
    }

    fn block(&mut self, block: usize, errors: &[f64]) {
        self.errors = errors.iter().map(|error| format!("{error:.4}")).collect::<Vec<_>>().join(", ");
        if self.terminal {
            return;
        }
        let done = block + 1;
        let left = self.blocks_started.elapsed().mul_f64((self.blocks - done) as f64 / done as f64);
        eprintln!("block {done} of {}: error {}, about {} left", self.blocks, self.errors, HumanDuration(left));
    }
}

impl Observer for Console {
    fn event(&mut self, event: &Event) {
        if self.quiet {
            return;
        }
        match *event {
            Event::Planned { .. } => self.planned(event),
            Event::Phase { group: Group { block, ref label, .. }, phase } if self.terminal => {
                self.phase(block, phase, label);
            }
            Event::Write { block } if self.terminal => self.phase(block, Phase::Write, "layers"),
            Event::Group(_) if self.terminal => self.bar(self.groups).inc(1),
            Event::Head if self.terminal => self.bar(self.groups).set_message("output matrix"),
            Event::Head => eprintln!("output matrix"),
            Event::Retry { ref reason, chunk_tokens, streams } => {
                let reason = reason.with_names(&OptionNames);
                eprintln!("{reason}\ntrying again, {chunk_tokens} tokens at a time, hidden states {}", place(streams));
            }
            Event::Block { block, ref errors } => self.block(block, errors),
            Event::EvaluationBlock { block, blocks } if self.terminal => {
                if block == 1 {
                    self.start_over(blocks);
                }
                self.bar(blocks).set_position(block as u64);
                self.bar(blocks).set_message(format!("evaluating block {block} of {blocks}"));
            }
            _ => {}
        }
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
