// The server's memory against the tokens that it has read: a line that stays flat.

const MOST = 200;

export class MemoryLine {
  constructor(svg) {
    this.svg = svg;
    this.clear();
  }

  clear() {
    this.points = [];
    this.svg.firstElementChild.setAttribute("d", "");
  }

  /** Where there are many points, every second one is dropped: the shape stays. */
  add(tokens, bytes) {
    this.points.push([tokens, bytes]);
    if (this.points.length > MOST) this.points = this.points.filter((_, i) => i % 2 === 0 || i === MOST);
    const most = 1.25 * Math.max(...this.points.map(([, each]) => each));
    const d = this.points.map(([x, y]) => `${((100 * x) / (tokens || 1)).toFixed(2)} ${(24 - (24 * y) / most).toFixed(2)}`);
    this.svg.firstElementChild.setAttribute("d", `M${d.join("L")}`);
  }
}
