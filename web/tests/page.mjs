// Tests the page in Chromium, from the first paint to the downloaded checkpoint. Results are compared with those of the native
// program. With an argument, only the tests run whose name contains it.
//
// Environment: CHROMIUM, the browser; PAGE, the built page; PROGRAMS, a folder with `aquatint` and `aquatint-web-tool`; FIXTURES,
// tests/fixtures; ARTEFACTS, the folder for screenshots and downloads. `cargo xtask test` sets these variables.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, statSync, truncateSync, copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';
import { GPU, QUIET } from './flags.mjs';

const { CHROMIUM, PAGE, PROGRAMS, FIXTURES, ARTEFACTS } = process.env;
const MODEL = join(FIXTURES, 'tiny-llama');
/** A run that is small enough for a GPU emulated on two cores. */
const RUN = { bits: 3, samples: 8, seqLen: 32, descent: 1 };
const QUICK = { ...RUN, samples: 4, seqLen: 16, method: 'rtn', grid: 'minmax', alpha: 'off' };
/** The most windows that the page evaluates on. */
const MEASURED = 32;
const LONG = 900_000; // milliseconds
/** The longest wait for a step of the page, for two busy cores that also play the GPU. */
const STEP = 120_000; // milliseconds

const problems = []; // warnings and errors of the browser's console
const servers = [];

function launch(flags) {
  return chromium.launch({ executablePath: CHROMIUM, args: [...QUIET, ...flags] });
}

/** Serves a folder with the project's own server. Resolves with its address. */
async function serve(folder) {
  const server = spawn(join(PROGRAMS, 'aquatint-web-tool'), ['serve', folder, '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  servers.push(server);
  for await (const line of createInterface({ input: server.stdout })) return line;
  throw new Error(`no server for ${folder}`);
}

function native(...args) {
  return execFileSync(join(PROGRAMS, 'aquatint'), args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

async function open({ address, context }) {
  const page = await context.newPage();
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && problems.push(message.text()));
  page.on('pageerror', (error) => problems.push(error.message));
  await page.goto(address);
  return page;
}

async function choose(page, { bits, samples, seqLen, method = 'gptq', grid = 'hessian', descent = 4, alpha = 'auto' }) {
  await page.locator('#more-options').evaluate((more) => { more.open = true; });
  await page.selectOption('#method', method);
  await page.selectOption('#grid', grid);
  if (method !== 'rtn') await page.fill('#descent', String(descent));
  await page.selectOption('#alpha', alpha);
  await page.selectOption('#bits', String(bits));
  await page.fill('#samples', String(samples));
  await page.fill('#seq-len', String(seqLen));
  await page.waitForSelector('#start:not([disabled])');
}

/** Waits for the end of a run. Fails as soon as the page shows an error. */
async function finish(page) {
  await page.waitForFunction(() => !document.querySelector('#generate').disabled || !document.querySelector('#message-box').hidden, null, { timeout: LONG });
  assert.equal(await page.isVisible('#message-box'), false, await page.textContent('#message'));
}

const number = async (page, id) => Number((await page.textContent(id)).replaceAll(/[\s,]/g, ''));
const close = (a, b, share, what) => assert.ok(Math.abs(a / b - 1) <= share, `${what}: ${a} here, ${b} there`);

async function download(page, click, name) {
  const [file] = await Promise.all([page.waitForEvent('download'), page.click(click)]);
  const path = join(ARTEFACTS, name);
  await file.saveAs(path);
  return path;
}

function sizes(folder) {
  return Object.fromEntries(readdirSync(folder).sort().map((name) => [name, statSync(join(folder, name)).size]));
}

/** Takes screenshots in both themes, at the width of a desktop and of a phone. Fails if the page is wider than the window. */
async function photograph(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const [width, height] of [[1280, 900], [390, 844]]) {
      await page.setViewportSize({ width, height });
      await page.screenshot({ path: join(ARTEFACTS, `${name}-${colorScheme}-${width}.png`), fullPage: true });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `the page is ${overflow} px wider than a window of ${width}`);
    }
  }
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 1280, height: 900 });
}

