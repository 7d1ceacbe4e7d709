// The main script of Aquatint's page. It keeps the state, enables the controls that can be used, and passes calls and events on.
// The worker does the work (client.js is the connection to it). Each section of the page has a module of its own.

import { CalibrationText } from './calibration.js';
import { Client } from './client.js';
import { byId, make, Message } from './dom.js';
import { bytes, count, duration, whole } from './format.js';
import { Generate } from './generate.js';
import { notes, Options } from './options.js';
import { Progress } from './progress.js';
import { ResultView } from './result.js';
import { droppedFiles, modelFiles, pickedFiles, remoteSource } from './sources.js';
import { showStart, showStartFailure } from './status.js';

const PLAN_DELAY = 200; // milliseconds after the last edit

const state = {
  started: false, // whether the worker has answered once
  gpu: undefined, // undefined until the worker has answered, null if there is none
  model: null,
  source: null, // the source of `model`
  plan: null, // the plan for the current options; null until the worker has answered
  busy: null, // 'start' | 'open' | 'run' | 'generate'
  canGenerate: false, // whether the worker has the original and the quantized model
};

const message = new Message();
const client = new Client({ onEvent, onDeath });
const progress = new Progress();
const result = new ResultView(message);
const options = new Options(() => planSoon(PLAN_DELAY));
const calibration = new CalibrationText({ onChange: () => refresh(), message });
const generate = new Generate({ client, run: (work) => busyWith('generate', 'generate', work) });

function onEvent(event) {
  if (event.event === 'token') generate.take(event);
  else progress.take(event);
}

/** Shows that the worker stopped. During a call, `start` included, its rejection shows it, and this function does nothing. */
function onDeath(failure) {
  if (state.started && !state.busy) busyWith('start', 'run', () => Promise.reject(failure));
}

/** Runs `work` with the page's controls disabled. An error is shown in `slot`. If the worker is broken, it is restarted. */
async function busyWith(kind, slot, work) {
  if (state.busy) return;
  const focused = document.activeElement;
  message.clear();
  state.busy = kind;
  refresh();
  try {
    await work();
  } catch (error) {
    if (error.kind !== 'cancelled') message.show(slot, error);
    if (needsRestart(kind, error)) await restart(kind);
  } finally {
    state.busy = null;
    refresh();
    if (document.activeElement === document.body && focused !== document.body) focused.focus({ preventScroll: true });
  }
}

/**
 * Tells whether an error needs a new worker. A lost GPU or a broken wasm instance does. A failed text generation does not, because
 * a restart would lose the result.
 */
function needsRestart(kind, error) {
  return !client.worker || error.kind === 'lost' || (error.kind === 'internal' && kind !== 'generate');
}

/** Starts a new worker and opens the model again, unless opening it caused the failure. */
async function restart(kind) {
  const { source } = state;
  state.model = null;
  state.canGenerate = false;
  try {
    await startWorker();
    if (kind !== 'open' && source && state.gpu) adopt(await client.call('open', { source }), source);
  } catch (error) {
    message.show('model', error);
  }
  byId('model-summary').hidden = state.model === null;
  planSoon(0);
}

async function startWorker() {
  const started = await client.start();
  Object.assign(state, { started: true, gpu: started.gpu });
  showStart(started);
}

// Model

async function open(source, label) {
  if (state.busy || !(await mayDiscard())) return;
  await busyWith('open', 'model', async () => {
    Object.assign(state, { model: null, source: null, plan: null });
    options.showPlan(null);
    const summary = byId('model-summary');
    summary.hidden = false;
    summary.replaceChildren(make('p', {}, `Opening ${label} …`));
    try {
      await starting;
      await dropResult();
      adopt(await client.call('open', { source }), source);
    } finally {
      summary.hidden = state.model === null;
    }
  });
  planSoon(0);
}

function adopt(model, source) {
  Object.assign(state, { model, source });
  options.fit(model);
  const facts = [
    ['Family', model.family],
    ['Parameters', count(model.parameters)],
    ['Blocks', whole(model.blocks)],
    ['Width', `${whole(model.hidden)}, inside ${whole(model.widest)}`],
    ['Vocabulary', whole(model.vocab)],
    ['Context', `${whole(model.context)} tokens`],
    ['Size', `${bytes(model.bytes)} in ${model.dtype}`],
  ].map(([name, value]) => make('div', {}, make('dt', {}, name), make('dd', {}, value)));
  const files = model.files.map((file) => make('li', {}, `${file.name} `, make('span', { className: 'aside' }, bytes(file.bytes))));
  byId('model-summary').replaceChildren(
    make('h3', {}, model.name),
    make('dl', { className: 'facts' }, ...facts),
    ...notes(model),
    make('details', {}, make('summary', {}, `${model.files.length} files`), make('ul', { className: 'files' }, ...files)),
  );
}

/** Opens the source that `find` returns, or shows the error that it throws. */
async function openFound(find, label) {
  let source;
  try {
    source = await find();
  } catch (error) {
    message.show('model', error);
    return;
  }
  await open(source, label);
}

function listenForModels() {
  byId('use-bundled').addEventListener('click', () => open({ kind: 'bundled' }, 'the bundled model'));
  byId('drop-zone').addEventListener('click', () => byId('file-input').click());
  byId('choose-folder').addEventListener('click', () => byId('folder-input').click());
  for (const id of ['file-input', 'folder-input']) {
    byId(id).addEventListener('change', async ({ target }) => {
      if (target.files.length > 0) await openFound(() => modelFiles(pickedFiles(target)), 'the files');
      target.value = ''; // so that the same files can be chosen again
    });
  }
  byId('hub-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const id = byId('hub-id').value.trim();
    openFound(() => remoteSource(id, { hub: byId('hub-base').value, revision: byId('hub-revision').value }), id);
  });
}

