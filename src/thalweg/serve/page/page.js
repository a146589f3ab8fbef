// What is on the page, wired together.

import { ServerError, embedQuestion, hooks, models } from "./api.js";
import { Embedding } from "./embedding.js";
import { MemoryLine } from "./memory.js";
import { BestList, Passage, asPlace, asSimilarity } from "./passages.js";
import { River } from "./river.js";

const element = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const EVERY = { tokens: 512 }; // units of a section where nothing is said, else 1
const PIN = 25; // pixels of a number on the river
const DRAW_MILLISECONDS = 250;
const TELL_MILLISECONDS = 10000; // between two sentences for screen readers

/** What the page is about; for tests as well. */
export const state = { models: [], file: null, embedding: null, section: null };

const river = new River(element("river").querySelector("svg"));
const memoryLine = new MemoryLine(element("memory-line"));
const passage = new Passage();
const best = new BestList(element("best"), shown(jump));

// -- errors, the key, and what is said ----------------------------------------------------------------------------

let told = 0;

function say(words) {
  told = performance.now();
  element("status").textContent = words;
}

function inWords(error) {
  if (error instanceof ServerError) return error.message;
  if (error.name === "NotReadableError" || error.name === "NotFoundError") {
    return "The file cannot be read; it may be a folder, or have changed since it was chosen.";
  }
  console.error(error);
  return `The page failed: ${error}`;
}

function showError(error) {
  if (error.name === "AbortError") return;
  element("error").textContent = inWords(error);
  element("error").hidden = false;
}

const clearError = () => { element("error").hidden = true; };

/** Do something, and show what goes wrong. */
function shown(work) {
  return async (...given) => {
    try {
      await work(...given);
    } catch (error) {
      showError(error);
    }
  };
}

let asking = null; // the answer for all requests that wait for a key

hooks.askForKey = (words) => {
  element("key-words").textContent = words;
  element("key-form").hidden = false;
  element("key").focus();
  asking ??= new Promise((resolve) => {
    element("key-form").onsubmit = (event) => {
      event.preventDefault();
      element("key-form").hidden = true;
      asking = null;
      resolve(element("key").value);
      element("key").value = "";
    };
  });
  return asking;
};

hooks.waiting = (words) => {
  say(words);
  told = -Infinity; // what comes next is said at once
};

// -- the text -----------------------------------------------------------------------------------------------------

