// The status line in the page's header. It names the GPU and its largest array, or says what to do if there is none.

import { byId, make } from './dom.js';
import { bytes } from './format.js';

const REASONS = {
  insecure: 'This page did not come over https or from localhost. Browsers offer WebGPU to no other; serve it again from one of these. If it still fails there:',
  'no-webgpu': 'This browser has no WebGPU, or has it turned off. It is there in:',
  'no-adapter': 'This browser has WebGPU but found no GPU that it may use. Update the graphics driver, turn on hardware acceleration, and compare:',
};

/** Shows the answer to the worker's `start`. */
export function showStart({ version, families, gpu, reason, storage }) {
  byId('version').textContent = version ?? '';
  byId('families').textContent = `Families: ${families.join(', ')}.`;
  byId('families').hidden = false;
  byId('gpu-help').hidden = gpu !== null;
  if (gpu === null) {
    byId('gpu-reason').textContent = REASONS[reason] ?? REASONS['no-webgpu'];
    say('No GPU for this page: nothing can be quantized here.');
    return;
  }
  const lines = [`${gpu.name || 'A GPU without a name'}. Its largest array is ${bytes(gpu.largestBinding)}${room(storage)}.`];
  if (gpu.software) {
    lines.push('This is a software adapter: the processor plays the GPU, tens of times slower. Good for the bundled model; for others '
      + 'turn on graphics acceleration in the browser’s settings.');
  }
  say(...lines);
}

/** Shows that the worker did not start. */
export function showStartFailure(error) {
  byId('gpu-help').hidden = true;
  say(`${error.message} Load the page again; if that does not help, the page is not installed completely.`);
}

function room(storage) {
  if (!storage?.quota) return '';
  return `; the browser has ${bytes(Math.max(0, storage.quota - storage.usage))} of room for the result`;
}

function say(first, ...rest) {
  const paragraphs = rest.map((line) => make('p', { className: 'note' }, line));
  byId('status').replaceChildren(make('p', {}, first), ...paragraphs);
}
