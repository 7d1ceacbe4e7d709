// Small line and dot charts in SVG, for progress.js and result.js. This file has the geometry. Colours, dashes and font sizes are
// in style.css (.chart, .series).

import { make } from './dom.js';

const SVG = 'http://www.w3.org/2000/svg';
const MARGIN = { top: 10, right: 14, bottom: 42, left: 58 };
const HEIGHT = 260;
const MARKERS = ['disc', 'square', 'ring', 'cross'];

/**
 * A chart in `container`. It is redrawn when the width of its container changes.
 *
 * `spec`: {title, x: {label, min, max}, y: {label, scale: 'linear' | 'log', min?, max?}, empty: the text of a chart without points}.
 * `series` of `draw`: [{name, style: 0..3, line: bool, points: [{x, y, label}]}]. On a log axis, points at or below 0 are left out.
 */
export class Chart {
  constructor(container, spec) {
    this.container = container;
    this.spec = spec;
    this.series = [];
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.floor(container.clientWidth);
      if (width > 0 && width !== this.width) this.render();
    }).observe(container);
  }

  draw(series, spec = this.spec) {
    this.series = series;
    this.spec = spec;
    this.render();
  }

  render() {
    this.width = Math.floor(this.container.clientWidth);
    if (this.width === 0) return; // the chart is hidden; the observer calls again when it is shown
    this.container.replaceChildren(picture(this.spec, this.series, this.width), legend(this.series));
  }
}

