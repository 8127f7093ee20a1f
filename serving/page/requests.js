// Asks the server: says in words what went wrong, waits when told to, and divides many texts among requests.

// Answers to a part are shown as soon as they are there, and so many texts are soon answered.
const TOGETHER = 64;
const LONGEST_WAIT_S = 8;
const BUSY = [0, 429, 502, 503];
// A key's rate counts requests, however many texts each has.
const BY_REQUESTS = 429;
const TOO_MUCH = [413, 504];
const ADVICE = {
  0: "Is it running, and is this machine connected?",
  401: "Give a key above, and go on.",
  403: "Give another key above, and go on.",
  413: "Ask about shorter texts.",
  422: "Change what is named, and ask again.",
  500: "Ask again. If it goes on, tell who runs the server the number of the request.",
  504: "Ask about fewer or shorter texts, or when less is going on.",
};

// What the server said, or that it said nothing.
class Refusal extends Error {
  constructor(status, problem, retryAfterS = 0) {
    super(problem.detail);
    Object.assign(this, { status, problem, retryAfterS });
  }

  // Position in the request → what is wrong with that text.
  get findings() {
    const named = (this.problem.errors ?? []).map(({ field, reason }) => [/^(?:texts|examples)\.(\d+)$/.exec(field)?.[1], reason]);
    return new Map(named.filter(([position]) => position !== undefined).map(([position, reason]) => [Number(position), reason]));
  }
}

async function readRefusal(response) {
  const isProblem = (response.headers.get("content-type") ?? "").startsWith("application/problem+json");
  const silent = { title: "no answer", detail: `the server answered ${response.status} and no more` };
  const unread = (error) => {
    // Who cancels is not asked to wait.
    if (error.name === "AbortError") throw error;
    return silent;
  };
  const problem = isProblem ? await response.json().catch(unread) : silent;
  return new Refusal(response.status, problem, Number(response.headers.get("retry-after")) || 0);
}

async function send(path, read, options = {}) {
  const sent = heldKey;
  try {
    const response = await fetch(path, withKey(options));
    if (!response.ok) throw await readRefusal(response);
    return await read(response);
  } catch (error) {
    if (wantsKey(error, sent)) wantKey(error, sent);
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal(0, { title: "no connection", detail: "the server was not reached" });
  }
}

// `queue;dur=2.00, batch;desc="4"` → {queue: 2, batch: 4}.
function readTiming(header) {
  const found = [...(header ?? "").matchAll(/(\w+);(?:dur=([\d.]+)|desc="(\d+)")/g)];
  return Object.fromEntries(found.map(([, name, duration, fact]) => [name, Number(duration ?? fact)]));
}

function ask(path, body, signal) {
  const begun = performance.now();
  const read = async (response) => {
    const content = await response.json();
    return { content, spent: { ...readTiming(response.headers.get("server-timing")), whole: performance.now() - begun } };
  };
  return send(path, read, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
}

function wait(seconds, signal, tick) {
  return new Promise((resolve, reject) => {
    // Whoever cancelled already is not heard any more.
    signal.throwIfAborted();
    let left = Math.ceil(seconds);
    const timer = setInterval(() => {
      left -= 1;
      if (left > 0) tick(left);
      else finish(resolve);
    }, 1000);
    const stop = () => finish(() => reject(signal.reason));
    const finish = (end) => {
      clearInterval(timer);
      signal.removeEventListener("abort", stop);
      end();
    };
    signal.addEventListener("abort", stop);
    tick(left);
  });
}

// Waits as long as a busy server says; `tick` is told the seconds left.
async function waitFor(refusal, attempt, signal, tick) {
  await wait(refusal.retryAfterS || Math.min(2 ** attempt, LONGEST_WAIT_S), signal, (left) => tick(refusal, left));
}

// Asks again as long as the server is busy.
async function patiently(what, signal, tick) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await what();
    } catch (error) {
      if (!(error instanceof Refusal) || !BUSY.includes(error.status)) throw error;
      await waitFor(error, attempt, signal, tick);
    }
  }
}

// As many of the texts that still wait as one request may hold.
function nextPart(waiting, items, most, mostBytes) {
  const encoder = new TextEncoder();
  const part = [];
  let bytes = 32;
  for (const position of waiting.slice(0, most)) {
    bytes += encoder.encode(JSON.stringify(items[position])).length + 1;
    if (part.length && bytes > mostBytes) break;
    part.push(position);
  }
  return part;
}

/* Asks about all items that wait, in several requests; what was answered leaves `waiting`, so that the rest can be asked about later.
   `told` is told of answers, of items that are wrong, and of waiting. A part that was too much is asked about by halves. */
async function askAll(items, waiting, key, limits, signal, told) {
  const most = Math.min(TOGETHER, limits.max_texts);
  let size = most;
  let attempt = 0;
  const done = (count) => {
    waiting.splice(0, count);
    size = Math.min(2 * size, most);
    attempt = 0;
  };
  while (waiting.length) {
    const part = nextPart(waiting, items, size, limits.max_body_bytes);
    try {
      const reply = await ask("v1/predict", { [key]: part.map((position) => items[position]) }, signal);
      done(part.length);
      await told.answers(part, reply);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { findings } = error;
      if (findings.size) {
        for (const [place, reason] of findings) told.wrong(part[place], `the text ${reason}`);
        waiting.splice(0, part.length, ...part.filter((_, place) => !findings.has(place)));
      } else if (part.length > 1 && TOO_MUCH.includes(error.status)) {
        size = Math.ceil(part.length / 2);
      } else if (BUSY.includes(error.status)) {
        if (error.status !== BY_REQUESTS) size = Math.ceil(part.length / 2);
        await waitFor(error, attempt, signal, told.waits);
        attempt += 1;
      } else if (part.length === 1 && [413, 500].includes(error.status)) {
        done(1);
        told.wrong(part[0], error.message);
      } else {
        throw error;
      }
    }
  }
}

function problemIn(words, refusal) {
  const { title, detail, hint, request_id: requestId, errors = [] } = refusal.problem;
  const listed = errors.filter((finding) => `${finding.field || "body"}: ${finding.reason}` !== detail);
  words.replaceChildren(
    make("strong", { textContent: sentence(title) }), " ", sentence(detail),
    ...listed.map(({ field, reason }) => make("p", { textContent: sentence(`${field} ${reason}`) })),
    ...[hint, ADVICE[refusal.status]].filter(Boolean).map((advice) => make("p", { textContent: sentence(advice) })),
    ...(requestId ? [make("p", { className: "note", textContent: `Request ${requestId}` })] : []),
  );
}
