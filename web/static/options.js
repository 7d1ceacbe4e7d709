// The form of the options. It checks the entries, offers the group sizes that fit the model, and shows the plan of a run.

import { byId, make } from './dom.js';
import { bytes, whole } from './format.js';

const NUMBERS = ['samples', 'seq-len', 'seed', 'alpha-value', 'descent'];

export class Options {
  /** `onChange` is called after every edit. */
  constructor(onChange) {
    this.form = byId('options-form');
    this.estimate = byId('estimate');
    this.form.addEventListener('submit', (event) => event.preventDefault());
    this.form.addEventListener('input', () => {
      this.settle();
      onChange();
    });
    this.settle();
  }

  /** Updates the fields that depend on others. */
  settle() {
    const alpha = byId('alpha').value;
    byId('alpha-value').hidden = alpha !== 'number';
    byId('alpha-value').disabled = alpha !== 'number';
    byId('compare').disabled = alpha === 'off';
    for (const id of ['act-order', 'descent']) byId(id).disabled = byId('method').value === 'rtn';
    byId('samples').min = alpha === 'auto' ? 2 : 1; // automatic α holds out one sample
    for (const id of NUMBERS) byId(id).ariaInvalid = byId(id).checkValidity() ? null : 'true';
  }

  /** Offers the group sizes and lengths that `model` allows. */
  fit(model) {
    const sizes = model.groupSizes.filter((size) => size > 0);
    const automatic = [128, 64, 32].find((size) => sizes.includes(size));
    const select = byId('group-size');
    const kept = select.value;
    select.replaceChildren(
      make('option', { value: 'auto' }, `Automatic (${automatic ?? 'one grid per row'})`),
      ...sizes.map((size) => make('option', { value: String(size) }, `${size} weights`)),
      ...(model.groupSizes.includes(-1) ? [make('option', { value: '-1' }, 'One grid per row')] : []),
    );
    select.value = [...select.options].some((option) => option.value === kept) ? kept : 'auto';
    const length = byId('seq-len');
    length.max = model.context;
    if (Number(length.value) > model.context) length.value = model.context;
    this.settle();
  }

  /** Returns a sentence about the first invalid entry, or null. */
  mistake() {
    const wrong = NUMBERS.map(byId).find((input) => !input.disabled && !input.checkValidity());
    if (!wrong) return null;
    const label = wrong.labels[0]?.textContent ?? wrong.getAttribute('aria-label');
    const kind = wrong.step === 'any' ? 'number' : 'whole number';
    const found = wrong.value === '' ? 'is empty' : `is ${wrong.value}`;
    return `${label} ${found}; give a ${kind} from ${wrong.min} to ${wrong.max}.`;
  }

  /** Returns the options as web/src/options.rs reads them. Call it only after `mistake` returned null. */
  read() {
    const group = byId('group-size').value;
    const symmetric = byId('symmetry').value;
    const alpha = byId('alpha').value;
    return {
      method: byId('method').value,
      bits: Number(byId('bits').value),
      groupSize: group === 'auto' ? 'auto' : Number(group),
      symmetric: symmetric === 'auto' ? 'auto' : symmetric === 'true',
      alpha: alpha === 'number' ? Number(byId('alpha-value').value) : alpha,
      samples: Number(byId('samples').value),
      seqLen: Number(byId('seq-len').value),
      seed: Number(byId('seed').value),
      actOrder: byId('act-order').checked,
      grid: byId('grid').value,
      descent: Number(byId('descent').value),
      format: byId('format').value,
    };
  }

  /** Whether to add a run without propagation: it is chosen, and the main run uses propagation. */
  get compare() {
    return byId('compare').checked && byId('alpha').value !== 'off';
  }

  /** Shows a plan. With `null`, hides it. */
  showPlan(plan, gpu) {
    this.estimate.hidden = plan === null;
    if (plan === null) return;
    const limit = gpu ? ` of the ${bytes(gpu.largestBinding)} that this GPU takes` : '';
    const facts = `Needs ${bytes(plan.deviceBytes)} on the GPU, the largest array ${bytes(plan.largestArray)}${limit}. `
      + `Writes ${bytes(plan.outputBytes)}. Calibrates on ${whole(plan.tokens)} tokens, roughly ${bytes(plan.tokens * 4)} of English.`;
    this.estimate.replaceChildren(make('p', { className: 'figures' }, facts), ...notes(plan));
  }

  /** Shows a sentence about an invalid entry in place of the plan. */
  showMistake(text) {
    this.estimate.hidden = false;
    this.estimate.replaceChildren(make('p', { className: 'note strong' }, text));
  }
}

/** Makes paragraphs of the problems and warnings of a plan or a model. */
export function notes({ problems = [], warnings = [] }) {
  return [
    ...problems.map((text) => make('p', { className: 'note strong' }, make('strong', {}, 'Will not work: '), text)),
    ...warnings.map((text) => make('p', { className: 'note' }, make('strong', {}, 'Note: '), text)),
  ];
}