/** Accepts files that are dropped on the page. In the calibration section they are a text, elsewhere a model. */
function listenForDrops() {
  const zone = byId('drop-zone');
  const ours = (event) => event.dataTransfer?.types.includes('Files');
  document.addEventListener('dragover', (event) => {
    if (!ours(event)) return;
    event.preventDefault();
    zone.classList.toggle('over', !state.busy && !event.target.closest?.('#calibration'));
  });
  document.addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) zone.classList.remove('over');
  });
  document.addEventListener('drop', (event) => {
    if (!ours(event)) return;
    event.preventDefault();
    zone.classList.remove('over');
    if (state.busy) return;
    if (event.target.closest?.('#calibration')) {
      calibration.load(event.dataTransfer.files[0]);
      return;
    }
    const found = droppedFiles(event.dataTransfer); // not later: the items are gone after the event
    openFound(async () => modelFiles(await found), 'the files');
  });
}

// Options

let planTimer = 0;
let plans = 0;

/** Asks the worker for a plan of the options, after `delay` milliseconds without another edit. */
function planSoon(delay) {
  clearTimeout(planTimer);
  plans += 1;
  state.plan = null;
  message.clear('options');
  const mistake = options.mistake();
  if (mistake) options.showMistake(mistake);
  else if (!state.model || !state.gpu || state.model.problems.length > 0) options.showPlan(null);
  else planTimer = setTimeout(plan, delay, plans);
  refresh();
}

async function plan(number) {
  try {
    const found = await client.call('plan', { options: options.read() });
    if (number !== plans) return;
    state.plan = found;
    options.showPlan(found, state.gpu);
  } catch (error) {
    if (number !== plans) return;
    options.showPlan(null);
    message.show('options', error);
  }
  refresh();
}

// Run

async function run() {
  if (state.busy || !(await mayDiscard())) return;
  await busyWith('run', 'run', async () => {
    await dropResult();
    const request = { options: options.read(), calibration: calibration.read(), compare: options.compare };
    progress.begin(state.model.blocks, { propagates: request.options.alpha !== 'off', compare: request.compare });
    byId('cancel').focus();
    try {
      const value = await client.call('run', request);
      progress.end(`Finished in ${duration(value.seconds)}.`);
      await showResult(value, request.options);
    } catch (error) {
      progress.end(error.kind === 'cancelled' ? 'Cancelled; nothing was kept.' : 'Ended by an error; nothing was kept.');
      throw error;
    }
  });
  if (result.result) byId('result-title').focus();
  else byId('start').focus();
}

async function showResult(value, used) {
  result.show(value, { model: state.model, options: used });
  generate.reset(state.model.context);
  state.canGenerate = true;
  try {
    result.offer(await client.call('files'));
  } catch (error) {
    message.show('result', error);
  }
}

/** Resolves with whether the result may be discarded. Asks the user only if the checkpoint was not downloaded. */
function mayDiscard() {
  if (!result.unsaved) return Promise.resolve(true);
  const dialog = byId('discard-dialog');
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'discard'), { once: true });
  });
}

async function dropResult() {
  if (!result.result) return;
  result.clear();
  state.canGenerate = false;
  await client.call('discard');
}

function listenForRuns() {
  byId('start').addEventListener('click', run);
  byId('cancel').addEventListener('click', () => {
    byId('cancel').disabled = true;
    byId('progress-text').textContent = 'Cancelling …';
    client.call('cancel').catch(() => {}); // the run shows the error
  });
  byId('discard-keep').addEventListener('click', () => byId('discard-dialog').close());
  byId('discard-confirm').addEventListener('click', () => byId('discard-dialog').close('discard'));
  window.addEventListener('beforeunload', (event) => {
    if (state.busy === 'run') event.preventDefault();
  });
}

// Controls

function refresh() {
  const idle = state.busy === null;
  for (const id of ['model-fields', 'calibration-fields', 'option-fields']) byId(id).disabled = !idle;
  for (const id of ['generate-fields', 'generate']) byId(id).disabled = !idle || !state.canGenerate;
  const obstacle = whyNot();
  byId('start').disabled = !idle || obstacle !== '';
  byId('start-note').textContent = idle ? obstacle : '';
  byId('cancel').disabled = state.busy !== 'run';
}

/** Returns a sentence that says why a run cannot start. Empty if it can. */
function whyNot() {
  const { gpu, model, plan: planned } = state;
  if (gpu === undefined) return 'Looking for a GPU …';
  if (gpu === null) return 'There is no GPU to run on; the top of the page says what to do.';
  if (!model) return 'Open a model first.';
  if (model.problems.length > 0) return 'This model cannot be quantized here.';
  if (options.mistake()) return 'Correct the options first.';
  if (!calibration.read()) return calibration.missing;
  if (!planned) return 'Waiting for the estimate.';
  return planned.problems.length > 0 ? 'These options will not work here.' : '';
}

listenForModels();
listenForDrops();
listenForRuns();
refresh();
const starting = startWorker().catch((failure) => {
  state.gpu = null;
  showStartFailure(failure);
}).finally(refresh);
