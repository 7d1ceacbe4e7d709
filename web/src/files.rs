//! The browser's files as the library's sources and sinks. JavaScript holds the files (`static/worker-models.js`,
//! `static/worker-storage.js`). Only the byte ranges in use are in wasm memory.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use aquatint::checkpoint::{Checkpoint, Sink, Source, belongs};
use aquatint::{Error, Result};
use futures::future::LocalBoxFuture;
use js_sys::{Array, Uint8Array};
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// A file that can be read by byte ranges. It is on disk, behind HTTP, or in the private file system.
    pub type JsFile;
    #[wasm_bindgen(method, getter)]
    fn name(this: &JsFile) -> String;
    #[wasm_bindgen(method, getter)]
    fn size(this: &JsFile) -> f64;
    #[wasm_bindgen(method, catch)]
    async fn read(this: &JsFile, start: f64, end: f64) -> std::result::Result<JsValue, JsValue>;

    /// This page's part of the browser's private file system.
    pub type JsStorage;
    /// Creates a folder and replaces an older one of the same name.
    #[wasm_bindgen(method, catch)]
    async fn create(this: &JsStorage, folder: &str) -> std::result::Result<JsValue, JsValue>;
    /// Lists the files of a committed folder.
    #[wasm_bindgen(method, catch)]
    async fn files(this: &JsStorage, folder: &str) -> std::result::Result<JsValue, JsValue>;
    /// Removes a folder if it exists.
    #[wasm_bindgen(method, catch)]
    async fn remove(this: &JsStorage, folder: &str) -> std::result::Result<JsValue, JsValue>;

    /// A folder that is being written.
    type JsFolder;
    /// The bytes that are still free; NaN if unknown.
    #[wasm_bindgen(method, getter)]
    fn available(this: &JsFolder) -> f64;
    #[wasm_bindgen(method, js_name = create, catch)]
    async fn start_file(this: &JsFolder, file: &str) -> std::result::Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn write(this: &JsFolder, chunk: &[u8]) -> std::result::Result<(), JsValue>;
    #[wasm_bindgen(method, catch)]
    fn commit(this: &JsFolder) -> std::result::Result<(), JsValue>;
    #[wasm_bindgen(method)]
    fn abort(this: &JsFolder);

    type JsError;
    #[wasm_bindgen(method, getter)]
    fn name(this: &JsError) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn message(this: &JsError) -> Option<String>;
}

/// Converts a value that JavaScript threw to an I/O error.
fn thrown(value: JsValue) -> io::Error {
    let error: JsError = value.unchecked_into();
    let message = error.message().unwrap_or_else(|| "no reason was given".to_owned());
    match error.name().as_deref() {
        Some("QuotaExceededError") => io::Error::new(io::ErrorKind::StorageFull, message),
        _ => io::Error::other(message),
    }
}

struct RangeSource {
    name: String,
    file: JsFile,
}

impl Source for RangeSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.file.size() as u64
    }

    fn read(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Cow<'_, [u8]>>> {
        Box::pin(async move {
            let bytes =
                self.file.read(range.start as f64, range.end as f64).await.map_err(|e| self.refused(thrown(e)))?;
            let bytes: Uint8Array = bytes.unchecked_into();
            if u64::from(bytes.length()) != range.end - range.start {
                let found = format!("{} bytes for the range {range:?}", bytes.length());
                return Err(self.refused(io::Error::new(io::ErrorKind::UnexpectedEof, found)));
            }
            Ok(Cow::Owned(bytes.to_vec()))
        })
    }
}

impl RangeSource {
    fn refused(&self, source: io::Error) -> Error {
        let remedy = "the file may have changed or the connection may be down; open the model again".into();
        Error::Io { path: PathBuf::from(&self.name), action: "read", source, remedy }
    }
}

/// Opens the checkpoint in `files`. Files that do not belong to a checkpoint are ignored. `place` names it in messages.
///
/// Errors: a file that is missing, cannot be read, or does not describe a supported model.
pub async fn open_checkpoint(place: &str, files: Vec<JsFile>) -> Result<Checkpoint> {
    let all = files.into_iter().map(|file| RangeSource { name: file.name(), file });
    let (mut sources, others): (Vec<_>, Vec<_>) = all.partition(|source| belongs(&source.name));
    if sources.is_empty() {
        // A model in one file.
        sources = others.into_iter().filter(|source| source.name.ends_with(".gguf")).collect();
    }
    let boxed = sources.into_iter().map(|source| Box::new(source) as Box<dyn Source>);
    Checkpoint::from_sources(place, boxed.collect()).await
}

struct FolderSink {
    folder: JsFolder,
}

impl Sink for FolderSink {
    fn name(&self) -> &str {
        "this site's storage"
    }

    fn available(&self) -> io::Result<Option<u64>> {
        let bytes = self.folder.available();
        Ok(bytes.is_finite().then_some(bytes as u64))
    }

    fn create<'a>(&'a mut self, file: &'a str) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.folder.start_file(file).await.map(drop).map_err(thrown) })
    }

    fn write<'a>(&'a mut self, chunk: &'a [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.folder.write(chunk).map_err(thrown) })
    }

    fn commit(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.folder.commit().map_err(thrown) })
    }

    fn abort(&mut self) {
        self.folder.abort();
    }
}

/// Creates a folder in `storage` and returns a sink that writes to it. Errors: the browser refuses the folder.
pub async fn create_folder(storage: &JsStorage, folder: &str) -> Result<Box<dyn Sink>> {
    let folder = storage.create(folder).await.map_err(|e| storage_error("create a folder in", e))?;
    Ok(Box::new(FolderSink { folder: folder.unchecked_into() }))
}

/// Returns the files of a committed folder. Errors: the folder cannot be listed.
pub async fn written_files(storage: &JsStorage, folder: &str) -> Result<Vec<JsFile>> {
    let files = storage.files(folder).await.map_err(|e| storage_error("list", e))?;
    Ok(files.unchecked_into::<Array>().iter().map(JsCast::unchecked_into).collect())
}

/// Returns the name and the size in bytes of each file.
pub fn listing(files: &[JsFile]) -> Vec<(String, u64)> {
    files.iter().map(|file| (file.name(), file.size() as u64)).collect()
}

/// Removes a folder if it exists. Errors: the browser refuses to remove it.
pub async fn remove_folder(storage: &JsStorage, folder: &str) -> Result<()> {
    storage.remove(folder).await.map(drop).map_err(|e| storage_error("remove a folder of", e))
}

fn storage_error(action: &'static str, value: JsValue) -> Error {
    let remedy = "private windows and strict settings may forbid it; open the page in an ordinary window".into();
    Error::Io { path: PathBuf::from("this site's storage"), action, source: thrown(value), remedy }
}
