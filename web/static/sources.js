// Sources of models and texts. It turns the user's input (dropped or chosen files, a hub id, an address) into a source that the
// worker opens (worker-models.js).

import { whole } from './format.js';

const LONGEST_TEXT = 16 * 2 ** 20; // bytes; far more than a calibration uses

/**
 * Returns all files of a drop, those in folders included, as [{path, file}]. Call it in the drop handler, because the items are gone
 * after the event.
 */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files].map((file) => ({ path: file.name, file }));
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: entry.fullPath.replace(/^\//, ''), file });
    return;
  }
  if (entry.name.startsWith('.')) return;
  const reader = entry.createReader();
  for (;;) { // a reader returns at most a hundred entries at a time
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) return;
    for (const child of batch) await walk(child, found);
  }
}

/** Returns the files of an <input type="file">, with or without webkitdirectory, as [{path, file}]. */
export function pickedFiles(input) {
  return [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/**
 * Returns the source {kind: 'files', files, name} of the one folder in `found` that holds a config.json. `name` is the folder's name
 * or null. Throws an error with a sentence if there is no such folder or more than one.
 */
export function modelFiles(found) {
  if (found.length === 0) throw new Error('There is no file in what you gave; choose the folder that holds the model’s config.json');
  const folderOf = (path) => path.slice(0, path.lastIndexOf('/') + 1);
  const depth = (folder) => folder.split('/').length;
  const folders = [...new Set(found.filter(({ path }) => /(^|\/)config\.json$/.test(path)).map(({ path }) => folderOf(path)))];
  if (folders.length === 0) {
    throw new Error('There is no config.json among these files; give every file of the model, or the folder that holds them');
  }
  const least = Math.min(...folders.map(depth));
  const nearest = folders.filter((folder) => depth(folder) === least);
  if (nearest.length > 1) {
    const names = nearest.slice(0, 3).map((folder) => folder.replace(/\/$/, '') || 'the files themselves').join(', ');
    throw new Error(`There are ${nearest.length} models in what you gave (${names}${nearest.length > 3 ? ', …' : ''}); give one of them`);
  }
  const files = found.filter(({ path }) => folderOf(path) === nearest[0]).map(({ file }) => file);
  return { kind: 'files', files, name: nearest[0].split('/').at(-2) ?? null };
}

/** Returns the source that a hub id or an address names. Throws an error with a sentence if it is neither. */
export function remoteSource(text, { hub, revision }) {
  const given = text.trim();
  const base = hub.trim().replace(/\/+$/, '');
  if (given === '') throw new Error('Give the name of a model, such as HuggingFaceTB/SmolLM2-135M, or the address of its files');
  if (!parseUrl(base)) throw new Error(`The hub “${base}” is not an address that begins with https://`);
  if (/^https?:\/\//i.test(given)) return addressSource(given, base);
  if (!/^[\w.-]+(\/[\w.-]+)?$/.test(given)) {
    throw new Error(`“${given}” is neither a model’s name such as HuggingFaceTB/SmolLM2-135M nor an address that begins with https://`);
  }
  return { kind: 'hub', id: given, hub: base, revision: revision.trim() || 'main' };
}

/** Reads an address. The address of a model’s page on the hub stands for its id; any other is the folder that holds the files. */
function addressSource(given, hub) {
  const url = parseUrl(given);
  if (!url) throw new Error(`“${given}” is not an address that a browser can read; check it for typing errors`);
  const page = url.origin === parseUrl(hub).origin && url.pathname.match(/^\/([\w.-]+\/[\w.-]+)(?:\/tree\/([^/]+))?\/?$/);
  if (page) return { kind: 'hub', id: page[1], hub, revision: page[2] ? decodeURIComponent(page[2]) : 'main' };
  return { kind: 'url', base: given.replace(/\/config\.json$/, '').replace(/\/+$/, '') };
}

/** Returns the URL if it is one of http or https, else null. */
function parseUrl(text) {
  try {
    const url = new URL(text);
    return /^https?:$/.test(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

/**
 * Reads a calibration file as {name, text, note}. `note` says which parts were left out, or is empty. Throws an error with a
 * sentence if the file cannot be used.
 *
 * Of a .jsonl file, the text is the “text” of each line. The returned name does not end in .jsonl, because the text is plain text.
 */
export async function readText(file) {
  const complete = file.size <= LONGEST_TEXT;
  const buffer = await file.slice(0, LONGEST_TEXT).arrayBuffer().catch(() => {
    throw new Error(`${file.name} cannot be read any more; choose it again`);
  });
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(buffer, { stream: !complete });
  } catch {
    throw new Error(`${file.name} is not UTF-8 text; save it as UTF-8 or choose another file`);
  }
  const notes = [];
  if (!complete) {
    text = text.slice(0, text.lastIndexOf('\n') + 1 || undefined);
    notes.push('Only its first 16 MiB are used.');
  }
  if (!/\.jsonl$/i.test(file.name)) {
    if (text.trim() === '') throw new Error(`${file.name} is empty; choose a file with text`);
    return { name: file.name, text, note: notes.join(' ') };
  }
  const lines = jsonLines(file.name, text);
  return { name: `${file.name} (${whole(lines.count)} texts)`, text: lines.text, note: [lines.note, ...notes].filter(Boolean).join(' ') };
}

function jsonLines(name, content) {
  const texts = [];
  const bad = [];
  let lines = 0;
  content.split('\n').forEach((line, index) => {
    if (line.trim() === '') return;
    lines += 1;
    const text = textOf(line);
    if (text === null) bad.push(index + 1);
    else texts.push(text);
  });
  if (texts.length === 0) {
    throw new Error(`${name} has no line that is a JSON object with a “text” string; choose another file`);
  }
  const were = bad.length === 1 ? `Line ${bad[0]} was` : `${whole(bad.length)} of ${whole(lines)} lines, first line ${bad[0]}, were`;
  const note = bad.length > 0 ? `${were} left out: not a JSON object with a “text” string.` : '';
  return { text: texts.join('\n\n'), count: texts.length, note };
}

function textOf(line) {
  try {
    const { text } = JSON.parse(line);
    return typeof text === 'string' && text.trim() !== '' ? text : null;
  } catch {
    return null;
  }
}
