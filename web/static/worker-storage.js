// Stores the worker's results in the origin's private file system. Each page has a folder, with one folder per checkpoint in it.
// A page holds a lock while it is open. Folders without a lock are left over from closed tabs; the next start removes them.

import { BlobFile, Failure } from './worker-models.js';

const ROOT = 'aquatint';
const lockOf = (page) => `${ROOT} ${page}`;
/** Bytes of one write at most. Larger writes stalled in Chromium. */
const LARGEST_WRITE = 16 * 2 ** 20;

export class Storage {
  /** Opens the folder of `page`, a unique text. A restarted worker of the same page finds its folders again. */
  static async open(page) {
    const storage = new Storage();
    const origin = await navigator.storage.getDirectory();
    const root = await origin.getDirectoryHandle(ROOT, { create: true });
    await hold(lockOf(page));
    await sweep(root);
    storage.home = await root.getDirectoryHandle(page, { create: true });
    return storage;
  }

  /** Replaces the storage if there is no private file system. Every use fails with the reason. */
  static missing(error) {
    const storage = new Storage();
    storage.failure = new Failure('storage', `This browser gives the page no private storage (${error.message}); private windows often forbid it.`);
    return storage;
  }

  /** Resolves with {quota, usage} in bytes, or null. */
  async estimate() {
    if (this.failure) return null;
    const { quota, usage } = await navigator.storage.estimate();
    return { quota, usage };
  }

  /** Creates the folder `name` and replaces an older one. */
  async create(name) {
    await this.remove(name);
    const directory = await this.home.getDirectoryHandle(name, { create: true });
    const { quota, usage } = await navigator.storage.estimate();
    return new Folder(this, name, directory, quota - usage);
  }

  /** Resolves with the files of the folder `name`, sorted by name. */
  async files(name) {
    if (this.failure) throw this.failure;
    const directory = await this.home.getDirectoryHandle(name);
    const files = [];
    for await (const handle of directory.values()) files.push(new BlobFile(handle.name, await handle.getFile()));
    return files.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Removes the folder `name` if it exists. */
  async remove(name) {
    if (this.failure) throw this.failure;
    await removed(this.home, name);
  }
}

/** A folder that is being written, one file after the other. */
class Folder {
  constructor(storage, name, directory, available) {
    Object.assign(this, { storage, name, directory, available, access: null, position: 0 });
  }

  /** Completes the current file and starts the next. */
  async create(file) {
    this.commit();
    const handle = await this.directory.getFileHandle(file, { create: true });
    this.access = await handle.createSyncAccessHandle();
    this.position = 0;
  }

  /** Appends bytes to the current file. They are a view of wasm memory, so they are written before this returns. */
  write(bytes) {
    for (let start = 0; start < bytes.length; ) {
      const written = this.access.write(bytes.subarray(start, start + LARGEST_WRITE), { at: this.position });
      if (written === 0) throw new DOMException('nothing more can be written', 'QuotaExceededError');
      start += written;
      this.position += written;
    }
  }

  /** Completes the current file. */
  commit() {
    this.access?.flush();
    this.access?.close();
    this.access = null;
  }

  /** Removes the folder. */
  abort() {
    this.access?.close();
    this.access = null;
    this.storage.remove(this.name).catch(() => {}); // the next start removes it
  }
}

/** Takes the lock and holds it until this worker ends. Waits for an earlier worker to release it. */
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
