// Compiles every shader with Chromium's compiler. Its rules on uniform control flow are stricter than those of naga.
//
// Environment: CHROMIUM, the browser. Argument: a file with the output of `cargo run --example shaders`.

import { readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { GPU, QUIET } from './flags.mjs';

const shaders = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: [...QUIET, ...GPU] });
const page = await browser.newPage();
await page.goto('chrome://version'); // a page that may use the GPU
const complaints = await page.evaluate(async (list) => {
  const device = await (await navigator.gpu.requestAdapter()).requestDevice();
  device.addEventListener('uncapturederror', () => {}); // reported below
  const found = [];
  for (const { name, source } of list) {
    const { messages } = await device.createShaderModule({ code: source }).getCompilationInfo();
    for (const { type, message, lineNum } of messages) if (type === 'error') found.push(`${name}, line ${lineNum}: ${message}`);
  }
  return found;
}, shaders);
await browser.close();
for (const complaint of complaints) console.error(complaint);
console.log(`${shaders.length} shaders compiled by Chromium, ${complaints.length} errors`);
process.exitCode = complaints.length > 0 || shaders.length === 0 ? 1 : 0;
