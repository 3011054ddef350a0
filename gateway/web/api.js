/** Requests to the server's API. The API key stays in this module's objects: it is never stored and never in a URL. */

import { label } from "./format.js";

/** Largest JSON answer that is read, in bytes. */
const LARGEST_ANSWER = 64 * 2 ** 20;
/** Longest time of a request without a stream, in milliseconds. */
const TIMEOUT = 30_000;

/** An error answer of the server, or a request without an answer (status 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Return whether the same request may succeed later. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Client of the API. */
export class Api {
  #key = "";

  /**
   * @param {URL} base URL of `/v1/`.
   * @param {typeof fetch} [send]
   */
  constructor(base, send = (...all) => fetch(...all)) {
    this.base = base;
    this.send = send;
    /** Called when the server refuses the API key. */
    this.onUnauthorized = () => {};
  }

  /** Use this API key from now on; an empty one sends none. */
  setKey(key) {
    this.#key = key.trim();
  }

  /** Return whether there is an API key. */
  get hasKey() {
    return this.#key !== "";
  }

  /** Return the JSON answer of a GET. `parts`: of the path, not encoded. Raises ApiError. */
  get(parts, query = {}, signal = undefined) {
    return this.#json("GET", parts, query, signal);
  }

  /** Return the JSON answer of a DELETE. Raises ApiError. */
  delete(parts) {
    return this.#json("DELETE", parts, {}, undefined);
  }

  /**
   * Return a response whose body is a stream of server-sent events. Raises ApiError.
   *
   * @param {string[]} parts
   * @param {Record<string, string>} query
   * @param {number | null} lastId Id of the last event that was received, if the stream can resume.
   * @param {AbortSignal} signal
   */
  async stream(parts, query, lastId, signal) {
    const headers = { Accept: "text/event-stream" };
    if (lastId !== null) headers["Last-Event-ID"] = String(lastId);
    const response = await this.#request("GET", parts, query, headers, signal);
    const type = response.headers.get("Content-Type") ?? "";
    if (!type.startsWith("text/event-stream") || response.body === null) {
      throw new ApiError(
        0,
        "bad_answer",
        `the server answered ${label(type, 60) || "nothing"} instead of events`,
      );
    }
    return response;
  }

  async #json(method, parts, query, signal) {
    const timeout = AbortSignal.timeout(TIMEOUT);
    const either = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
    const response = await this.#request(method, parts, query, {}, either);
    return parse(await readBody(response));
  }

  async #request(method, parts, query, headers, signal) {
    if (parts.some((part) => part === "." || part === ".." || part === "")) {
      // an address would lose it, and name another resource
      throw new ApiError(404, "not_found", `there is nothing called ${label(parts.join("/"), 100)}`);
    }
    const url = new URL(parts.map(encodeURIComponent).join("/"), this.base);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    let response;
    try {
      response = await this.send(url, {
        method,
        headers: this.#key === "" ? headers : { ...headers, Authorization: `Bearer ${this.#key}` },
        signal,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
      throw new ApiError(0, "unreachable", "the server does not answer");
    }
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.status === 401) this.onUnauthorized(error);
    throw error;
  }
}

/** Return the text of a body. Raises ApiError if it is too large or breaks off. */
async function readBody(response) {
  const decoder = new TextDecoder();
  const pieces = [];
  let size = 0;
  const reader = response.body?.getReader();
  if (reader === undefined) return "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      size += value.byteLength;
      if (size > LARGEST_ANSWER) {
        await reader.cancel();
        throw new ApiError(413, "too_large", "the answer is too large to show");
      }
      pieces.push(decoder.decode(value, { stream: true }));
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(0, "unreachable", "the answer broke off");
  }
  pieces.push(decoder.decode());
  return pieces.join("");
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(0, "bad_answer", "the server's answer is not JSON");
  }
}

async function errorOf(response) {
  let error = null;
  try {
    error = parse(await readBody(response))?.error;
  } catch {
    error = null; // a proxy may answer with a page of its own; the status says enough
  }
  const code = typeof error?.code === "string" ? error.code : "http_error";
  const message =
    typeof error?.message === "string" ? error.message : `the server answered ${response.status}`;
  return new ApiError(response.status, label(code, 60), label(message, 500));
}
