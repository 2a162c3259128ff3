// The service's HTTP API: requests, errors, the API key, uploads with progress, and streamed responses.
// The key is kept in sessionStorage, so closing the browser tab removes it.

const KEY = "finelap-key";

const ROOT = new URL("..", import.meta.url); // of the service, which a proxy may serve under a path

/** The URL of a path of the service, such as "/clips". */
export const at = (path) => new URL(path.replace(/^\//, ""), ROOT).href;

/** An error response (RFC 9457); `status` is 0 if the service is unreachable. */
export class Problem extends Error {
  constructor(status, body = {}) {
    super(body.detail || body.title || `The service returned ${status}.`);
    this.name = "Problem";
    this.status = status;
    this.title = body.title ?? "";
    this.detail = body.detail ?? this.message;
    this.requestId = body.request_id ?? "";
    this.errors = body.errors ?? [];
  }
}

const UNREACHABLE = { title: "Unreachable", detail: "The service is unreachable." };

/** The key in use, or null. */
export const key = () => sessionStorage.getItem(KEY);

let prompt = null;

/**
 * Asks for the key, once for all pending calls: main.js handles "finelap:key" and calls `done` with the key or null.
 * @returns {Promise<string | null>}
 */
export function askForKey(wrong = false) {
  prompt ??= new Promise((done) => {
    document.dispatchEvent(new CustomEvent("finelap:key", { detail: { wrong, done } }));
  }).then((given) => {
    prompt = null;
    if (given) sessionStorage.setItem(KEY, given);
    return given;
  });
  return prompt;
}

/** Runs `attempt(key)`; on 401, asks for a key and tries again. */
async function withKey(attempt) {
  if (document.documentElement.hasAttribute("data-key") && !key()) await askForKey();
  for (;;) {
    const used = key();
    try {
      return await attempt(used);
    } catch (error) {
      if (error.status !== 401) throw error;
      if (key() !== used) continue; // another call has obtained a new key
      if (!(await askForKey(used !== null))) throw error;
    }
  }
}

/**
 * fetch with the API key. Throws Problem unless the response is successful.
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
      response = await fetch(at(path), {
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

/** Calls the API and parses the JSON response. */
export async function json(path, options) {
  return (await call(path, options)).json();
}

/** GET with query parameters: null and undefined are skipped, lists are repeated. */
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
 * POSTs a form and reports progress, which fetch cannot. With `onLine` the response is ndjson, passed on line by line as
 * it arrives, and `body` is null.
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
      request.open("POST", at(path));
      if (used) request.setRequestHeader("Authorization", `Bearer ${used}`);
      request.upload.onprogress = (event) => onProgress?.(event.loaded, event.total);
      let passed = 0; // characters passed to `onLine`
      const readLines = () => {
        if (request.status !== 200) return;
        const text = request.responseText;
        for (let end; (end = text.indexOf("\n", passed)) !== -1; passed = end + 1) {
          if (end > passed) onLine(JSON.parse(text.slice(passed, end)));
        }
      };
      if (onLine) request.onprogress = readLines;
      request.onload = () => {
        let body = null;
        if (onLine && request.status < 300) {
          readLines();
          return resolve({ status: request.status, body });
        }
        try {
          body = JSON.parse(request.responseText);
        } catch {
          // not JSON, for example a proxy's error page: the status is enough
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

/** The path of a clip's audio; with a stretch (seconds), of an excerpt with `pad` seconds around it. */
export function audioPath(clipId, stretch = null, pad = 0) {
  const path = `/clips/${encodeURIComponent(clipId)}/audio`;
  return stretch ? `${path}?${new URLSearchParams({ start: stretch.start, end: stretch.end, pad })}` : path;
}

const blobs = new Map(); // path → Promise<blob: URL>, most recent last
const MAX_BLOBS = 8;

/** The URL of a clip for an <audio>. Audio elements send no API key, so with one the file is fetched and cached. */
export const soundUrl = (clipId) => playableUrl(audioPath(clipId));

/** The same of its preview, which every browser plays. */
export const previewUrl = (clipId) => playableUrl(`/clips/${encodeURIComponent(clipId)}/preview`);

/** The URL of a path of the service for an <audio>. */
export function playableUrl(path) {
  if (!key()) return Promise.resolve(at(path));
  const cached = blobs.get(path) ?? call(path).then(async (r) => URL.createObjectURL(await r.blob()));
  blobs.delete(path);
  blobs.set(path, cached);
  cached.catch(() => blobs.delete(path));
  for (const [old, url] of blobs) {
    if (blobs.size <= MAX_BLOBS) break;
    blobs.delete(old);
    url.then(URL.revokeObjectURL, () => {});
  }
  return cached;
}

/** Downloads a clip's file, or a stretch of it with `pad` seconds around it. */
export async function download(clip, stretch = null, pad = 0) {
  const link = document.createElement("a");
  link.download = stretch ? "" : clip.filename; // the service names excerpts
  link.href = await playableUrl(audioPath(clip.id, stretch, pad));
  if (stretch && key()) link.download = excerptName(clip, stretch);
  link.click();
}

const excerptName = ({ filename }, { start, end }) =>
  `${filename.replace(/\.[^.]{1,5}$/, "")}_${start.toFixed(2)}s-${end.toFixed(2)}s.wav`;

const VALID = 600; // seconds that a signed URL is valid

/** The URL of a clip's audio with a signature, for what sends no headers; null where the browser cannot sign. */
async function signedUrl(path) {
  if (!globalThis.crypto?.subtle) return null; // only over HTTPS and on this machine
  const bytes = (text) => new TextEncoder().encode(text);
  const raw = await crypto.subtle.digest("SHA-256", bytes(key()));
  const secret = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const expiring = `${path}${path.includes("?") ? "&" : "?"}expires=${Math.floor(Date.now() / 1000) + VALID}`;
  const signature = new Uint8Array(await crypto.subtle.sign("HMAC", secret, bytes(expiring)));
  return at(`${expiring}&signature=${[...signature].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`);
}

/**
 * Makes a node draggable to the desktop or an editor, as the clip's file or as the excerpt that `stretch` returns.
 * Chromium only. The browser fetches the file without the API key, so with a key its URL is signed when the pointer
 * goes down.
 * @param {HTMLElement} node
 * @param {any} clip
 * @param {() => {start: number, end: number} | null} [stretch]
 * @param {() => number} [pad]  seconds
 */
export function draggable(node, clip, stretch = () => null, pad = () => 0) {
  let signed = { path: "", url: null };
  node.draggable = true;
  node.addEventListener("pointerdown", () => {
    if (!key()) return;
    const path = audioPath(clip.id, stretch(), pad());
    signed = { path, url: null };
    signedUrl(path).then((url) => (signed = signed.path === path ? { path, url } : signed), () => {});
  });
  node.addEventListener("dragstart", (event) => {
    const part = stretch();
    const path = audioPath(clip.id, part, pad());
    if (key() && !(signed.path === path && signed.url)) return event.preventDefault();
    const url = key() ? signed.url : at(path);
    const name = (part ? excerptName(clip, part) : clip.filename).replaceAll(":", "-"); // ":" separates the parts
    event.dataTransfer.effectAllowed = "copy";
    event.dataTransfer.setData("DownloadURL", `${part ? "audio/wav" : "application/octet-stream"}:${name}:${url}`);
    event.dataTransfer.setData("text/uri-list", url);
    event.stopPropagation();
  });
}
