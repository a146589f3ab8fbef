// The best passages of a text as a list, and one passage in its surroundings.

const SHOWN = 6;
const AROUND = 1500; // characters before and after a passage
const SNIPPET = 240;
const MOST = 20000; // characters of a passage that are shown

const element = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

/** A similarity as it is shown. */
export const asSimilarity = (value) => value.toFixed(3);

/** A place in a text as it is shown. */
export const asPlace = (part) => percent.format(part);

/** The most similar sections as buttons. Nodes are kept, so that the focus is as well. */
export class BestList {
  constructor(list, open) {
    this.list = list;
    this.open = open;
  }

  async show(embedding, current) {
    const { sections } = embedding;
    const best = sections.best(SHOWN);
    while (this.list.children.length > best.length) this.list.lastElementChild.remove();
    while (this.list.children.length < best.length) this.list.append(this.#row());
    for (const [rank, section] of best.entries()) {
      const row = this.list.children[rank];
      const [title, , snippet] = row.firstElementChild.children;
      const place = asPlace(sections.starts[section] / embedding.characters);
      title.textContent = `${rank + 1}. ${asSimilarity(sections.similarities[section])}`;
      title.nextElementSibling.textContent = ` at ${place}`;
      row.firstElementChild.setAttribute("aria-current", String(section === current));
      if (row.section !== section || row.embedding !== embedding) {
        Object.assign(row, { section, embedding });
        const text = await embedding.source.text(...within(sections, section, SNIPPET));
        if (row.section === section) snippet.textContent = text.trim();
      }
    }
    return best;
  }

  #row() {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    for (const [tag, name] of [["b", ""], ["span", "hint"], ["span", "snippet"]]) {
      button.append(Object.assign(document.createElement(tag), { className: name }));
    }
    button.addEventListener("click", () => this.open(row.section));
    row.append(button);
    return row;
  }
}

function within(sections, section, most) {
  const start = sections.starts[section];
  return [start, Math.min(sections.ends[section], start + most)];
}

/** The text of a section, and what stands around it. */
export class Passage {
  async show(embedding, section) {
    this.section = section;
    const { sections, source } = embedding;
    const [start, end] = [sections.starts[section], sections.ends[section]];
    const [, shownEnd] = within(sections, section, MOST);
    const [before, itself, after] = await Promise.all([
      source.text(Math.max(0, start - AROUND), start),
      source.text(start, shownEnd),
      shownEnd < end ? "" : source.text(end, end + AROUND),
    ]);
    if (this.section !== section) return; // another one has been asked for meanwhile
    element("text-before").textContent = before;
    element("text-itself").textContent = itself;
    element("text-after").textContent = shownEnd < end ? "… (the section goes on)" : after;
    this.describe(embedding);
    element("passage").hidden = false;
    const reading = element("reading");
    reading.scrollTop = element("text-itself").offsetTop - 40;
  }

  /** Say where it is; again when the text has ended. */
  describe(embedding) {
    const { section } = this;
    element("where").textContent = this.words(embedding);
    element("before").disabled = section === 0;
    element("after").disabled = section === embedding.sections.count - 1;
  }

  words({ sections, done }) {
    const { section } = this;
    const from = number.format(sections.starts[section]);
    const to = number.format(sections.ends[section]);
    const of = done ? ` of ${number.format(sections.count)}` : "";
    const words = `Section ${number.format(section + 1)}${of}, characters ${from} to ${to}`;
    return sections.question === null ? words : `${words}, similarity ${asSimilarity(sections.similarities[section])}`;
  }
}
