// The few lines that stand between this page and the DOM.

/** The element with that id; a missing one is a bug of the page. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element;
}

/** A new element with properties and children (nodes or strings). Never parses HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A table row: the first cell heads it. */
export function row(head, ...cells) {
  return make('tr', {}, make('th', { scope: 'row' }, head), ...cells.map((cell) => make('td', {}, cell)));
}

/** Shows the error of one section of the page, and takes it away again. One at a time, next to what caused it. */
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

  /** Clears the message, or only one that stands in `slot`. */
  clear(slot) {
    if (slot && this.box.parentElement?.dataset.slot !== slot) return;
    this.box.hidden = true;
    this.text.textContent = '';
  }
}

function sentence(error) {
  const text = String(error.message || 'Something failed without saying why.').trim();
  const first = text.split('\n', 1)[0];
  // A capital only where a plain word begins the sentence: "model.safetensors: found …" begins with a name.
  const capital = /^[a-z]+ /.test(first) ? first.charAt(0).toUpperCase() + first.slice(1) : first;
  return /[.!?…]$/.test(capital) ? capital : `${capital}.`;
}