const tests = {
  async 'without WebGPU the page says what to do'({ address }) {
    const blind = await launch(['--disable-features=WebGPU', '--disable-gpu']);
    const page = await open({ address, context: blind });
    await page.waitForFunction(() => !document.querySelector('#gpu-help').hidden);
    assert.match(await page.textContent('#gpu-help'), /Firefox/);
    assert.ok(await page.isDisabled('#start'));
    await blind.close();
  },

  async 'the bundled model is quantized as the native program does it'(place) {
    const page = await open(place);
    await page.waitForFunction(() => /SwiftShader/i.test(document.querySelector('#status').textContent));
    const [paint, ready] = await page.evaluate(() => [performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now()]);
    console.log(`  first paint after ${paint.toFixed(0)} ms, GPU and wasm ready after ${ready.toFixed(0)} ms`);
    assert.ok(paint < ready, 'the page is there before the wasm');
    await page.click('#use-bundled');
    await choose(page, RUN);
    await photograph(page, 'before');
    await page.click('#start');
    await finish(page);
    await photograph(page, 'after');
    const report = JSON.parse(readFileSync(await download(page, '#save-report', 'page.json')));
    const shown = { original: await number(page, '#ppl-original'), quantized: await number(page, '#ppl-quantized') };
    close(shown.quantized, report.perplexity.quantized, 0.001, 'perplexity on the page and in its report');
    console.log(`  wasm memory at its peak ${report.memory.wasmPeak / 1e6} MB, ${report.total_seconds.toFixed(1)} s to quantize`);

    const out = join(ARTEFACTS, 'native');
    const options = ['--device', 'cpu', '--bits', RUN.bits, '--samples', RUN.samples, '--seq-len', RUN.seqLen, '--descent', RUN.descent].map(String);
    native('quantize', '--out', out, '--json', join(ARTEFACTS, 'native.json'), ...options);
    const there = JSON.parse(readFileSync(join(ARTEFACTS, 'native.json')));
    const evaluate = (model) => {
      const json = join(ARTEFACTS, 'eval.json');
      native('eval', ...(model ? [model] : []), '--seq-len', String(RUN.seqLen), '--windows', String(MEASURED), '--device', 'cpu', '--json', json);
      return JSON.parse(readFileSync(json)).perplexity;
    };
    close(report.perplexity.original, evaluate(null), 0.001, 'perplexity of the original');
    // If one code is rounded differently on another device, all later codes change. So only the first block must agree closely.
    close(report.perplexity.quantized, evaluate(out), 0.08, 'perplexity of the quantized model');
    assert.equal(report.blocks.length, there.blocks.length);
    report.blocks.forEach((block, index) => close(block.error, there.blocks[index].error, index ? 0.08 : 0.005, `error after block ${index}`));
    assert.ok(report.blocks.at(-1).error < report.uncorrected.blocks.at(-1).error, 'error propagation lowers the last error');

    const tar = await download(page, '#download-tar', 'page.tar');
    const unpacked = join(ARTEFACTS, 'unpacked');
    mkdirSync(unpacked);
    execFileSync('tar', ['-xf', tar, '-C', unpacked, '--strip-components=1']);
    assert.deepEqual(sizes(unpacked), sizes(out), 'the same files of the same sizes as the native program writes');
    close(evaluate(unpacked), report.perplexity.quantized, 0.001, 'perplexity of the downloaded checkpoint');

    await page.fill('#prompt', 'The city of');
    await page.fill('#tokens', '8');
    await page.fill('#temperature', '0');
    await page.click('#generate');
    await page.waitForFunction(() => document.querySelector('#generate-note').textContent === 'Done.', null, { timeout: LONG });
    const expected = native('generate', '--prompt', 'The city of', '--tokens', '8', '--device', 'cpu').trimEnd();
    assert.equal(await page.textContent('#text-original'), `The city of${expected}`, 'the same text as the native program generates');
    assert.ok((await page.textContent('#text-quantized')).length > 'The city of'.length);
    await page.close();
  },

  async 'a GGUF file is made, and read back by the native program'(place) {
    const page = await open(place);
    await page.click('#use-bundled');
    await page.locator('#more-options').evaluate((more) => { more.open = true; });
    await page.selectOption('#format', 'gguf');
    await choose(page, { ...QUICK, bits: 4 });
    await page.click('#start');
    await finish(page);
    const file = await download(page, '#download-tar', 'page.gguf');
    assert.equal(readFileSync(file).toString('latin1', 0, 4), 'GGUF');
    const json = join(ARTEFACTS, 'gguf.json');
    native('eval', file, '--seq-len', String(QUICK.seqLen), '--windows', String(MEASURED), '--device', 'cpu', '--json', json);
    close(await number(page, '#ppl-quantized'), JSON.parse(readFileSync(json)).perplexity, 0.001, 'perplexity of the downloaded file');
    await page.close();
  },

  async 'a run can be cancelled half-way and started again'(place) {
    const page = await open(place);
    await page.click('#use-bundled');
    await choose(page, RUN);
    await page.click('#start');
    await page.waitForFunction(() => /block [2-9]/i.test(document.querySelector('#progress-text').textContent), null, { timeout: LONG });
    await page.click('#cancel');
    await page.waitForFunction(() => /Cancelled/.test(document.querySelector('#progress-text').textContent), null, { timeout: LONG });
    assert.deepEqual(await stored(page), [], 'nothing half-made stays behind');
    await choose(page, QUICK);
    await page.click('#start');
    await finish(page);
    assert.deepEqual(await stored(page), ['quantized']);
    await page.close({ runBeforeUnload: false });
  },

  async 'a closed tab leaves nothing for long'(place) {
    const page = await open(place);
    await page.click('#use-bundled');
    await choose(page, RUN);
    await page.click('#start');
    await page.waitForFunction(() => /block [2-9]/i.test(document.querySelector('#progress-text').textContent), null, { timeout: LONG });
    await page.close();
    const next = await open(place);
    await next.waitForFunction(() => /SwiftShader/i.test(document.querySelector('#status').textContent));
    assert.deepEqual(await pages(next), 1, 'only the folder of this page');
    await next.close();
  },

  async 'a full disk is told, and nothing stays behind'(place) {
    const page = await open(place);
    const quota = { origin: new URL(place.address).origin, quotaSize: 500_000 };
    await (await place.context.newCDPSession(page)).send('Storage.overrideQuotaForOrigin', quota);
    await page.click('#use-bundled');
    await choose(page, QUICK);
    await page.click('#start');
    await page.waitForFunction(() => !document.querySelector('#message-box').hidden, null, { timeout: LONG });
    assert.match(await page.textContent('#message'), /storage: found no space left, expected room for 1\.\d MB/);
    assert.deepEqual(await stored(page), [], 'nothing half-made stays behind');
    await page.close();
  },

  async 'broken files are told in a sentence'(place) {
    const folder = join(ARTEFACTS, 'broken');
    mkdirSync(folder);
    for (const name of readdirSync(MODEL)) copyFileSync(join(MODEL, name), join(folder, name));
    truncateSync(join(folder, 'model.safetensors'), 4_000_000);
    const page = await open(place);
    await page.setInputFiles('#folder-input', folder);
    await page.waitForFunction(() => !document.querySelector('#message-box').hidden);
    const said = await page.textContent('#message');
    assert.match(said, /model\.safetensors.*expected .*; download the file again/);
    writeFileSync(join(folder, 'config.json'), '{"architectures": ["MambaForCausalLM"]}');
    await page.setInputFiles('#folder-input', folder);
    // The old sentence is cleared before the new one is shown.
    await page.waitForFunction((before) => !['', before].includes(document.querySelector('#message').textContent), said);
    assert.match(await page.textContent('#message'), /MambaForCausalLM.*families Llama, Mistral/);
    await page.close();
  },

  async 'a model is read by ranges from another site'(place) {
    const mirror = await serve(FIXTURES);
    const page = await open(place);
    const ranges = [];
    page.on('request', (request) => request.url().endsWith('model.safetensors') && ranges.push(request.headers().range));
    await page.fill('#hub-id', `${mirror}tiny-llama`);
    await page.click('#open-hub');
    await page.waitForSelector('#model-summary h3');
    await choose(page, QUICK);
    await page.click('#start');
    await finish(page);
    assert.ok(ranges.length > 50 && ranges.every(Boolean), `${ranges.length} requests, all for ranges`);
    await page.fill('#hub-id', `${mirror}nothing-here`);
    await page.click('#open-hub');
    await page.click('#discard-confirm');
    await page.waitForFunction(() => !document.querySelector('#message-box').hidden);
    assert.match(await page.textContent('#message'), /config\.json is not there \(404\)/);
    await page.close();
  },
};

