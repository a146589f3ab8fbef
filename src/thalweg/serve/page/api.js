// Requests to this server: its API key, its errors in words, and waiting where it is full.

const KEY = "thalweg-api-key";
const PIECES = "/v1/thalweg/sessions";
const MOST_TRIES = 20;

/** An error of the server, in its own words. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What the page does when the server wants a key, and while it is full. */
export const hooks = { askForKey: async () => "", waiting: () => {} };

/** What an answer says is wrong, as a sentence. */
async function wordsOf(response) {
  try {
    const { error } = await response.json();
    const words = error.message ?? error;
    return words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function send(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? options.headers : { ...options.headers, authorization: `Bearer ${key}` };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server cannot be reached.", 0);
  }
}

/** A request that is sent again with another key, or when the server has room for it. */
async function request(path, options = {}) {
  for (let tries = 1; ; tries++) {
    const response = await send(path, options);
    if (response.ok) return response;
    const words = await wordsOf(response);
    const seconds = Number(response.headers.get("retry-after"));
    if (response.status === 401) {
      sessionStorage.setItem(KEY, await hooks.askForKey(words));
      options.signal?.throwIfAborted();
    } else if (response.status === 429 && seconds > 0 && tries < MOST_TRIES) {
      hooks.waiting(`${words} Trying again in ${seconds} s.`);
      await pause(seconds, options.signal);
    } else {
      throw new ServerError(words, response.status);
    }
  }
}

async function asJson(path, options) {
  return (await request(path, options)).json();
}

function post(path, content, signal) {
  const headers = { "content-type": "application/json" };
  return asJson(path, { method: "POST", body: JSON.stringify(content), headers, signal });
}

/** Little-endian float32, whatever the machine's own order. */
export function vectorOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** The models by their own names: {id, prompts, similarity, …}. */
export async function models() {
  const { data } = await asJson("/v1/models");
  return data.filter((model) => model.id === model.root);
}

/** The bytes that the server's process holds; null where it does not say. It is asked once, also where it is full. */
export async function serverMemory() {
  const response = await send("/metrics", {});
  const found = response.ok && (await response.text()).match(/^process_resident_memory_bytes (\S+)$/m);
  return found ? Number(found[1]) : null;
}

/** The vector of a question. */
export async function embedQuestion(model, text) {
  const asked = { model: model.id, input: text, encoding_format: "base64" };
  if (model.prompts.includes("query")) asked.prompt_name = "query";
  return vectorOf((await post("/v1/embeddings", asked)).data[0].embedding);
}

/**
 * A text that is sent in pieces, each answered with the sections that it ends.
 *
 * One streamed request would do the same, but a browser reads no answer before its request is sent to the end, so that
 * a long text and its sections would wait for each other.
 */
export class Session {
  constructor(id) {
    this.path = `${PIECES}/${encodeURIComponent(id)}`;
  }

  static async begin(model, sections, signal) {
    const name = ["document", "passage", "corpus"].find((each) => model.prompts.includes(each));
    const asked = { model: model.id, sections, ...(name && { prompt_name: name }) };
    return new Session((await post(PIECES, asked, signal)).id);
  }

  /** Bytes of UTF-8 to {tokens, sections}. */
  append(bytes, signal) {
    const headers = { "content-type": "text/plain" };
    return asJson(`${this.path}/append?encoding_format=base64`, { method: "POST", body: bytes, headers, signal });
  }

  /** The sections that are left when the text has ended. */
  async rest(signal) {
    return (await asJson(`${this.path}/sections?encoding_format=base64`, { signal })).sections;
  }

  /** Let the server forget it, also while the page is left. */
  forget() {
    send(this.path, { method: "DELETE", keepalive: true }).catch(() => {});
  }
}
