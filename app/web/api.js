// The service's HTTP API as the page uses it: problems as errors, the API key, uploads with progress, lines as they come.
// Knows no tab. The key lives in sessionStorage, so it is gone with the browser's tab.

const KEY = "finelap-key";

/** What the service answers when something is wrong (RFC 9457); `status` 0: it cannot be reached. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.title || `The service answered ${status}.`);
    this.name = "Problem";
    this.status = status;
    this.title = body.title ?? "";
    this.detail = body.detail ?? this.message;
    this.requestId = body.request_id ?? "";
    this.errors = body.errors ?? [];
  }
}

const UNREACHABLE = { title: "Unreachable", detail: "The service cannot be reached." };

/** The key in use, or null. */
export const key = () => sessionStorage.getItem(KEY);

let asking = null;

/**
 * Asks for the key, once for all who wait: main.js hears "finelap:key" and calls `done` with it, or with null.
 * @returns {Promise<string | null>}
 */
export function askForKey(wrong = false) {
  asking ??= new Promise((done) => {
    document.dispatchEvent(new CustomEvent("finelap:key", { detail: { wrong, done } }));
  }).then((given) => {
    asking = null;
    if (given) sessionStorage.setItem(KEY, given);
    return given;
  });
  return asking;
}

/** Runs `attempt(key)`; while it fails for want of a key, asks for one and tries again. */
async function withKey(attempt) {
  if (document.documentElement.hasAttribute("data-key") && !key()) await askForKey();
  for (;;) {
    const used = key();
    try {
      return await attempt(used);
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key() !== used) continue; // another call has asked meanwhile
      if (!(await askForKey(used !== null))) throw error;
    }
  }
}

/**
 * fetch, with the key; anything but a success is a Problem.
 * @param {string} path
 * @param {{method?: string, headers?: Record<string, string>, body?: BodyInit | object, signal?: AbortSignal}} [options]
 *   A plain object as `body` is sent as JSON.
 * @returns {Promise<Response>}
 */
export function call(path, { method, headers = {}, body, signal } = {}) {
  const plain = body !== undefined && Object.getPrototypeOf(body) === Object.prototype;
  const sent = plain ? { "Content-Type": "application/json", ...headers } : headers;
  return withKey(async (used) => {
    let response;
    try {
      response = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        headers: used ? { ...sent, Authorization: `Bearer ${used}` } : sent,
        body: plain ? JSON.stringify(body) : body,
        signal,
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem(0, UNREACHABLE);
    }
    if (response.ok) return response;
    throw new Problem(response.status, await response.json().catch(() => ({})));
  });
}

/** The JSON that a call answers. */
export async function json(path, options) {
  return (await call(path, options)).json();
}

/** GET with query parameters: null and undefined are left out, lists are repeated. */
export function get(path, params = {}, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined) query.append(name, each);
    }
  }
  return json(query.size ? `${path}?${query}` : path, options);
}

/**
 * POST of a form that says how far it is: fetch cannot. With `onLine` the answer is ndjson, told line by line as it comes;
 * `body` is then null.
 * @param {string} path
 * @param {FormData} form
 * @param {{onProgress?: (sent: number, total: number) => void, onLine?: (line: any) => void, signal?: AbortSignal}} [options]
 * @returns {Promise<{status: number, body: any}>}
 */
export function upload(path, form, { onProgress, onLine, signal } = {}) {
  const attempt = (used) =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      const abort = () => request.abort();
      const aborted = () => reject(signal?.reason ?? new DOMException("Aborted", "AbortError"));
      if (signal?.aborted) return aborted();
      request.open("POST", path);
      if (used) request.setRequestHeader("Authorization", `Bearer ${used}`);
      request.upload.onprogress = (event) => onProgress?.(event.loaded, event.total);
      let told = 0; // characters of the lines that `onLine` has had
      const tell = () => {
        if (request.status !== 200) return;
        const text = request.responseText;
        for (let end; (end = text.indexOf("\n", told)) !== -1; told = end + 1) {
          if (end > told) onLine(JSON.parse(text.slice(told, end)));
        }
      };
      if (onLine) request.onprogress = tell;
      request.onload = () => {
        let body = null;
        if (onLine && request.status < 300) {
          tell();
          return resolve({ status: request.status, body });
        }
        try {
          body = JSON.parse(request.responseText);
        } catch {
          // a proxy's page, say: the status tells enough
        }
        if (request.status < 300) resolve({ status: request.status, body });
        else reject(new Problem(request.status, body ?? {}));
      };
      request.onerror = () => reject(new Problem(0, UNREACHABLE));
      request.onabort = aborted;
      request.onloadend = () => signal?.removeEventListener("abort", abort);
      signal?.addEventListener("abort", abort, { once: true });
      request.send(form);
    });
  return withKey(attempt);
}

const audioPath = (clipId) => `/clips/${encodeURIComponent(clipId)}/audio`;
const blobs = new Map(); // clip → Promise<blob: URL>, the latest last
const KEPT_BLOBS = 8;

/** Where an <audio> finds a clip. Audio elements send no key, so with one the file is fetched and kept for a while. */
export function soundUrl(clipId) {
  if (!key()) return Promise.resolve(audioPath(clipId));
  const kept = blobs.get(clipId) ?? call(audioPath(clipId)).then(async (r) => URL.createObjectURL(await r.blob()));
  blobs.delete(clipId);
  blobs.set(clipId, kept);
  kept.catch(() => blobs.delete(clipId));
  for (const [old, url] of blobs) {
    if (blobs.size <= KEPT_BLOBS) break;
    blobs.delete(old);
    url.then(URL.revokeObjectURL, () => {});
  }
  return kept;
}

/** Saves a clip's file under its name. */
export async function download(clip) {
  const link = document.createElement("a");
  link.download = clip.filename;
  link.href = await soundUrl(clip.id);
  link.click();
}
