// The section of the page that chooses the calibration text. page.js creates it and sends its text to the worker.

import { byId } from './dom.js';
import { whole } from './format.js';
import { readText } from './sources.js';

export class CalibrationText {
  /** `onChange` is called after every change of the text. `message` shows the errors of a file. */
  constructor({ onChange, message }) {
    this.onChange = onChange;
    this.message = message;
    this.file = null; // {name, text, note} after the file was read
    this.reads = 0;
    this.fields = byId('calibration-fields');
    byId('calibration-file-input').addEventListener('change', ({ target }) => this.load(target.files[0]));
    byId('calibration-text').addEventListener('input', () => this.changed());
    for (const radio of this.fields.querySelectorAll('[name=calibration]')) radio.addEventListener('change', () => this.changed());
    this.settle();
  }

  get kind() {
    return this.fields.querySelector('[name=calibration]:checked').value;
  }

  /** Returns the text as the worker's `run` takes it, or null if there is no text yet. */
  read() {
    if (this.kind === 'bundled') return { kind: 'bundled' };
    if (this.kind === 'file') return this.file && { kind: 'text', name: this.file.name, text: this.file.text };
    const text = byId('calibration-text').value;
    return text.trim() === '' ? null : { kind: 'text', name: 'the pasted text', text };
  }

  /** A sentence that says what to do when `read` returns null. */
  get missing() {
    return this.kind === 'file' ? 'Choose a calibration file first.' : 'Paste a calibration text first.';
  }

  /** Reads a file from the picker or from a drop. */
  async load(file) {
    if (!file) return;
    byId('calibration-file').checked = true;
    this.message.clear('calibration');
    this.file = null;
    this.reads += 1;
    const read = this.reads;
    try {
      const loaded = await readText(file);
      if (read === this.reads) this.file = loaded;
    } catch (error) {
      if (read === this.reads) this.message.show('calibration', error);
    }
    this.changed();
  }

  changed() {
    this.settle();
    this.onChange();
  }

  settle() {
    for (const part of this.fields.querySelectorAll('[data-for]')) part.hidden = part.dataset.for !== this.kind;
    const info = byId('calibration-info');
    const shown = this.kind === 'file' && this.file !== null;
    info.hidden = !shown;
    if (shown) info.textContent = `${this.file.name}: ${whole(this.file.text.length)} characters. ${this.file.note}`;
  }
}