function picture(spec, series, width) {
  const points = series.flatMap((one) => one.points).filter((point) => drawable(spec.y, point.y));
  const x = linear(spec.x.min, spec.x.max, MARGIN.left, width - MARGIN.right);
  const y = vertical(spec.y, points.map((point) => point.y));
  const svg = node('svg', { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img' });
  svg.append(node('title', {}, spec.title), node('desc', {}, describe(spec, series)));
  axes(svg, spec, { x, y, width });
  series.forEach((one) => plot(svg, spec, one, { x, y }));
  if (points.length === 0) {
    svg.append(node('text', { class: 'empty', x: (MARGIN.left + width) / 2, y: HEIGHT / 2 - 16, 'text-anchor': 'middle' }, spec.empty));
  }
  return svg;
}

function axes(svg, spec, { x, y, width }) {
  const bottom = HEIGHT - MARGIN.bottom;
  for (const tick of y.ticks) {
    const at = y.at(tick);
    svg.append(node('line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    svg.append(node('text', { x: MARGIN.left - 8, y: at + 4, 'text-anchor': 'end' }, tickText(tick)));
  }
  const most = Math.max(2, Math.floor((width - MARGIN.left) / 48));
  for (const tick of wholeTicks(spec.x.min, spec.x.max, most)) {
    const at = x(tick);
    svg.append(node('line', { class: 'axis', x1: at, x2: at, y1: bottom, y2: bottom + 4 }));
    svg.append(node('text', { x: at, y: bottom + 18, 'text-anchor': 'middle' }, String(tick)));
  }
  svg.append(node('line', { class: 'axis', x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  const middle = (MARGIN.left + width - MARGIN.right) / 2;
  svg.append(node('text', { class: 'label', x: middle, y: HEIGHT - 6, 'text-anchor': 'middle' }, spec.x.label));
  const turned = { class: 'label', transform: `translate(13 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle' };
  svg.append(node('text', turned, spec.y.label));
}

function plot(svg, spec, series, { x, y }) {
  const group = node('g', { class: `series style-${series.style}` });
  const shown = series.points.filter((point) => drawable(spec.y, point.y));
  if (series.line && shown.length > 1) {
    const path = shown.map((point) => `${x(point.x).toFixed(1)},${y.at(point.y).toFixed(1)}`).join(' ');
    group.append(node('polyline', { points: path }));
  }
  for (const point of shown) {
    const mark = marker(series.style, x(point.x), y.at(point.y));
    mark.append(node('title', {}, `${series.name}, ${point.label}: ${significant(point.y)}`));
    group.append(mark);
  }
  svg.append(group);
}

function marker(style, x, y) {
  const kind = MARKERS[style];
  const [cx, cy] = [x.toFixed(1), y.toFixed(1)];
  if (kind === 'square') return node('rect', { class: 'hollow', x: x - 3, y: y - 3, width: 6, height: 6 });
  if (kind === 'ring') return node('circle', { class: 'hollow', cx, cy, r: 3 });
  if (kind === 'cross') return node('path', { class: 'hollow', d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` });
  return node('circle', { class: 'filled', cx, cy, r: 3 });
}

function legend(series) {
  const entries = series.map((one) => {
    const key = node('svg', { width: 34, height: 14, viewBox: '0 0 34 14', 'aria-hidden': 'true' });
    const group = node('g', { class: `series style-${one.style}` });
    if (one.line) group.append(node('polyline', { points: '1,7 33,7' }));
    group.append(marker(one.style, 17, 7));
    key.append(group);
    return make('li', {}, key, one.name);
  });
  return make('ul', { className: 'legend' }, ...entries);
}

/** Describes the chart in words for screen readers. The page also shows the values in a table. */
function describe(spec, series) {
  const parts = series.filter((one) => one.points.length > 0).map((one) => {
    const values = one.points.map((point) => point.y);
    const [first, last] = [one.points[0], one.points.at(-1)];
    if (one.line) return `${one.name}: from ${significant(first.y)} at ${first.label} to ${significant(last.y)} at ${last.label}`;
    return `${one.name}: ${values.length} values between ${significant(Math.min(...values))} and ${significant(Math.max(...values))}`;
  });
  return parts.length > 0 ? `${spec.y.label} by ${spec.x.label}. ${parts.join('; ')}.` : spec.empty;
}

function drawable(axis, value) {
  return Number.isFinite(value) && (axis.scale !== 'log' || value > 0);
}

function linear(from, to, start, end) {
  const span = to - from || 1;
  return (value) => start + ((value - from) / span) * (end - start);
}

/** Returns {at, ticks} of a vertical axis that covers `values`. `at` maps a value to a coordinate. */
function vertical(axis, values) {
  const [bottom, top] = [HEIGHT - MARGIN.bottom, MARGIN.top];
  if (axis.scale === 'log') {
    const ticks = logTicks(values.length > 0 ? values : [0.1, 1]);
    const map = linear(Math.log10(ticks[0]), Math.log10(ticks.at(-1)), bottom, top);
    return { at: (value) => map(Math.log10(value)), ticks };
  }
  const min = axis.min ?? 0;
  const most = Math.max(...values, axis.max ?? 0) || 1;
  const step = niceStep((most - min) / 4);
  const max = axis.max !== undefined && most <= axis.max ? axis.max : Math.ceil(most / step - 1e-9) * step;
  const ticks = [];
  for (let i = 0; min + i * step <= max * (1 + 1e-9); i += 1) ticks.push(min + i * step);
  return { at: linear(min, max, bottom, top), ticks };
}

/** Returns ticks around all values: 1, 2 and 5 times powers of ten, or for a wide range only powers of ten. */
function logTicks(values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const powers = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);
  const [low, high] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most * 1.0001))];
  if (high - low > 3) return powers(low, high).filter((power) => (power - low) % Math.ceil((high - low) / 7) === 0 || power === high).map((power) => 10 ** power);
  const all = powers(low, high).flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power));
  const first = all.findLastIndex((tick) => tick <= least * 1.0001);
  const last = all.findIndex((tick) => tick >= most && tick > all[first]);
  return all.slice(first, last + 1);
}

/** Returns the least number of the form 1, 2 or 5 times a power of ten that is not below `least`. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= least * (1 - 1e-9));
  return factor * power;
}

function wholeTicks(from, to, most) {
  const step = Math.max(1, niceStep((to - from) / most || 1));
  const ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to; tick += step) ticks.push(tick);
  if (!ticks.includes(from)) ticks.unshift(from);
  return ticks;
}

function tickText(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(0).replace('-', '−');
  return String(Number(value.toPrecision(4)));
}

function significant(value) {
  return String(Number(value.toPrecision(3)));
}

function node(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
