// The progress section of a run: the bar, the line of text below it, and the plot of the error after each block. It shows the
// events that web/src/progress.rs sends.

import { Chart } from './charts.js';
import { byId, row } from './dom.js';
import { about, decimal } from './format.js';

const STEPS = {
  quantize: 'quantizing',
  compare: 'quantizing without propagation',
  'evaluate-original': 'measuring the original',
  'evaluate-quantized': 'measuring the quantized model',
  'evaluate-compare': 'measuring the one without propagation',
};
const PHASES = {
  load: 'reading weights',
  statistics: 'gathering statistics',
  correct: 'correcting',
  round: 'rounding',
  forward: 'running it',
  write: 'writing',
};

export class Progress {
  constructor() {
    this.bar = byId('progress');
    this.chart = new Chart(byId('error-plot'), spec(1));
    this.reset(1, { propagates: true, compare: false });
  }

  /** Prepares for a run of a model with `blocks` blocks. */
  begin(blocks, kinds) {
    byId('running').hidden = false;
    this.reset(blocks, kinds);
    byId('progress-text').textContent = 'Starting …';
    this.draw();
  }

  reset(blocks, { propagates, compare }) {
    this.blocks = blocks;
    this.names = { qep: propagates ? 'With propagation' : 'Quantized', plain: 'Without propagation' };
    this.errors = compare ? { qep: [], plain: [] } : { qep: [] };
    this.step = { name: 'quantize', index: 0, steps: 1 };
    this.quarter = 0;
    this.bar.value = 0;
  }

  /** Shows an event of the worker. */
  take(message) {
    if (message.event === 'step') this.enter(message);
    else if (message.event === 'progress') this.advance(message);
    else if (message.event === 'point') this.mark(message);
  }

  enter({ step, index, steps }) {
    this.step = { name: step, index, steps };
    this.announce(this.heading());
  }

  heading() {
    const { name, index, steps } = this.step;
    return `Step ${index + 1} of ${steps}, ${STEPS[name] ?? name}`;
  }

  advance({ block, blocks, phase, overall, eta }) {
    this.bar.value = overall;
    const percent = `${Math.floor(overall * 100)} %`;
    const left = eta === null || eta === undefined ? '' : `, ${about(eta)} left`;
    const where = blocks > 0 ? `: block ${Math.min(block + 1, blocks)} of ${blocks}, ${PHASES[phase] ?? phase}` : '';
    byId('progress-text').textContent = `${percent}${left}. ${this.heading()}${where}.`;
    document.title = `${percent} · Aquatint`;
    const quarter = Math.floor(overall * 4);
    if (quarter > this.quarter && quarter < 4) this.announce(`${quarter * 25} % done${left}`);
    this.quarter = quarter;
  }

  mark({ series, block, error }) {
    this.errors[series] ??= [];
    this.errors[series][block] = error;
    this.draw();
  }

  /** Shows how the run ended. Also called after an error. */
  end(text) {
    document.title = 'Aquatint';
    byId('progress-text').textContent = text;
    this.announce(text);
  }

  announce(text) {
    byId('progress-live').textContent = text;
  }

  draw() {
    const points = (errors) => [...errors.entries()].filter(([, y]) => y !== undefined)
      .map(([block, y]) => ({ x: block + 1, y, label: `block ${block + 1}` }));
    const series = Object.entries(this.errors)
      .map(([key, errors], style) => ({ name: this.names[key], style, line: true, points: points(errors) }));
    this.chart.draw(series, spec(this.blocks));
    this.table();
  }

  table() {
    const { qep, plain } = this.errors;
    const [, withHead, withoutHead] = byId('error-table').tHead.rows[0].cells;
    withHead.textContent = this.names.qep;
    withoutHead.hidden = !plain;
    const count = Math.max(qep.length, plain?.length ?? 0);
    const rows = Array.from({ length: count }, (_, block) => {
      const cells = plain ? [qep[block], plain[block]] : [qep[block]];
      return row(String(block + 1), ...cells.map(decimal));
    });
    byId('error-table').tBodies[0].replaceChildren(...rows);
  }
}

function spec(blocks) {
  return {
    title: 'Relative error of the hidden state after each block',
    x: { label: 'Blocks done', min: 1, max: Math.max(2, blocks) },
    y: { label: 'Relative error' },
    empty: 'No block is done yet.',
  };
}
