// The page's end of the wire to the worker: calls with answers, events, and what happens when the worker dies.

/** What went wrong, in one sentence for people. `kind` as in the protocol. */
export class Failure extends Error {
  constructor(kind, message, cause) {
    super(message, { cause });
    this.kind = kind;
  }
}

/** Calls the worker. `onEvent` gets its events; `onDeath` is told once that it died, with a Failure. */
export class Client {
  constructor({ onEvent, onDeath }) {
    this.onEvent = onEvent;
    this.onDeath = onDeath;
    this.pending = new Map();
    this.lastId = 0;
    this.worker = null;
    this.page = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // so that a new worker finds the old one's result
  }

  /** Starts the worker, in place of one that runs already, and resolves with the answer to `start`. */
  start() {
    this.stop(new Failure('lost', 'The worker was started anew.'));
    const worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.worker = worker;
    worker.addEventListener('message', ({ data }) => this.receive(data));
    worker.addEventListener('messageerror', () => this.die('It sent what this page cannot read'));
    worker.addEventListener('error', (event) => {
      event.preventDefault();
      this.die(event.message ? event.message.replace(/^Uncaught (\w*Error: )?/, '') : 'worker.js or the wasm could not be loaded');
    });
    return this.call('start', { page: this.page });
  }

  /** Resolves with the worker's answer, rejects with a Failure. */
  call(name, args = {}) {
    return new Promise((resolve, reject) => {
      if (!this.worker) {
        reject(new Failure('internal', 'The worker is not running; load the page again.'));
        return;
      }
      this.lastId += 1;
      this.pending.set(this.lastId, { resolve, reject });
      this.worker.postMessage({ ...args, id: this.lastId, call: name });
    });
  }

  receive(message) {
    if (message.event) {
      this.onEvent(message);
      return;
    }
    const call = this.pending.get(message.id);
    if (!call) return;
    this.pending.delete(message.id);
    if (message.error) call.reject(new Failure(message.error.kind, message.error.message));
    else call.resolve(message.ok);
  }

  die(reason) {
    const failure = new Failure('lost', `The worker stopped: ${reason}.`);
    this.stop(failure);
    this.onDeath(failure);
  }

  stop(failure) {
    this.worker?.terminate();
    this.worker = null;
    const calls = [...this.pending.values()];
    this.pending.clear();
    for (const call of calls) call.reject(failure);
  }
}
