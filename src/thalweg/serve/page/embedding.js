// One text on its way through the server, piece by piece.

import { Session, serverMemory } from "./api.js";
import { Sections } from "./sections.js";
import { Source } from "./source.js";

const LEAST = 1 << 12; // bytes of a piece
const MOST = 1 << 18;
const SECONDS = 0.4; // that a piece should take
const WINDOW = 5; // seconds over which the rate is taken

export class Embedding {
  /** cut: {by, every}; changed: called whenever there is more to be seen. */
  constructor(blob, model, cut, changed) {
    this.source = new Source(blob);
    this.model = model;
    this.cut = cut;
    this.changed = changed;
    this.sections = new Sections(model.similarity);
    this.tokens = 0;
    this.memory = null;
    this.done = false;
    this.abort = new AbortController();
    this.times = [];
  }

  /** The characters of the whole text, as far as can be said. */
  get characters() {
    const { bytes, characters, blob } = this.source;
    return bytes === blob.size ? characters : Math.round((characters * blob.size) / (bytes || 1));
  }

  get part() {
    return this.source.bytes / (this.source.blob.size || 1);
  }

  /** Tokens a second, of late; null before there is anything to say. */
  get rate() {
    const [first, last] = [this.times[0], this.times.at(-1)];
    return this.times.length > 1 ? (last.tokens - first.tokens) / (last.seconds - first.seconds) : null;
  }

  stop() {
    this.abort.abort();
  }

  /** Embed the text to its end, unless it is stopped. */
  async run() {
    const { signal } = this.abort;
    await this.#measure();
    this.changed();
    this.session = await Session.begin(this.model, this.cut, signal);
    try {
      await this.#send(signal);
      this.sections.add(await this.session.rest(signal));
      await this.#measure();
      this.done = true;
      this.changed();
    } finally {
      this.session.forget();
    }
  }

  async #send(signal) {
    let size = 1 << 14;
    let next = this.source.next(size);
    this.#note();
    for (let piece; (piece = await next); ) {
      const began = performance.now();
      const answer = this.session.append(piece, signal);
      next = this.source.next(size); // is read meanwhile
      next.catch(() => {});
      const { tokens, sections } = await answer;
      const seconds = (performance.now() - began) / 1000;
      size = Math.round(Math.min(MOST, Math.max(LEAST, (piece.length * SECONDS) / seconds, size / 2)));
      this.tokens = tokens;
      this.sections.add(sections);
      this.#note();
      await this.#measure();
      this.changed();
    }
  }

  #note() {
    const seconds = performance.now() / 1000;
    this.times.push({ seconds, tokens: this.tokens });
    while (this.times.length > 2 && seconds - this.times[1].seconds > WINDOW) this.times.shift();
  }

  /** The memory of the server, twice a second. A server that does not tell is no reason to end. */
  async #measure() {
    if (this.measured && performance.now() - this.measured < 500) return;
    this.measured = performance.now();
    this.memory = (await serverMemory().catch(() => null)) ?? this.memory;
  }
}