/** `pages` counts the pages' folders in the private file system. `stored` lists the folders in them. */
const pages = (page) => page.evaluate(async () => {
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('aquatint');
  let count = 0;
  for await (const _ of root.keys()) count += 1;
  return count;
});
const stored = (page) => page.evaluate(async () => {
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('aquatint');
  const names = [];
  for await (const home of root.values()) for await (const name of home.keys()) names.push(name);
  return names;
});

/** Prints what a page shows after a failure, and keeps a screenshot. */
async function record(page) {
  for (const id of ['status', 'start-note', 'message', 'progress-text']) {
    console.error(`#${id}: ${(await page.textContent(`#${id}`, { timeout: 1000 })).replaceAll(/\s+/g, ' ')}`);
  }
  await page.screenshot({ path: join(ARTEFACTS, 'failed.png'), fullPage: true });
}

rmSync(ARTEFACTS, { recursive: true, force: true });
mkdirSync(ARTEFACTS, { recursive: true });
let failed = 0;
const browser = await launch(GPU);
try {
  const address = await serve(PAGE);
  for (const [name, test] of Object.entries(tests)) {
    if (process.argv[2] && !name.includes(process.argv[2])) continue;
    const since = performance.now();
    // Each test has its own context, which has its own storage.
    const context = await browser.newContext({ acceptDownloads: true });
    context.setDefaultTimeout(STEP);
    problems.length = 0;
    try {
      await test({ address, context });
      const expected = /the server responded with a status of 404/;
      assert.deepEqual(problems.filter((problem) => !expected.test(problem)), [], 'the console is silent');
      console.log(`ok: ${name} (${((performance.now() - since) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.error(`FAILED: ${name}: ${error.stack}\nconsole: ${problems.join('\n')}`);
      for (const page of context.pages()) await record(page).catch(() => {});
    } finally {
      await context.close();
    }
  }
} finally {
  await browser.close();
  for (const server of servers) server.kill();
}
process.exitCode = failed > 0 ? 1 : 0;
