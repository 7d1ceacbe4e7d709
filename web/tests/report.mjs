// Tests the report pages, which `--report` and `aquatint report` write, in Chromium. A page must make no requests, write nothing to
// the console, fit a phone, be readable in both themes and in print, and have curves in every plot.
//
// Environment: CHROMIUM, PROGRAMS, FIXTURES and ARTEFACTS, as for page.mjs. `cargo xtask test` sets them.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';
import { QUIET } from './flags.mjs';

const { CHROMIUM, PROGRAMS, FIXTURES, ARTEFACTS } = process.env;
const PHONE = 390; // CSS pixels
/** The least contrast ratios of WCAG 2, for text and for the graphics of a plot. */
const CONTRAST = { text: 4.5, graphics: 3 };

function native(...args) {
  return execFileSync(join(PROGRAMS, 'aquatint'), args.map(String), { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

const path = (name) => join(ARTEFACTS, name);
const record = (name) => JSON.parse(readFileSync(path(name)));

/** Quantizes the bundled model and returns its record. */
function quantize(name, ...options) {
  const run = ['--bits', 3, '--samples', 8, '--seq-len', 64, '--device', 'cpu', '--json', path(`${name}.json`), '--report', path(`${name}.html`)];
  native('quantize', '--out', path(`${name}-model`), ...run, ...options);
  return record(`${name}.json`);
}

/** Writes all report pages of this test. */
function write() {
  const auto = quantize('auto', '--evaluate', join(FIXTURES, 'tiny-llama/evaluation.txt'), '--evaluate-windows', 4);
  const off = quantize('off', '--alpha', 'off');
  native('report', path('off.json'), path('auto.json'), '--out', path('two.html'));
  // A large sweep: forty runs with long names, each evaluated on two texts.
  const runs = Array.from({ length: 40 }, (_, index) => {
    const run = structuredClone(index % 2 ? auto : off);
    const evaluation = { windows: 8, seq_len: 64, tokens: 504, original_perplexity: 50, kl: 0.1, top1_agreement: 0.8 };
    run.label = `${run.options.method} 3 bits, groups of 32, seed ${index} <i>&amp;</i>`;
    run.blocks.forEach((block) => { block.error *= 1 + index / 10; });
    run.evaluations = ['texts/wiki.txt', 'texts/news.txt'].map((text) => ({ ...evaluation, text, perplexity: 52 + index }));
    return run;
  });
  writeFileSync(path('sweep.json'), JSON.stringify({ title: 'A sweep </script>', command: 'sweep', aquatint: auto.aquatint, runs }));
  native('report', path('sweep.json'), '--out', path('sweep.html'));
  // A record of an older version, of a run with one window. It has no held-out errors, sizes or evaluations.
  const old = structuredClone(off);
  for (const field of ['label', 'model', 'sizes', 'evaluations']) delete old[field];
  for (const layer of old.layers) layer.error_held_out = null;
  writeFileSync(path('old.json'), JSON.stringify(old));
  native('report', path('old.json'), '--out', path('old.html'));
}

/** Returns the coordinates and shapes of every SVG of the page. */
const plots = (page) => page.evaluate(() => [...document.querySelectorAll('svg')].map((svg) => ({
  kind: svg.classList[0],
  name: svg.getAttribute('aria-label'),
  shown: svg.getClientRects().length > 0 || svg.closest('details:not([open])') !== null,
  curves: [...svg.querySelectorAll('polyline.stroke:is([class*="series"], .reference)')].map((line) => line.getAttribute('points').trim().split(' ').length),
  points: svg.querySelectorAll('circle').length,
  coordinates: [...svg.querySelectorAll('*')].flatMap((shape) => ['points', 'd', 'x', 'y', 'x1', 'y1', 'x2', 'y2', 'cx', 'cy', 'r', 'width', 'height'].map((name) => shape.getAttribute(name)).filter(Boolean)).join(' '),
})));

/** Measures the contrast of axis text, ordinary text and graphics with their backgrounds. */
const contrasts = (page) => page.evaluate(() => {
  const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const channels = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
    return 'white';
  };
  const measure = (kind, selector, property) => [...document.querySelectorAll(selector)].map((element) => {
    const [a, b] = [getComputedStyle(element)[property], background(element)].map(luminance).sort((x, y) => y - x);
    return { kind, of: `${element.tagName} ${element.getAttribute('class') ?? ''}`, ratio: (a + 0.05) / (b + 0.05) };
  });
  return [
    ...measure('text', '.plot text', 'fill'),
    ...measure('text', 'p, h1, h2, h3, dt, dd, td, th, summary, figcaption, li, code', 'color'),
    ...measure('graphics', '.stroke:is([class*="series"], .reference, .axis)', 'stroke'),
    ...measure('graphics', '.fill:is([class*="series"], .reference)', 'fill'),
  ];
});

function checkContrast(measured, name) {
  const weak = measured.filter(({ kind, ratio }) => !(ratio >= CONTRAST[kind]));
  assert.deepEqual(weak.slice(0, 3), [], `${name}: too little contrast`);
  assert.ok(measured.some(({ of }) => of.startsWith('text')) && measured.length > 100, 'there is something to see');
}

async function checkPlots(page, file) {
  const found = await plots(page);
  for (const { kind, name, shown, coordinates, curves, points } of found) {
    const numbers = coordinates.match(/[^\s,MLHVZ]+/gi) ?? [];
    assert.ok(numbers.length > 0 && numbers.every((number) => Number.isFinite(Number(number))), `${file}: ${name ?? kind} has finite coordinates`);
    if (kind !== 'plot') continue;
    assert.ok(name, 'a plot has a name for those who do not see it');
    assert.ok(curves.length > 0 && points > 0, `${file}: ${name} is empty`);
    assert.ok(shown || name.startsWith('Relative error'), `${file}: ${name} is not shown`);
  }
  return found.filter(({ kind }) => kind === 'plot');
}

/** Returns the texts of plots that are cut off or overlap. */
const crowded = (page) => page.evaluate(() => [...document.querySelectorAll('svg.plot')].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll('text')].map((text) => ({ text: text.textContent.trim(), box: text.getBoundingClientRect() }));
  const seen = boxes.filter(({ box }) => box.width > 0);
  const frame = svg.getBoundingClientRect();
  const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 4 || b.bottom <= a.top + 4;
  const touching = seen.flatMap((a, at) => seen.slice(at + 1).filter((b) => !apart(a.box, b.box)).map((b) => `${a.text} on ${b.text}`));
  const cut = seen.filter(({ box }) => box.left < frame.left - 1 || box.right > frame.right + 1).map(({ text }) => `${text} cut off`);
  return [...touching, ...cut];
}));

