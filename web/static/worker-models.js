// Opens the files of a model for the worker: from this site, from disk, or from a server that answers range requests. Weights are
// read by byte ranges, `read(start, end)`. Only small files are held in memory as a whole.

/** An error with one sentence for the user. `kind` is that of web/src/failure.rs. */
export class Failure extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

/** A file on disk, or a small file in memory. */
export class BlobFile {
  constructor(name, blob) {
    Object.assign(this, { name, blob, size: blob.size });
  }

  async read(start, end) {
    return new Uint8Array(await this.blob.slice(start, end).arrayBuffer());
  }
}

/** A file behind HTTP. */
export class RemoteFile {
  constructor(name, url, size) {
    Object.assign(this, { name, url, size });
  }

  async read(start, end) {
    const response = await reach(this.url, { headers: { Range: `bytes=${start}-${end - 1}` } });
    if (response.status !== 206) throw new Failure('input', `the server answered ${response.status} to a range request`);
    return new Uint8Array(await response.arrayBuffer());
  }
}

const BUNDLED = new URL('./tiny-llama/', import.meta.url).href;
const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
/** Optional small files of a model. */
const COMPANIONS = [
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
];

/** Opens a source of sources.js. Resolves with {name, files}. */
export async function openSource(source) {
  switch (source.kind) {
    case 'bundled':
      return { name: 'bundled tiny-llama', files: await bundledFiles() };
    case 'files':
      return { name: source.name ?? 'your model', files: source.files.map((file) => new BlobFile(file.name, file)) };
    case 'hub': {
      const base = `${source.hub}/${source.id}/resolve/${encodeURIComponent(source.revision)}`;
      return { name: source.id, files: await remoteFiles(base) };
    }
    default:
      return { name: source.base.split('/').at(-1), files: await remoteFiles(source.base) };
  }
}

async function bundledFiles() {
  const names = ['config.json', 'generation_config.json', WEIGHTS, 'tokenizer.json', 'tokenizer_config.json'];
  return Promise.all(names.map((name) => whole(`${BUNDLED}${name}`, name)));
}

/** Reads the bundled texts, one for calibration and one for the evaluation, as web/src/text.rs takes them. */
export async function bundledText() {
  const read = async (name) => (await whole(`${BUNDLED}${name}`, name)).blob.text();
  const [text, evaluation] = await Promise.all([read('calibration.txt'), read('evaluation.txt')]);
  return { name: 'the bundled text', text, evaluation };
}

async function remoteFiles(base) {
  const at = (name) => `${base}/${name}`;
  const config = await whole(at('config.json'), 'config.json');
  const index = await whole(at(INDEX), INDEX, { optional: true });
  const companions = await Promise.all(COMPANIONS.map((name) => whole(at(name), name, { optional: true })));
  const shards = index ? await shardNames(index) : [WEIGHTS];
  const weights = await Promise.all(shards.map((name) => remoteFile(at(name), name)));
  return [config, index, ...companions, ...weights].filter(Boolean);
}

async function shardNames(index) {
  try {
    const names = new Set(Object.values(JSON.parse(await index.blob.text()).weight_map));
    return [...names].filter((name) => typeof name === 'string');
  } catch {
    return []; // the library reads the index too and reports the error
  }
}

/** Reads a small file as a whole. Resolves with null if it is optional and missing. */
async function whole(url, name, { optional = false } = {}) {
  const response = await reach(url);
  if (response.ok) return new BlobFile(name, await response.blob());
  if (optional && [404, 410].includes(response.status)) return null;
  throw refused(response, url);
}

/** Opens a large file. Requests only its size. */
async function remoteFile(url, name) {
  const response = await reach(url, { headers: { Range: 'bytes=0-7' } });
  if (!response.ok) throw refused(response, url);
  const told = response.headers.get('Content-Range')?.match(/\/(\d+)$/);
  await response.body?.cancel();
  if (response.status !== 206) {
    throw new Failure('input', `${url}: the server does not answer range requests; download the model and give its files.`);
  }
  const size = told ? Number(told[1]) : await lengthOf(url);
  if (Number.isSafeInteger(size) && size > 0) return new RemoteFile(name, url, size);
  throw new Failure('input', `${url}: the server does not tell this page how long the file is; download the model and give its files.`);
}

/** Asks for the length of a file. Some servers hide Content-Range from pages of other sites but not the length. */
async function lengthOf(url) {
  const { headers } = await reach(url, { method: 'HEAD' });
  return Number(headers.get('X-Linked-Size') ?? headers.get('Content-Length') ?? NaN);
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    const message = `${url} cannot be reached; check the address and the connection, or the server does not let other sites read from it.`;
    throw new Failure('input', message);
  }
}

function refused({ status }, url) {
  if (status === 401 || status === 403) {
    return new Failure('input', `${url} needs a login (${status}); download the model while logged in and give its files.`);
  }
  if (status === 404) return new Failure('input', `${url} is not there (404); check the name of the model, and that it has safetensors files.`);
  return new Failure('input', `${url} was refused by the server (${status}); try again later.`);
}
