// The sections of a text: which characters each has, its vector, and how similar it is to a question.

import { vectorOf } from "./api.js";

const COMPARE = {
  cosine: (a, b) => dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1),
  dot,
  euclidean: (a, b) => -Math.sqrt(sum(a, b, (x) => x * x)),
  manhattan: (a, b) => -sum(a, b, Math.abs),
};

function dot(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

function sum(a, b, of) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += of(a[i] - b[i]);
  return total;
}

function grown(array, size) {
  const larger = new array.constructor(size);
  larger.set(array);
  return larger;
}

export class Sections {
  /** kind: how vectors are compared, as the model says. */
  constructor(kind) {
    this.compare = COMPARE[kind];
    this.count = 0;
    this.starts = new Float64Array(64); // characters
    this.ends = new Float64Array(64);
    this.vectors = new Float32Array(0); // (room for sections, dimensions)
    this.question = null;
    this.similarities = new Float32Array(64);
  }

  /** Sections as the server gives them, in order. */
  add(found) {
    for (const each of found) {
      const vector = vectorOf(each.vector);
      this.#makeRoom(vector.length);
      this.starts[this.count] = each.start;
      this.ends[this.count] = each.end;
      this.vectors.set(vector, this.count * vector.length);
      this.#compareOne(this.count++);
    }
  }

  #makeRoom(dimensions) {
    this.dimensions = dimensions;
    const full = this.count === this.starts.length;
    const room = full ? 2 * this.count : this.starts.length;
    if (full) {
      for (const name of ["starts", "ends", "similarities"]) this[name] = grown(this[name], room);
    }
    if (this.vectors.length < room * dimensions) this.vectors = grown(this.vectors, room * dimensions);
  }

  #compareOne(number) {
    if (this.question === null) return;
    const from = number * this.dimensions;
    this.similarities[number] = this.compare(this.question, this.vectors.subarray(from, from + this.dimensions));
  }

  /** Compare all sections, and those to come, with the vector of a question. */
  ask(question) {
    this.question = question;
    for (let number = 0; number < this.count; number++) this.#compareOne(number);
  }

  /** The numbers of the n most similar sections. */
  best(n) {
    const found = [];
    for (let number = 0; number < this.count; number++) {
      const value = this.similarities[number];
      if (found.length === n && value <= this.similarities[found[n - 1]]) continue;
      let place = found.length;
      while (place && this.similarities[found[place - 1]] < value) place--;
      found.splice(place, 0, number);
      found.length = Math.min(n, found.length);
    }
    return found;
  }

  /** [low, high]: what is drawn as nothing, and as the most: the median and the maximum. */
  range() {
    const sorted = this.similarities.slice(0, this.count).sort();
    const high = sorted.at(-1);
    return [sorted.length > 2 ? sorted[sorted.length >> 1] : Math.min(sorted[0], high - 0.1), high];
  }

  /** The section that a character is in. */
  at(character) {
    let low = 0;
    let high = this.count;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= character) low = middle;
      else high = middle;
    }
    return low;
  }
}
