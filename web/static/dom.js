// Helpers for the DOM: finding and making elements, and the message box for errors. All sections of the page use them.

/** Returns the element with this id. A missing element is a bug of the page. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element;
}

/** Makes an element with properties and children (nodes or strings). Strings are never parsed as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Makes a table row. The first cell is its header. */
export function row(head, ...cells) {
  return make('tr', {}, make('th', { scope: 'row' }, head), ...cells.map((cell) => make('td', {}, cell)));
}

/** The message box. It shows one error at a time, in the section of the page that caused it. */
export class Message {
  constructor() {
    this.box = byId('message-box');
    this.text = byId('message');
    byId('message-close').addEventListener('click', () => this.clear());
  }

  show(slot, error) {
    if (error.kind === 'internal' && error.cause) console.error(error.cause);
    document.querySelector(`[data-slot="${slot}"]`).append(this.box);
    this.text.textContent = sentence(error);
    this.box.hidden = false;
    this.box.scrollIntoView({ block: 'nearest' });
  }

  /** Clears the message. With `slot`, clears it only if it is in that section. */
  clear(slot) {
    if (slot && this.box.parentElement?.dataset.slot !== slot) return;
    this.box.hidden = true;
    this.text.textContent = '';
  }
}

function sentence(error) {
  const text = String(error.message || 'Something failed without saying why.').trim();
  const first = text.split('\n', 1)[0];
  // The first letter is capitalized only if the sentence begins with a plain word. "model.safetensors: found …" begins with a name.
  const capital = /^[a-z]+ /.test(first) ? first.charAt(0).toUpperCase() + first.slice(1) : first;
  return /[.!?…]$/.test(capital) ? capital : `${capital}.`;
}
