// The page's worker. It does all work with the GPU and with files. It answers the page's calls (client.js) with the library
// compiled to wasm (web/src), reads models through worker-models.js, and stores results through worker-storage.js.
//
// A call is {id, call, ...arguments}. The answer is {id, ok} or {id, error: {kind, message}}. Events have no id.

import init, { Session, families } from './aquatint_web.js';
import { bundledText, openSource } from './worker-models.js';
import { Storage } from './worker-storage.js';

// The listener is added before anything is awaited. Otherwise the page's first message would be lost.
addEventListener('message', ({ data }) => answer(data));

// A trap of wasm inside a promise leaves its call without an answer. It is thrown again as an error of the worker, so that the page
// sees it and restarts the worker.
addEventListener('unhandledrejection', ({ reason }) => setTimeout(() => { throw reason; }));

let storage = null;
let session = null;

const calls = {
  async start({ page }) {
    const reason = whyNoGpu();
    const [opened] = await Promise.all([openStorage(page), init()]);
    storage = opened;
    session = new Session(postMessage.bind(globalThis), storage);
    const known = { families: families() };
    if (reason !== 'ok') return { ...known, version: '', gpu: null, reason, storage: null };
    const { version, gpu } = await session.start();
    if (gpu) gpu.name ||= await adapterName();
    return { ...known, version, gpu, reason: gpu ? 'ok' : 'no-adapter', storage: await storage.estimate() };
  },

  async open({ source }) {
    const { name, files } = await openSource(source);
    return session.open(name, files);
  },

  plan: ({ options }) => session.plan(options),

  async run({ options, calibration, compare }) {
    const text = calibration.kind === 'bundled' ? await bundledText() : calibration;
    return session.run({ options, calibration: text, compare });
  },

  cancel() {
    session.cancel();
    return null;
  },

  async files() {
    const files = await storage.files('quantized');
    return files.map(({ name, blob }) => ({ name, file: blob }));
  },

  async discard() {
    await session.discard();
    return null;
  },

  generate: (request) => session.generate(request),
};

async function answer({ id, call, ...request }) {
  try {
    postMessage({ id, ok: await calls[call](request) });
  } catch (error) {
    postMessage({ id, error: described(error) });
  }
}

/** Describes an error for the page. Failures of the library and of files have a sentence to show. Any other error is a bug. */
function described(error) {
  if (typeof error.kind === 'string') return { kind: error.kind, message: error.message };
  if (error instanceof WebAssembly.RuntimeError) {
    const message = 'The program broke down (out of memory, or a bug); reload the page, choose fewer samples, and please report it if it happens again.';
    return { kind: 'internal', message };
  }
  return { kind: 'internal', message: `Something unexpected happened (${error.message ?? error}); reload the page, and please report this.` };
}

function whyNoGpu() {
  if (!isSecureContext) return 'insecure';
  return navigator.gpu ? 'ok' : 'no-webgpu';
}

/** Names the GPU by vendor and architecture. Some browsers hide its description but tell these. */
async function adapterName() {
  const { vendor, architecture } = (await navigator.gpu.requestAdapter())?.info ?? {};
  return [vendor, architecture].filter(Boolean).join(' ') || 'a GPU that the browser does not name';
}

/** Opens the storage. Without it the page can still open models, and a run reports that the storage is missing. */
async function openStorage(page) {
  try {
    return await Storage.open(page);
  } catch (error) {
    return Storage.missing(error);
  }
}
