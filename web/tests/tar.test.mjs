// Tests web/static/tar.js against the system's tar. Run it by `node --test web/tests/`; `cargo xtask test` does too.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { header, tarBlob } from '../static/tar.js';

const CASES = [
  ['config.json', 'x'.repeat(719)],
  ['empty.txt', ''],
  ['block.bin', '\u0001'.repeat(512)],
  ['näme with ümlaut.txt', 'ä\n'],
  ['long.bin', 'z'.repeat(100_003)],
];

async function withFolder(work) {
  const folder = mkdtempSync(join(tmpdir(), 'aquatint-tar-'));
  try {
    await work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('system tar lists and extracts what was put in', () => withFolder(async (folder) => {
  const modified = Date.UTC(2026, 1, 3, 4, 5, 6);
  const files = CASES.map(([name, text]) => ({ name, file: new File([text], name, { lastModified: modified }) }));
  const blob = tarBlob('tiny-w4', files);
  assert.equal(blob.size % 512, 0);
  const archive = join(folder, 'a.tar');
  writeFileSync(archive, Buffer.from(await blob.arrayBuffer()));
  const env = { ...process.env, TZ: 'UTC', LC_ALL: 'C.UTF-8' };
  const options = { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] };
  const lines = execFileSync('tar', ['-tvf', archive], options).trim().split('\n');
  assert.equal(lines.length, CASES.length);
  CASES.forEach(([name, text], i) => {
    const size = Buffer.byteLength(text);
    assert.match(lines[i], new RegExp(`^-rw-r--r-- .*\\b${size} 2026-02-03 04:05 tiny-w4/`));
  });
  execFileSync('tar', ['-xf', archive, '-C', folder], options);
  for (const [name, text] of CASES) assert.equal(readFileSync(join(folder, 'tiny-w4', name), 'utf8'), text);
}));

test('tar reads the size of a file above 8 GiB', () => withFolder(async (folder) => {
  const size = 8 * 2 ** 30 + 12_345;
  const archive = join(folder, 'big.tar');
  writeFileSync(archive, header('big.safetensors', size, 0));
  // The archive ends after its header. tar lists the entry and then reports an error.
  let listed = '';
  try {
    listed = execFileSync('tar', ['-tvf', archive], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  } catch (error) {
    listed = error.stdout;
  }
  assert.match(listed, new RegExp(`\\b${size}\\b`));
}));

test('a name of 100 bytes fits, one of 101 is refused by name', () => {
  assert.equal(header('n'.repeat(100), 0, 0).length, 512);
  assert.throws(() => header('n'.repeat(101), 0, 0), /101 bytes/);
});