function bytesInWords(bytes) {
  const units = ["bytes", "KB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

function choose(file) {
  state.file = file;
  element("paste").hidden = file !== null;
  element("chosen").hidden = file === null;
  if (file !== null) element("chosen-name").textContent = `${file.name}, ${bytesInWords(file.size)}`;
  (file === null ? element("text") : element("start")).focus();
}

async function takeSample() {
  const response = await fetch("/page/book.txt");
  choose(new File([await response.blob()], "Life on the Mississippi"));
}

async function start() {
  clearError();
  const blob = state.file ?? new Blob([element("text").value]);
  if (!blob.size) throw new ServerError("There is no text yet: paste one, or choose a file.");
  if (!element("every").checkValidity()) throw new ServerError("A section has a whole number of units, 1 or more.");
  const model = state.models.find((each) => each.id === element("model").value);
  const cut = { by: element("by").value, every: element("every").valueAsNumber };
  state.embedding?.stop();
  const embedding = (state.embedding = new Embedding(blob, model, cut, () => showProgress(embedding)));
  state.section = null;
  showRun(embedding);
  try {
    await embedding.run();
    say(`The text is embedded: ${number.format(embedding.sections.count)} sections.`);
  } catch (error) {
    if (state.embedding !== embedding) return;
    say(error.name === "AbortError" ? "Stopped. What was embedded so far can be searched." : "");
    showError(error);
  } finally {
    if (state.embedding === embedding) finish(embedding);
  }
}

// -- while it is embedded -----------------------------------------------------------------------------------------

function showRun(embedding) {
  const { blob } = embedding.source;
  element("run-title").textContent = `${state.file?.name ?? "Pasted text"}, ${bytesInWords(blob.size)}`;
  for (const id of ["input", "again", "found", "passage", "place"]) element(id).hidden = true;
  for (const id of ["run", "search", "stop"]) element(id).hidden = false;
  element("memory-figure").hidden = false;
  for (const id of ["ask-status", "scale"]) element(id).textContent = "";
  element("pins").replaceChildren();
  memoryLine.clear();
  say("The text is being embedded; you can ask a question meanwhile.");
  showProgress(embedding);
  draw();
  element("question").focus();
  if (element("question").value) shown(ask)();
}

function showProgress(embedding) {
  if (state.embedding !== embedding) return;
  element("progress").value = embedding.part;
  element("tokens").textContent = number.format(embedding.tokens);
  element("sections").textContent = number.format(embedding.sections.count);
  element("rate").textContent = embedding.rate === null ? "–" : number.format(Math.round(embedding.rate));
  if (embedding.memory !== null) {
    element("memory").textContent = `${number.format(Math.round(embedding.memory / 2 ** 20))} MiB`;
    memoryLine.add(embedding.tokens, embedding.memory);
  }
  if (!embedding.done && performance.now() - told > TELL_MILLISECONDS) say(`${asPlace(embedding.part)} is embedded.`);
  drawSoon();
}

function finish(embedding) {
  element("stop").hidden = true;
  element("again").hidden = false;
  if (embedding.memory === null) element("memory-figure").hidden = true;
  if (state.section !== null) passage.describe(embedding);
  sayBest(embedding);
  showProgress(embedding);
}

function newText() {
  clearError();
  state.embedding?.stop();
  for (const id of ["run", "search"]) element(id).hidden = true;
  element("input").hidden = false;
  (state.file === null ? element("text") : element("start")).focus();
}

// -- the river ----------------------------------------------------------------------------------------------------

let drawing = null;

function drawSoon() {
  drawing ??= setTimeout(shown(draw), DRAW_MILLISECONDS);
}

async function draw() {
  clearTimeout(drawing);
  drawing = null;
  const { embedding } = state;
  const { sections, characters } = embedding;
  river.draw(sections, characters);
  element("river").setAttribute("aria-disabled", String(!sections.count));
  element("river").setAttribute("aria-valuemax", sections.count || 1);
  if (!sections.count || sections.question === null) return;
  const [low, high] = sections.range();
  element("scale").textContent = `similarity from ${asSimilarity(low)} (narrow) to ${asSimilarity(high)} (wide and deep)`;
  element("found").hidden = false;
  showPins(await best.show(embedding, state.section), embedding);
}

const middle = ({ sections, characters }, section) =>
  (sections.starts[section] + sections.ends[section]) / 2 / characters;

/** Numbers at the places of the best passages, below the river where there is no room above it. */
function showPins(found, embedding) {
  const { clientWidth: width } = element("river");
  const above = [];
  const pins = found.map((section, rank) => {
    const left = width * middle(embedding, section);
    const fits = above.every((other) => Math.abs(other - left) >= PIN);
    if (fits) above.push(left);
    const pin = document.createElement("span");
    Object.assign(pin, { className: fits ? "pin" : "pin below", textContent: rank + 1 });
    pin.style.left = `clamp(${PIN / 2}px, ${(100 * left) / width}%, 100% - ${PIN / 2}px)`;
    return pin;
  });
  element("pins").replaceChildren(...pins.reverse());
}

async function open(section) {
  const { embedding } = state;
  if (!embedding?.sections.count) return;
  section = Math.max(0, Math.min(embedding.sections.count - 1, section));
  state.section = section;
  await passage.show(embedding, section);
  element("river").setAttribute("aria-valuenow", section + 1);
  element("river").setAttribute("aria-valuetext", passage.words(embedding));
  element("place").hidden = false;
  element("place").style.left = `${100 * middle(embedding, section)}%`;
  for (const row of element("best").children) {
    row.firstElementChild.setAttribute("aria-current", String(row.section === section));
  }
}

/** Open a section and bring it into view. */
async function jump(section) {
  await open(section);
  element("passage").scrollIntoView({ block: "nearest" });
}

function sectionUnder(event) {
  const { left, width } = element("river").getBoundingClientRect();
  const { sections, characters } = state.embedding;
  return sections.at(((event.clientX - left) / width) * characters);
}

/** The most similar section within a finger's width of a click. */
function sectionNear(event) {
  const { sections } = state.embedding;
  const at = sectionUnder(event);
  if (sections.question === null) return at;
  const first = sectionUnder({ clientX: event.clientX - 8 });
  const last = sectionUnder({ clientX: event.clientX + 8 });
  let found = at;
  for (let i = first; i <= last; i++) if (sections.similarities[i] > sections.similarities[found]) found = i;
  return found;
}

function riverKey(event) {
  const many = Math.max(1, Math.round(state.embedding.sections.count / 20));
  const last = state.embedding.sections.count - 1;
  const at = state.section ?? 0;
  const to = {
    ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1,
    PageUp: at + many, PageDown: at - many, Home: 0, End: last, Enter: at,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  return open(to).then(() => event.key === "Enter" && element("reading").focus());
}

// -- questions ----------------------------------------------------------------------------------------------------

let questions = 0;

async function ask() {
  clearError();
  const text = element("question").value.trim();
  if (!text) return;
  const { embedding } = state;
  const own = ++questions;
  const vector = await embedQuestion(embedding.model, text);
  if (own !== questions || embedding !== state.embedding) return;
  embedding.sections.ask(vector);
  await draw();
  sayBest(embedding);
  const [first] = embedding.sections.best(1);
  if (first !== undefined) await open(first);
}

function sayBest({ sections, characters, done }) {
  if (sections.question === null) return;
  const [first] = sections.best(1);
  element("ask-status").textContent = first === undefined
    ? "No section is ready yet; the river rises as they come."
    : `The most similar passage${done ? "" : " so far"} is at ${asPlace(sections.starts[first] / characters)}, with a ` +
      `similarity of ${asSimilarity(sections.similarities[first])}.`;
}

// -- all together -------------------------------------------------------------------------------------------------

function on(id, event, work) {
  element(id).addEventListener(event, shown(work));
}

const submitted = (work) => (event) => {
  event.preventDefault();
  return work();
};

on("input", "submit", submitted(start));
on("ask", "submit", submitted(ask));
on("choose", "click", () => element("file").click());
on("file", "change", () => {
  if (element("file").files.length) choose(element("file").files[0]);
  element("file").value = "";
});
on("unchoose", "click", () => choose(null));
on("sample", "click", takeSample);
on("by", "change", () => { element("every").value = EVERY[element("by").value] ?? 1; });
on("stop", "click", () => state.embedding.stop());
on("again", "click", newText);
on("before", "click", () => open(state.section - 1));
on("after", "click", () => open(state.section + 1));
on("river", "keydown", riverKey);
on("river", "click", (event) => state.embedding.sections.count && jump(sectionNear(event)));
new ResizeObserver(() => state.embedding && drawSoon()).observe(element("river"));

const dragsFile = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  element("drop").hidden = false;
});
addEventListener("dragleave", (event) => { if (event.relatedTarget === null) element("drop").hidden = true; });
addEventListener("drop", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  element("drop").hidden = true;
  newText();
  choose(event.dataTransfer.files[0]);
});
addEventListener("pagehide", () => {
  state.embedding?.stop();
  state.embedding?.session?.forget();
});

shown(async () => {
  state.models = await models();
  element("model").replaceChildren(...state.models.map((each) => new Option(each.id)));
  element("model-label").hidden = state.models.length < 2;
  element("start").disabled = false;
})();
