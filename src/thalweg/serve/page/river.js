// A text drawn as a river: its length is the text's, and it is wide and deep where the text is similar to a question.
// The thalweg is the line of deepest flow; as in real rivers it swings towards the outer bank of each bend.

const PIXELS = 2.2; // of a column
const WIDTH = 1000;
const MIDDLE = 112;
const NARROW = 9; // half a width
const WIDE = 66;
const LEVELS = [0, 0.12, 0.3, 0.5, 0.7, 0.88]; // from which on a depth is seen
const QUIET = 0.3; // the level of a river of which nothing is asked
const SECONDS = 0.45;
const REACH = 7; // columns over which the flow widens towards a peak
const BELL = Array.from({ length: 2 * REACH + 1 }, (_, distance) => Math.exp(-0.5 * (distance / (0.6 * REACH)) ** 2));
const SWING = 0.55; // how far towards the outer bank

const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)");

const bend = (column) => 0.62 * Math.sin(column / 31 + 0.6) + 0.38 * Math.sin(column / 12.7);
const centre = (column) => MIDDLE + 16 * bend(column);

export class River {
  constructor(svg) {
    this.svg = svg;
    this.bed = svg.appendChild(document.createElementNS(SVG, "path"));
    this.bed.setAttribute("class", "bed");
    this.depths = LEVELS.map((_, number) => {
      const path = svg.appendChild(document.createElementNS(SVG, "path"));
      path.setAttribute("class", `depth-${number}`);
      return path;
    });
    this.thalweg = svg.appendChild(document.createElementNS(SVG, "path"));
    this.thalweg.setAttribute("class", "thalweg");
    this.shown = new Float32Array(0);
  }

  /** sections: what is drawn; characters: how many the whole text has. */
  draw(sections, characters) {
    const columns = Math.max(2, Math.round(this.svg.clientWidth / PIXELS));
    if (columns !== this.shown.length) {
      this.shown = new Float32Array(columns).fill(QUIET);
      this.bed.setAttribute("d", this.#line(0, columns, centre));
    }
    this.end = sections.count ? Math.ceil((columns * sections.ends[sections.count - 1]) / characters) : 0;
    this.end = Math.min(columns, this.end);
    this.target = sections.question === null ? this.shown.map(() => QUIET) : levels(sections, characters, columns);
    this.from = this.shown.slice();
    this.began = performance.now();
    if (!this.moving) this.#move();
  }

  #move() {
    const part = still.matches ? 1 : Math.min(1, (performance.now() - this.began) / 1000 / SECONDS);
    const eased = part * (2 - part);
    this.shown = this.from.map((from, i) => from + eased * (this.target[i] - from));
    this.#paint();
    this.moving = part < 1;
    if (this.moving) requestAnimationFrame(() => this.#move());
  }

  #paint() {
    const { end, shown } = this;
    const banks = blurred(shown);
    const whole = end === shown.length;
    const head = (column) => (whole ? 1 : Math.min(1, Math.sqrt((end - column) / 4))); // it ends round where it is not
    const half = (column) => head(column) * (NARROW + (WIDE - NARROW) * Math.max(banks[column], 0.9 * shown[column]));
    for (const [number, path] of this.depths.entries()) {
      const own = (column) => half(column) * share(shown[column], number);
      const middle = (column) => centre(column) + SWING * bend(column) * (half(column) - own(column));
      const upper = this.#line(0, end, (column) => middle(column) - own(column));
      const lower = this.#line(end - 1, -1, (column) => middle(column) + own(column));
      path.setAttribute("d", end ? `${upper}L${lower.slice(1)}Z` : "");
    }
    const deepest = (column) => centre(column) + SWING * bend(column) * half(column) * 0.9;
    this.thalweg.setAttribute("d", end ? this.#line(0, end, deepest) : "");
  }

  /** A path through the columns from `from` to the one before `to`, in either direction. */
  #line(from, to, y) {
    const points = [];
    const width = WIDTH / (this.shown.length - 1);
    for (let column = from; column !== to; column += Math.sign(to - from)) {
      points.push(`${(width * column).toFixed(1)} ${y(column).toFixed(1)}`);
    }
    return `M${points.join("L")}`;
  }
}

/** The part of the river's width that has at least a depth, where the river is at a level. */
function share(level, depth) {
  if (!depth) return 1;
  return Math.max(0, (level - LEVELS[depth]) / (1 - LEVELS[depth])) * (1 - 0.13 * depth);
}

/** 0 to 1 for each column: the most similar section that lies in it, widening smoothly towards each peak. */
function levels(sections, characters, columns) {
  const [low, high] = sections.range();
  const most = new Float32Array(columns);
  for (let number = 0; number < sections.count; number++) {
    const level = high > low ? Math.max(0, (sections.similarities[number] - low) / (high - low)) : 1;
    const first = Math.floor((columns * sections.starts[number]) / characters);
    const last = Math.ceil((columns * sections.ends[number]) / characters);
    for (let i = first; i < Math.min(columns, Math.max(last, first + 1)); i++) most[i] = Math.max(most[i], level);
  }
  return around(most, (nearby) => Math.max(...nearby));
}

/** The banks are smoother than what flows between them. */
function blurred(values) {
  const total = around(values.map(() => 1), sumOf);
  return around(values, sumOf).map((value, i) => value / total[i]);
}

const sumOf = (values) => values.reduce((total, each) => total + each, 0);

/** What `of` makes of the values near each one, which count less and less with their distance. */
function around(values, of) {
  return values.map((_, column) => {
    const first = Math.max(0, column - 2 * REACH);
    return of(values.subarray(first, column + 2 * REACH + 1).map((value, i) => value * BELL[Math.abs(first + i - column)]));
  });
}
