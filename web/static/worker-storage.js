// Results go to the origin's private file system: one folder per page, with one folder per checkpoint in it. A page holds a
// lock as long as it is open; folders without one are leftovers of closed tabs, and removed at the next start.

import { BlobFile, Failure } from './worker-models.js';

const ROOT = 'aquatint';
const lockOf = (page) => `${ROOT} ${page}`;
/** Larger single writes were seen to stall in Chromium. */
const LARGEST_WRITE = 16 * 2 ** 20;

export class Storage {
  /** The folder of `page`, any text that no other page has. A worker that replaces another one finds its folders again. */
  static async open(page) {
    const storage = new Storage();
    const origin = await navigator.storage.getDirectory();
    const root = await origin.getDirectoryHandle(ROOT, { create: true });
    await hold(lockOf(page));
    await sweep(root);
    storage.home = await root.getDirectoryHandle(page, { create: true });
    return storage;
  }

  /** Stands in where there is no private file system; every use fails with the reason. */
  static missing(error) {
    const storage = new Storage();
    storage.failure = new Failure('storage', `This browser gives the page no private storage (${error.message}); private windows often forbid it.`);
    return storage;
  }

  /** {quota, usage} in bytes, or null. */
  async estimate() {
    if (this.failure) return null;
    const { quota, usage } = await navigator.storage.estimate();
    return { quota, usage };
  }

  /** Starts the folder `name`, in place of one that is there. */
  async create(name) {
    await this.remove(name);
    const directory = await this.home.getDirectoryHandle(name, { create: true });
    const { quota, usage } = await navigator.storage.estimate();
    return new Folder(this, name, directory, quota - usage);
  }

  /** Files of the folder `name`, in the order of their names. */
  async files(name) {
    if (this.failure) throw this.failure;
    const directory = await this.home.getDirectoryHandle(name);
    const files = [];
    for await (const handle of directory.values()) files.push(new BlobFile(handle.name, await handle.getFile()));
    return files.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Removes the folder `name`, if it is there. */
  async remove(name) {
    if (this.failure) throw this.failure;
    await removed(this.home, name);
  }
}

/** A folder being written, file after file. */
class Folder {
  constructor(storage, name, directory, available) {
    Object.assign(this, { storage, name, directory, available, access: null, position: 0 });
  }

  /** Completes the file before and starts the next. */
  async create(file) {
    this.commit();
    const handle = await this.directory.getFileHandle(file, { create: true });
    this.access = await handle.createSyncAccessHandle();
    this.position = 0;
  }

  /** Appends. The bytes are wasm memory: they are written before this returns. */
  write(bytes) {
    for (let start = 0; start < bytes.length; ) {
      const written = this.access.write(bytes.subarray(start, start + LARGEST_WRITE), { at: this.position });
      if (written === 0) throw new DOMException('nothing more can be written', 'QuotaExceededError');
      start += written;
      this.position += written;
    }
  }

  /** Completes the last file. */
  commit() {
    this.access?.flush();
    this.access?.close();
    this.access = null;
  }

  /** Removes what was written. */
  abort() {
    this.access?.close();
    this.access = null;
    this.storage.remove(this.name).catch(() => {}); // the next start sweeps it
  }
}

/** Holds the lock until this worker ends, waiting for a worker before it to let go. */
function hold(name) {
  return new Promise((resolve, reject) => {
    navigator.locks.request(name, () => {
      resolve();
      return new Promise(() => {});
    }).catch(reject);
  });
}

async function sweep(root) {
  const held = new Set((await navigator.locks.query()).held.map(({ name }) => name));
  const names = [];
  for await (const name of root.keys()) names.push(name);
  for (const name of names) if (!held.has(lockOf(name))) await removed(root, name);
}

async function removed(directory, name) {
  try {
    await directory.removeEntry(name, { recursive: true });
  } catch (error) {
    if (error.name !== 'NotFoundError') throw error;
  }
}
