// The result section of a run: numbers, plots, tables, and the downloads of the checkpoint and the report.

import { Chart } from './charts.js';
import { byId, make, row } from './dom.js';
import { bytes, change, count, decimal, duration, perplexity, whole } from './format.js';
import { tarBlob } from './tar.js';

export class ResultView {
  constructor(message) {
    this.message = message;
    this.result = null;
    this.files = [];
    this.urls = [];
    this.unsaved = false; // whether there is a checkpoint that was not downloaded
    this.alphaChart = new Chart(byId('alpha-plot'), layerSpec('Propagation strength α of each layer', { label: 'α', max: 1 }, 2));
    this.errorChart = new Chart(byId('layer-plot'), layerSpec('Relative error of each layer', { label: 'Error', scale: 'log' }, 2));
    byId('download-tar').addEventListener('click', () => { this.unsaved = false; });
    byId('save-report').addEventListener('click', () => this.saveReport());
    byId('save-folder').addEventListener('click', () => this.saveFolder());
    byId('save-folder').hidden = !('showDirectoryPicker' in window);
  }

  /** Shows the worker's result. `options` are those of the run; `model` is the summary of its model. */
  show(result, { model, options }) {
    this.result = result;
    this.unsaved = true;
    this.name = checkpointName(model.name, options);
    byId('result').hidden = false;
    byId('save-note').textContent = '';
    this.numbers(result, options);
    this.layers(result.layers);
  }

  numbers({ perplexity: ppl, bytes: size, memory, seconds, layers }, options) {
    const cell = (id, text) => { byId(id).textContent = text; };
    cell('ppl-original', perplexity(ppl.original));
    cell('ppl-quantized', perplexity(ppl.quantized));
    cell('change-quantized', change(ppl.original, ppl.quantized));
    cell('bytes-before', bytes(size.before));
    cell('bytes-after', bytes(size.after));
    byId('row-plain').hidden = ppl.plain === null;
    cell('ppl-plain', ppl.plain === null ? '' : perplexity(ppl.plain));
    cell('change-plain', ppl.plain === null ? '' : change(ppl.original, ppl.plain));
    cell('bytes-plain', bytes(size.after));
    const share = `${Math.round((size.after / size.before) * 100)} %`;
    cell('result-sentence', `${options.bits} bits: ${bytes(size.before)} became ${bytes(size.after)}, ${share} of it, and perplexity went from `
      + `${perplexity(ppl.original)} to ${perplexity(ppl.quantized)}${gain(ppl)}.`);
    const guarded = layers.filter((layer) => layer.guarded).length;
    const kept = guarded > 0 ? ` ${whole(guarded)} of ${whole(layers.length)} layers were left uncorrected, because correcting them made held-out text worse.` : '';
    cell('result-facts', `Measured on ${whole(ppl.tokens)} tokens, in ${duration(seconds)}. WebAssembly used ${bytes(memory.wasmPeak)} of memory at its `
      + `peak, the GPU about ${bytes(memory.deviceEstimate)}.${kept}`);
  }

  layers(layers) {
    const point = (value, index) => ({ x: index + 1, y: value, label: layers[index].name });
    const points = (pick) => layers.map((layer, index) => point(pick(layer), index)).filter(({ y }) => Number.isFinite(y));
    const series = (name, style, pick) => ({ name, style, line: false, points: points(pick) });
    const some = (all) => all.filter((one) => one.points.length > 0);
    const guarded = series('Left uncorrected', 3, (layer) => (layer.guarded ? layer.alpha : NaN));
    this.alphaChart.draw(
      some([series('Used', 0, (layer) => (layer.guarded ? NaN : layer.alpha)), series('Best on held-out text', 2, (layer) => layer.alphaOptimal ?? NaN), guarded]),
      layerSpec('Propagation strength α of each layer', { label: 'α', max: 1 }, layers.length),
    );
    const heldOut = layers.some((layer) => layer.errorHeldOut !== null);
    this.errorChart.draw(
      some([
        heldOut ? series('Held-out text', 0, (layer) => layer.errorHeldOut ?? NaN) : series('Fitted text', 0, (layer) => layer.errorFitted),
        series('Held-out text, uncorrected', 1, (layer) => layer.errorUncorrected ?? NaN),
      ]),
      layerSpec('Relative error of each layer', { label: 'Error', scale: 'log' }, layers.length),
    );
    byId('layer-table').tBodies[0].replaceChildren(...layers.map((layer) => row(
      layer.name,
      layer.guarded ? `† ${decimal(layer.alpha)}` : decimal(layer.alpha),
      ...[layer.alphaOptimal, layer.errorFitted, layer.errorHeldOut, layer.errorUncorrected].map(decimal),
    )));
  }

