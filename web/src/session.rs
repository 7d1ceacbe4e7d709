//! The worker's entry point, with one method for each call of the page. It holds the page's state: the device, the model and the
//! storage of results.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use aquatint::device::{AdapterSummary, Choice, Device, Precision, Recorder, adapters};
use aquatint::ops::tier;
use aquatint::{Checkpoint, Error};
use js_sys::Function;
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::continuation;
use crate::failure::{Failure, from_js, to_js};
use crate::files::{JsFile, JsStorage, listing, open_checkpoint, remove_folder, written_files};
use crate::options::PageOptions;
use crate::progress::Progress;
use crate::run::{Place, QUANTIZED, Request, steps};
use crate::summary::{describe, plan};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(message: &str);
}

/// Writes the message of a panic to the browser's console. A panic is a bug, and the trap that follows ends the worker.
#[wasm_bindgen(start)]
fn announce_panics() {
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}

/// The short names of the model families that can be read.
#[wasm_bindgen]
pub fn families() -> Vec<String> {
    aquatint::family::names().into_iter().map(str::to_owned).collect()
}

/// The state of one page.
#[wasm_bindgen]
pub struct Session {
    page: Function,
    storage: JsStorage,
    device: RefCell<Option<Device>>,
    model: RefCell<Option<Rc<Checkpoint>>>,
    /// Set by `cancel`, cleared when something starts.
    stop: Rc<Cell<bool>>,
}

#[derive(Serialize)]
struct Start {
    version: &'static str,
    gpu: Option<Gpu>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Gpu {
    name: String,
    backend: String,
    software: bool,
    largest_binding: u64,
    largest_buffer: u64,
    workgroup_memory: u32,
}

impl From<AdapterSummary> for Gpu {
    fn from(adapter: AdapterSummary) -> Self {
        Self {
            name: adapter.name,
            backend: adapter.backend,
            software: adapter.software,
            largest_binding: adapter.largest_binding,
            largest_buffer: adapter.largest_buffer,
            workgroup_memory: adapter.workgroup_memory,
        }
    }
}

#[wasm_bindgen]
impl Session {
    /// Creates a session. `page` receives the events; `storage` takes the results.
    #[wasm_bindgen(constructor)]
    pub fn new(page: Function, storage: JsStorage) -> Self {
        Self { page, storage, device: RefCell::default(), model: RefCell::default(), stop: Rc::default() }
    }

    /// Returns the version of aquatint and the GPU, if there is one.
    pub async fn start(&self) -> Result<JsValue, JsValue> {
        let gpu = adapters().await.into_iter().next().map(Gpu::from);
        Ok(to_js(&Start { version: env!("CARGO_PKG_VERSION"), gpu }))
    }

    /// Opens the model in `files` and returns its summary. `place` names it in messages.
    pub async fn open(&self, place: String, files: Vec<JsFile>) -> Result<JsValue, JsValue> {
        self.model.take();
        let sizes = listing(&files);
        let model = open_checkpoint(&place, files).await.map_err(Failure::from)?;
        let device = self.device().await.ok();
        let summary = to_js(&describe(&model, sizes, device.as_ref()));
        self.model.replace(Some(Rc::new(model)));
        Ok(summary)
    }

    /// Plans a run with these options.
    pub async fn plan(&self, options: JsValue) -> Result<JsValue, JsValue> {
        let options: PageOptions = from_js(options, "plan")?;
        let model = self.model()?;
        let device = self.device.borrow().clone();
        Ok(to_js(&plan(&model, &options, device.as_ref()).await))
    }

    /// Quantizes the model, compares it with an uncorrected one if asked, and measures perplexities.
    pub async fn run(&self, request: JsValue) -> Result<JsValue, JsValue> {
        self.stop.set(false);
        let mut request: Request = from_js(request, "run")?;
        let model = self.model()?;
        let options = request.options(&model).map_err(Failure::from)?;
        let texts = request.texts(&model).await.map_err(Failure::from)?;
        let measured = texts.measured(options.seq_len).map_err(Failure::from)?.len() * options.seq_len;
        let steps = steps(&request, options.samples * options.seq_len, measured);
        let mut progress = Progress::new(self.page.clone(), self.stop.clone(), steps);
        let mut rec = Recorder::new(&self.device().await?);
        let mut place = Place { rec: &mut rec, model: &model, storage: &self.storage, progress: &mut progress };
        let outcome = place.run(&request, &texts).await;
        if outcome.is_err() {
            // A device that failed is not used again. Opening a new one costs little.
            self.device.take();
        }
        Ok(to_js(&outcome?))
    }

    /// Continues a prompt with the original or with the quantized model.
    pub async fn generate(&self, request: JsValue) -> Result<JsValue, JsValue> {
        self.stop.set(false);
        let request: continuation::Request = from_js(request, "generate")?;
        let model = if request.which == "original" { self.model()? } else { Rc::new(self.quantized().await?) };
        let mut rec = Recorder::new(&self.device().await?);
        let continued = request.run(&mut rec, &model, &self.page, &self.stop).await;
        if continued.is_err() {
            self.device.take();
        }
        Ok(to_js(&continued.map_err(Failure::from)?))
    }

    /// Stops the current call at its next check.
    pub fn cancel(&self) {
        self.stop.set(true);
    }

    /// Removes the quantized checkpoint from the storage.
    pub async fn discard(&self) -> Result<(), JsValue> {
        Ok(remove_folder(&self.storage, QUANTIZED).await.map_err(Failure::from)?)
    }
}

impl Session {
    fn model(&self) -> Result<Rc<Checkpoint>, Failure> {
        self.model
            .borrow()
            .clone()
            .ok_or_else(|| Failure::from(Error::input("the model", "none", "an opened model", "choose one first")))
    }

    /// Opens the quantized checkpoint from the storage.
    async fn quantized(&self) -> Result<Checkpoint, Failure> {
        let files = written_files(&self.storage, QUANTIZED).await?;
        Ok(open_checkpoint("the quantized model", files).await?)
    }

    /// Returns the browser's GPU, which is opened at first use. It may be emulated in software. The page passes no front end to
    /// it: a browser has no fast tier, and submissions are not timed.
    async fn device(&self) -> Result<Device, Failure> {
        if let Some(device) = self.device.borrow().clone() {
            return Ok(device);
        }
        let (device, _) = tier::open(&Choice::Index(0), Precision::Portable, &()).await?;
        self.device.replace(Some(device.clone()));
        Ok(device)
    }
}
