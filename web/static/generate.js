// The text generation section. The original and the quantized model continue the same prompt, one after the other.

import { byId, make } from './dom.js';

const COLUMNS = { original: 'Original', quantized: 'Quantized' };

export class Generate {
  /** `run(work)` runs `work` with the page's controls disabled, and shows its error. */
  constructor({ client, run }) {
    this.client = client;
    this.texts = {};
    byId('generate-form').addEventListener('submit', (event) => {
      event.preventDefault();
      run(() => this.both());
    });
    byId('stop').addEventListener('click', () => {
      byId('stop').disabled = true;
      client.call('cancel').catch(() => {}); // the cancelled call shows the error
    });
  }

  /** Prepares for a new text: clears the columns, and limits the tokens to the model's positions. */
  reset(context) {
    byId('tokens').max = context;
    byId('tokens').value = Math.min(Number(byId('tokens').value) || 64, context);
    byId('generate-note').textContent = '';
    for (const which of Object.keys(COLUMNS)) {
      byId(`text-${which}`).replaceChildren();
      byId(`head-${which}`).textContent = COLUMNS[which];
    }
  }

  async both() {
    const request = {
      prompt: byId('prompt').value,
      tokens: Number(byId('tokens').value),
      temperature: Number(byId('temperature').value),
      seed: Number(byId('text-seed').value),
    };
    byId('stop').disabled = false;
    const note = byId('generate-note');
    try {
      this.reset(Number(byId('tokens').max));
      for (const which of Object.keys(COLUMNS)) {
        note.textContent = `${COLUMNS[which]} …`;
        await this.one(which, request);
      }
      note.textContent = 'Done.';
    } catch (error) {
      note.textContent = error.kind === 'cancelled' ? 'Stopped.' : '';
      throw error;
    } finally {
      byId('stop').disabled = true;
    }
  }

  async one(which, request) {
    const continuation = make('span');
    this.texts[which] = continuation;
    byId(`text-${which}`).replaceChildren(make('span', { className: 'prompt' }, request.prompt), continuation);
    const { text, tokens, seconds } = await this.client.call('generate', { ...request, which });
    continuation.textContent = text;
    const rate = seconds > 0 ? `, ${(tokens / seconds).toFixed(1)} tokens per second` : '';
    byId(`head-${which}`).replaceChildren(COLUMNS[which], make('span', { className: 'aside' }, `${tokens} tokens${rate}`));
  }

  /** Takes a `token` event, which has all of the text so far. */
  take({ which, text }) {
    if (this.texts[which]) this.texts[which].textContent = text;
  }
}