  /** Makes download links for the written files, [{name, file}]. The files are not read. */
  offer(files) {
    this.files = files;
    const total = files.reduce((sum, { file }) => sum + file.size, 0);
    const tar = byId('download-tar');
    try {
      // A model in one file needs no archive around it.
      const [only, ...others] = files;
      const single = others.length === 0;
      const ending = only.name.slice(only.name.lastIndexOf('.'));
      tar.href = this.url(single ? only.file : tarBlob(this.name, files));
      tar.download = single ? `${this.name}${ending}` : `${this.name}.tar`;
      tar.textContent = `Download ${single ? 'model' : 'checkpoint'}, ${bytes(total)}`;
      tar.hidden = false;
    } catch (error) {
      tar.hidden = true;
      this.message.show('result', error);
    }
    const waiting = new Set(files.map(({ name }) => name));
    byId('download-files').replaceChildren(...files.map(({ name, file }) => {
      const link = make('a', { href: this.url(file), download: name }, name);
      link.addEventListener('click', () => {
        waiting.delete(name);
        if (waiting.size === 0) this.unsaved = false;
      });
      return make('li', {}, link, ` ${bytes(file.size)}`);
    }));
  }

  url(blob) {
    this.urls.push(URL.createObjectURL(blob));
    return this.urls.at(-1);
  }

  saveReport() {
    const url = URL.createObjectURL(new Blob([this.result.report], { type: 'application/json' }));
    make('a', { href: url, download: `${this.name}-report.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  /** Saves the files to a new folder below the chosen one, so that no file there is overwritten. */
  async saveFolder() {
    const note = byId('save-note');
    this.message.clear('result');
    try {
      const parent = await window.showDirectoryPicker({ id: 'aquatint', mode: 'readwrite' });
      const folder = await newFolder(parent, this.name);
      for (const [index, { name, file }] of this.files.entries()) {
        note.textContent = `Saving ${index + 1} of ${this.files.length}: ${name} …`;
        const handle = await folder.getFileHandle(name, { create: true });
        await file.stream().pipeTo(await handle.createWritable());
      }
      this.unsaved = false;
      note.textContent = `Saved ${count(this.files.length)} files in ${folder.name}.`;
    } catch (error) {
      note.textContent = '';
      if (error.name === 'AbortError') return; // the user closed the picker
      this.message.show('result', new Error(`The folder could not be written (${error.message}); choose another, or download the .tar`));
    }
  }

  /** Removes the result from the page. The worker removes the files. */
  clear() {
    byId('result').hidden = true;
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls = [];
    this.files = [];
    this.result = null;
    this.unsaved = false;
  }
}

function gain({ quantized, plain }) {
  if (plain === null) return '';
  return quantized < plain ? `; without error propagation it would be ${perplexity(plain)}` : `; error propagation did not help here (${perplexity(plain)} without)`;
}

function layerSpec(title, y, layers) {
  return { title, x: { label: 'Layer, in order', min: 1, max: Math.max(2, layers) }, y, empty: 'There is nothing to show.' };
}

/** "HuggingFaceTB/SmolLM2-135M" → "SmolLM2-135M-w4-gptq". A valid folder name on every system, and short enough for tar. */
function checkpointName(model, { bits, format }) {
  const last = model.split('/').filter(Boolean).at(-1) ?? '';
  const clean = last.replace(/[^\w.-]+/g, '-').replace(/^[.-]+/, '').slice(0, 48) || 'model';
  return `${clean}-w${bits}-${format}`;
}

async function newFolder(parent, name) {
  for (let number = 1; ; number += 1) {
    const candidate = number === 1 ? name : `${name}-${number}`;
    const taken = await parent.getDirectoryHandle(candidate).then(() => true, (error) => error.name !== 'NotFoundError');
    if (!taken) return parent.getDirectoryHandle(candidate, { create: true });
    if (number === 99) throw new Error(`there are 99 folders called ${name} already`);
  }
}
