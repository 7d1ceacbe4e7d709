//! Progress of a run, sent to the page as events: the current step, the share that is done, the remaining time, and the error
//! after each block. [`crate::run`] uses it as the library's observer; `static/progress.js` shows it.

use std::cell::Cell;
use std::rc::Rc;

use aquatint::observer::{Event, Group, Observer};
use aquatint::record::Phase;
use js_sys::Function;
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::failure::to_js;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn milliseconds() -> f64;
}

/// Returns the seconds since the worker started.
pub fn seconds() -> f64 {
    milliseconds() / 1000.0
}

/// The share of an evaluation's time that the blocks take. The head takes the rest.
const BLOCKS_OF_EVALUATION: f64 = 0.7;
/// The remaining time is estimated once this share of the whole run is done.
const FORETELL_FROM: f64 = 0.03;

/// One step of a run.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The page's name for it.
    pub name: &'static str,
    /// The curve that its block errors belong to, if any.
    pub series: Option<&'static str>,
    /// The amount of work, in a unit that all steps share.
    pub work: f64,
}

/// The observer of all steps of a run.
pub struct Progress {
    page: Function,
    stop: Rc<Cell<bool>>,
    steps: Vec<Step>,
    current: usize,
    started: f64,
    blocks: usize,
    block: usize,
    done: f64,
    phase: &'static str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Message<'a> {
    Step { step: &'a str, index: usize, steps: usize },
    Progress { step: &'a str, block: usize, blocks: usize, phase: &'a str, done: f64, overall: f64, eta: Option<f64> },
    Point { series: &'a str, block: usize, error: f64 },
}

impl Progress {
    /// Creates the observer before the first step. The session sets `stop` to cancel the run.
    pub fn new(page: Function, stop: Rc<Cell<bool>>, steps: Vec<Step>) -> Self {
        Self { page, stop, steps, current: 0, started: seconds(), blocks: 0, block: 0, done: 0.0, phase: "" }
    }

    /// Begins the step called `name`.
    pub fn begin(&mut self, name: &str) {
        self.current = self.steps.iter().position(|step| step.name == name).unwrap_or(self.current);
        (self.done, self.block, self.phase) = (0.0, 0, "load");
        let step = self.steps[self.current].name;
        self.send(&Message::Step { step, index: self.current, steps: self.steps.len() });
    }

    fn send(&self, message: &Message<'_>) {
        // The page's handler does not throw. If it did, the error could not be reported anywhere.
        let _ = self.page.call1(&JsValue::NULL, &to_js(message));
    }

    fn report(&self) {
        let total: f64 = self.steps.iter().map(|step| step.work).sum();
        let before: f64 = self.steps[..self.current].iter().map(|step| step.work).sum();
        let Step { name, work, .. } = self.steps[self.current];
        let overall = ((before + self.done * work) / total).min(1.0);
        let elapsed = seconds() - self.started;
        let eta = (overall > FORETELL_FROM).then(|| elapsed * (1.0 - overall) / overall);
        let Self { block, blocks, phase, done, .. } = *self;
        self.send(&Message::Progress { step: name, block, blocks, phase, done, overall, eta });
    }

    fn at(&mut self, group: &Group, within: f64) {
        self.block = group.block;
        let of_block = (group.index as f64 + within) / group.groups as f64;
        self.done = (group.block as f64 + of_block) / self.blocks.max(1) as f64;
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match *event {
            Event::Planned { blocks, .. } => self.blocks = blocks,
            Event::Phase { ref group, phase } => {
                let phases = [Phase::Statistics, Phase::Correction, Phase::Rounding, Phase::Forward];
                let before = phases.iter().position(|&other| other == phase).unwrap_or(0);
                self.phase = phase.label();
                self.at(group, before as f64 / phases.len() as f64);
            }
            Event::Group(ref group) => self.at(group, 1.0),
            Event::Write { .. } => self.phase = Phase::Write.label(),
            // The page does not offer to quantize the output matrix, and a run on it makes one attempt only.
            Event::Head | Event::Retry { .. } => {}
            Event::Block { block, ref errors } => {
                if let (Some(series), &[error]) = (self.steps[self.current].series, errors.as_slice()) {
                    self.send(&Message::Point { series, block, error });
                }
            }
            Event::EvaluationBlock { block, blocks } => {
                (self.block, self.blocks, self.phase) = (block, blocks, Phase::Forward.label());
                self.done = BLOCKS_OF_EVALUATION * block as f64 / blocks.max(1) as f64;
            }
            Event::EvaluationHead { scored, windows } => {
                let share = scored as f64 / windows.max(1) as f64;
                self.done = BLOCKS_OF_EVALUATION + (1.0 - BLOCKS_OF_EVALUATION) * share;
            }
        }
        self.report();
    }

    fn seconds(&self) -> f64 {
        seconds()
    }

    fn cancelled(&self) -> bool {
        self.stop.get()
    }
}