async function examine(browser, file, expected) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  const [requests, said] = [[], []];
  page.on('request', (request) => requests.push(request.url()));
  page.on('console', (message) => said.push(message.text()));
  page.on('pageerror', (error) => said.push(error.message));
  const address = pathToFileURL(path(file)).href;
  await page.goto(address);
  const name = file.replace('.html', '');
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const width of [1280, PHONE]) {
      await page.setViewportSize({ width, height: 900 });
      await page.screenshot({ path: path(`report-${name}-${colorScheme}-${width}.png`), fullPage: true });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${file} is ${overflow} px wider than a window of ${width}`);
      assert.deepEqual(await crowded(page), [], `${file} at ${width}: text in the way of text`);
      const small = await page.evaluate(() => Math.min(...[...document.querySelectorAll('.plot text')].map((text) => {
        const { width, height } = text.ownerSVGElement.getBoundingClientRect();
        return height > 0 ? parseFloat(getComputedStyle(text).fontSize) * width / text.ownerSVGElement.viewBox.baseVal.width : Infinity;
      })));
      assert.ok(small >= 10, `${file} at ${width}: axis text of ${small.toFixed(1)} px`);
    }
    checkContrast(await contrasts(page), `${file}, ${colorScheme}`);
  }
  // All folded parts are opened, at the width of a phone.
  await page.evaluate(() => document.querySelectorAll('details').forEach((details) => { details.open = true; }));
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${file}, all opened, fits a phone`);
  const found = await checkPlots(page, file);
  assert.equal(found.length, expected, `${file}: plots`);
  await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
  await page.setViewportSize({ width: 700, height: 900 });
  checkContrast(await contrasts(page), `${file}, printed from a dark theme`);
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), 'rgb(255, 255, 255)', 'paper is white');
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${file} fits a sheet`);
  await page.pdf({ path: path(`report-${name}.pdf`), format: 'A4' });
  assert.ok(statSync(path(`report-${name}.pdf`)).size > 10_000);
  const data = JSON.parse(await page.locator('#aquatint-document').textContent());
  assert.deepEqual(requests, [address], 'no request leaves the page');
  assert.deepEqual(said, [], 'the console is silent');
  await context.close();
  return data;
}

rmSync(ARTEFACTS, { recursive: true, force: true });
mkdirSync(ARTEFACTS, { recursive: true });
write();
const browser = await chromium.launch({ executablePath: CHROMIUM, args: QUIET });
const KINDS = 7; // q, k, v, o, gate, up, down
const GROWTH = 2; // wide and narrow
/** The twelve runs of a sweep with the lowest final errors have curves. α is shown for those that use it. */
const drawn = record('sweep.json').runs.sort((a, b) => a.blocks.at(-1).error - b.blocks.at(-1).error).slice(0, 12);
const corrected = drawn.filter((run) => run.options.alpha.default !== 'off').length;
const PAGES = {
  'auto.html': GROWTH + 2 * KINDS,
  'off.html': GROWTH + KINDS,
  'two.html': GROWTH + KINDS + 3 * KINDS,
  'sweep.html': GROWTH + KINDS + (12 + corrected) * KINDS,
  'old.html': GROWTH + KINDS,
};
try {
  for (const [file, expected] of Object.entries(PAGES)) {
    const since = performance.now();
    const data = await examine(browser, file, expected);
    if (file === 'auto.html') assert.deepEqual(data.runs, [record('auto.json')], 'the page holds the record');
    if (file === 'sweep.html') assert.deepEqual(data, record('sweep.json'), 'the page holds the document');
    console.log(`ok: ${file} (${((performance.now() - since) / 1000).toFixed(1)} s)`);
  }
} finally {
  await browser.close();
}
