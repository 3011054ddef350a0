/** Check the objects of the API before the page uses them: a wrong type must not break a view. */

const LONGEST_NAME = 1_000;
const LONGEST_LIST = 20_000;

/** Return a short text; `otherwise` for anything else. */
export function cleanText(value, otherwise = "") {
  return typeof value === "string" ? value.slice(0, LONGEST_NAME) : otherwise;
}

/** Return a finite number; `otherwise` for anything else. */
export function cleanNumber(value, otherwise = null) {
  return typeof value === "number" && Number.isFinite(value) ? value : otherwise;
}

/** Return the texts of a list, at most as many as a session can have variables. */
export function cleanTexts(value) {
  return cleanList(value).filter((item) => typeof item === "string" && item.length <= LONGEST_NAME);
}

/** Return a list of limited length; an empty one for anything else. */
export function cleanList(value, longest = LONGEST_LIST) {
  return Array.isArray(value) ? value.slice(0, longest) : [];
}

/** Return the numbers of an object by name, at most 100. */
export function cleanNumbers(value) {
  const entries =
    value !== null && typeof value === "object" && !Array.isArray(value) ? Object.entries(value) : [];
  const numbers = entries.slice(0, 100).filter(([, number]) => cleanNumber(number) !== null);
  return Object.fromEntries(numbers.map(([name, number]) => [name.slice(0, 100), number]));
}

/** Return an error object of the API, or null. */
export function cleanError(value) {
  if (value === null || typeof value !== "object") return null;
  return {
    code: cleanText(value.code),
    message: cleanText(value.message),
    call: cleanText(value.call, null),
  };
}

/** Return a call of a graph, or null if it has no id. */
export function cleanCall(value) {
  if (value === null || typeof value !== "object" || cleanText(value.id) === "") return null;
  return {
    id: cleanText(value.id),
    model: cleanText(value.model),
    state: cleanText(value.state, "waiting"),
    waitsFor: cleanText(value.waits_for, null),
    waitingOn: cleanTexts(value.waiting_on),
    why: cleanText(value.why, null),
    inputs: cleanTexts(value.inputs),
    output: cleanText(value.output),
    slots: cleanTexts(value.slots),
    form: cleanText(value.form, null),
    tool: cleanText(value.tool, null),
    parent: cleanText(value.parent, null),
    sharedWith: cleanText(value.shared_with, null),
    objective: cleanText(value.objective),
    engine: cleanText(value.engine, null),
    promptTokens: cleanNumber(value.prompt_tokens, 0),
    cachedTokens: cleanNumber(value.cached_tokens, 0),
    completionTokens: cleanNumber(value.completion_tokens, 0),
    missedTokens: cleanNumbers(value.missed_tokens),
    finishReason: cleanText(value.finish_reason, null),
    error: cleanError(value.error),
    created: cleanNumber(value.created),
    firstToken: cleanNumber(value.first_token),
    finished: cleanNumber(value.finished),
    spent: cleanNumbers(value.spent_ms),
    cost: cleanNumber(value.cost),
    difference: cleanDifference(value.prompt_difference),
  };
}

/** Return where a prompt does not extend that of an earlier call, or null if it does or cannot be understood. */
export function cleanDifference(value) {
  if (value === null || typeof value !== "object" || cleanText(value.call) === "") return null;
  return {
    call: cleanText(value.call),
    message: cleanNumber(value.message),
    role: cleanText(value.role),
    field: cleanText(value.field),
    earlier: cleanText(value.earlier),
    later: cleanText(value.later),
    spoiler: cleanText(value.spoiler, "unknown"),
    tokens: cleanNumber(value.lost_tokens),
  };
}

/** Return a variable without its value, or null if it has no name. */
export function cleanVariable(value) {
  if (value === null || typeof value !== "object" || cleanText(value.name) === "") return null;
  return {
    name: cleanText(value.name),
    state: cleanText(value.state, "declared"),
    error: cleanError(value.error),
    producer: cleanText(value.producer, null),
    consumers: cleanTexts(value.consumers),
  };
}

/** Return a session of the list, or null if it has no id. */
export function cleanSession(value) {
  if (value === null || typeof value !== "object" || cleanText(value.id) === "") return null;
  const usage = cleanNumbers(value.usage);
  const metadata =
    value.metadata !== null && typeof value.metadata === "object" ? Object.entries(value.metadata) : [];
  return {
    kind: "session",
    id: cleanText(value.id),
    state: cleanText(value.state),
    created: cleanNumber(value.created_at),
    expires: cleanNumber(value.expires_at),
    metadata: metadata.slice(0, 16).map(([name, text]) => [name.slice(0, 100), cleanText(text)]),
    calls: (usage.calls_run ?? 0) + (usage.calls_shared ?? 0),
    shared: usage.calls_shared ?? 0,
    prompt: usage.prompt_tokens ?? 0,
    cached: usage.cached_tokens ?? 0,
    completion: usage.completion_tokens ?? 0,
    cost: cleanNumber(usage.cost),
  };
}

/** Return a program of the list, in the form of a session, or null if it has no id. */
export function cleanProgram(value) {
  const program = cleanSession(value);
  if (program === null) return null;
  return {
    ...program,
    kind: "program",
    calls: cleanNumbers(value.usage).calls ?? 0,
    session: cleanText(value.session, null),
    lastUsed: cleanNumber(value.last_used_at),
  };
}

const LINK_KINDS = ["extends", "answer", "spawns"];

/** Return a link between calls of a program, or null if it cannot be understood. */
export function cleanLink(value) {
  if (value === null || typeof value !== "object" || !LINK_KINDS.includes(value.kind)) return null;
  const [from, to] = [cleanText(value.from), cleanText(value.to)];
  if (from === "" || to === "") return null;
  return { from, to, kind: value.kind, gap: cleanNumber(value.gap_ms) };
}
