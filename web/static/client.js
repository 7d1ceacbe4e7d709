// The page's connection to the worker (worker.js): calls with answers, events, and the handling of a worker that stops.

/** An error with one sentence for the user. `kind` is that of web/src/failure.rs. */
export class Failure extends Error {
  constructor(kind, message, cause) {
    super(message, { cause });
    this.kind = kind;
  }
}

/** Calls the worker. `onEvent` receives its events. `onDeath` receives a Failure when the worker stops unexpectedly. */
export class Client {
  constructor({ onEvent, onDeath }) {
    this.onEvent = onEvent;
    this.onDeath = onDeath;
    this.pending = new Map();
    this.lastId = 0;
    this.worker = null;
    this.page = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`; // a restarted worker finds the results of this page by it
  }

  /** Starts the worker and resolves with its answer to `start`. A worker that is already running is stopped first. */
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

  /** Sends a call. Resolves with the worker's answer, or rejects with a Failure. */
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
