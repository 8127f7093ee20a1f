// What goes on now: the version that answers, and the figures of all replicas, as Prometheus reads them.

const EVERY_MS = 2_000;
// Figures reach the server some seconds late and together, so that shorter spans tell of nothing or of too much.
const WINDOW_MS = 30_000;
const COUNTED = ["texts", "tokens", "batches", "compute_s"];

// Metric → its samples, as {labels, value}.
function readMetrics(text) {
  const found = new Map();
  for (const [, name, labels, value] of text.matchAll(/^(twohead_\w+)(?:\{(.*)\})? (\S+)$/gm)) {
    const pairs = [...(labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label, one]) => [label, one]);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return found;
}

class Figures {
  constructor() {
    this.samples = [];
  }

  // Takes in what /metrics said; returns what is to be shown, as pairs of words.
  read(text, now) {
    const metrics = readMetrics(text);
    const total = (name) => (metrics.get(`twohead_${name}`) ?? []).reduce((sum, { value }) => sum + value, 0);
    const sample = { at: now, ...Object.fromEntries(COUNTED.map((name) => [name, total(`${name}_total`)])) };
    // A replica that went away took its counts along.
    if (COUNTED.some((name) => sample[name] < this.samples.at(-1)?.[name])) this.samples = [];
    this.samples = [...this.samples.filter(({ at }) => at >= now - WINDOW_MS), sample];
    const replicas = metrics.get("twohead_version") ?? [];
    const versions = [...new Set(replicas.map(({ value }) => value))].sort((one, other) => one - other);
    return [
      ["Replicas", versions.length > 1 ? `${replicas.length}, with versions ${versions.join(" and ")}` : String(replicas.length)],
      ["Texts waiting", total("queued_texts").toLocaleString("en")],
      ["Tokens waiting", total("queued_tokens").toLocaleString("en")],
      ...this.rates(replicas.length),
      ["Requests refused", total("refused_total").toLocaleString("en")],
      ["Requests too late", total("expired_total").toLocaleString("en")],
    ];
  }

  rates(replicas) {
    const [first, last] = [this.samples[0], this.samples.at(-1)];
    const grown = Object.fromEntries(COUNTED.map((name) => [name, last[name] - first[name]]));
    const seconds = (last.at - first.at) / 1000;
    return [
      ["Texts a second", seconds ? (grown.texts / seconds).toFixed(1) : "…"],
      ["Texts a batch", grown.batches ? (grown.texts / grown.batches).toFixed(1) : "–"],
      ["Tokens a batch", grown.batches ? Math.round(grown.tokens / grown.batches).toLocaleString("en") : "–"],
      ["Engines busy", seconds && replicas ? `${Math.round((100 * grown.compute_s) / seconds / replicas)} %` : "…"],
    ];
  }
}

const listed = (pairs) => pairs.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]);

function versionRows(facts) {
  const engine = `${facts.engine} on ${facts.device}`;
  return [["Version", String(facts.version)], ["Follows", facts.name ?? "no name"], ["Engine", engine], ["Precision", facts.dtype]];
}

function failureIn(element, { last_failure: failure, version }) {
  show(element, failure !== null);
  if (failure === null) return;
  const which = failure.version === null ? "The name that is followed could not be read" : `Version ${failure.version} could not be loaded`;
  const at = new Date(failure.at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  element.className = "problem";
  element.replaceChildren(
    make("strong", { textContent: `${which}.` }),
    make("p", { textContent: ended(failure.reason) }),
    make("p", { className: "note", textContent: `${at}; version ${version} goes on.` }),
  );
}

// Asks for the version and the figures while the page can be seen; `told` is given the facts.
function watch(told) {
  const figures = new Figures();
  let version = [];
  let pairs = [];
  let timer = 0;
  let isAsking = false;
  async function look() {
    if (document.hidden || isAsking) return;
    clearTimeout(timer);
    isAsking = true;
    const sent = heldKey;
    const asked = [readFacts(), send("metrics", (response) => response.text())];
    const [facts, text] = await Promise.allSettled(asked);
    isAsking = false;
    const answers = [facts, text];
    const refusals = answers.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
    const isRefused = refusals.some((reason) => wantsKey(reason, sent));
    if (!isRefused && answers.some(({ status }) => status === "fulfilled")) unlocked(sent);
    if (facts.status === "fulfilled") {
      told(facts.value);
      version = versionRows(facts.value);
      failureIn(find("failure"), facts.value);
    } else if (!version.length && facts.reason.problem?.title === "not ready") {
      version = [["Version", "none is loaded yet"]];
    }
    if (text.status === "fulfilled") pairs = figures.read(text.value, performance.now());
    find("facts").replaceChildren(...(isRefused ? [] : listed([...version, ...pairs])));
    if (isRefused) show(find("failure"), false);
    find("figures-note").textContent = refusals.length
      ? `No new figures: ${sentence(refusals[0].message)}`
      : "Figures of all replicas, rates over half a minute. They arrive some seconds late.";
    // Wrong keys are counted, and one that never was good will not become so.
    if (refusals.some(isLocked) && sent === heldKey && sent !== goodKey) return;
    timer = setTimeout(look, sent === heldKey ? EVERY_MS : 0);
  }
  document.addEventListener("visibilitychange", look);
  takeKeys(look);
  return look();
}

const readFacts = (options) => send("v1/version", (response) => response.json(), options);
