// A text in a Blob or File, read in slices and never whole. The server counts characters as Python does, in Unicode code
// points; a file is bytes of UTF-8. Every MARK bytes it is noted how many characters have begun before.

const MARK = 4096;

const isLead = (byte) => (byte & 0xc0) !== 0x80;

export class Source {
  constructor(blob) {
    this.blob = blob;
    this.bytes = 0; // that have been read
    this.characters = 0; // that begin in them
    this.marks = [];
  }

  /** The next piece of about `size` bytes, which ends with a character; null at the end of the text. */
  async next(size) {
    const last = this.bytes + size >= this.blob.size;
    const bytes = new Uint8Array(await this.blob.slice(this.bytes, this.bytes + size).arrayBuffer());
    const piece = last ? bytes : bytes.subarray(0, wholeCharacters(bytes));
    this.#count(piece);
    return piece.length ? piece : null;
  }

  #count(piece) {
    for (const byte of piece) {
      if (this.bytes++ % MARK === 0) this.marks.push(this.characters);
      if (isLead(byte)) this.characters++;
    }
  }

  /** Where a character begins. */
  async byteOf(character) {
    if (character >= this.characters) return this.bytes;
    let low = 0;
    let high = this.marks.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.marks[middle] <= character) low = middle;
      else high = middle;
    }
    const block = new Uint8Array(await this.blob.slice(low * MARK, (low + 1) * MARK).arrayBuffer());
    let seen = this.marks[low] - 1;
    return low * MARK + block.findIndex((byte) => isLead(byte) && ++seen === character);
  }

  /** The characters [start, end). */
  async text(start, end) {
    const slice = this.blob.slice(await this.byteOf(start), await this.byteOf(end));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(await slice.arrayBuffer());
  }
}

/** How many bytes there are without the last character, where that is not whole. */
function wholeCharacters(bytes) {
  const end = bytes.length;
  for (let i = end - 1; i >= Math.max(0, end - 4); i--) {
    if (!isLead(bytes[i])) continue;
    const needs = bytes[i] < 0x80 ? 1 : bytes[i] < 0xe0 ? 2 : bytes[i] < 0xf0 ? 3 : 4;
    return i + needs <= end ? end : i || end;
  }
  return end;
}
