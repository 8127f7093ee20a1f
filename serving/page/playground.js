// Asks about what is wanted, and shows what comes. Nothing of it is kept beyond the page.

const asked = { items: [], key: "texts", waiting: [], results: [], cards: [], names: [], rows: [], shown: FIRST_ANSWERS, requests: [] };
let running = null;
let seen = new AbortController();

const say = (words) => { find("status").textContent = words; };

function learn(found) {
  const isOther = facts?.text_template !== found.text_template;
  facts = found;
  find("served").textContent = `version ${facts.version} · ${facts.dtype}`;
  if (!isOther) return;
  const isMade = !isBare(facts.text_template);
  find("template").textContent = isMade ? `This version learned from texts made like ${JSON.stringify(facts.text_template)}.` : "";
  show(find("template"), isMade && kind() !== "file");
  if (table) offerColumns();
}

// Cards of the first answers, in the order of the texts; parts of a request may be answered out of it.
function showAnswers() {
  let last = null;
  for (let place = 0; place < Math.min(asked.shown, asked.items.length); place += 1) {
    if (!asked.results[place]) continue;
    const card = (asked.cards[place] ??= answerCard(place, asked.results[place], seen.signal));
    if (!card.isConnected) (last ? last.after(card) : find("answered").prepend(card));
    last = card;
  }
  const hidden = asked.results.reduce((count, _, place) => count + (place >= asked.shown ? 1 : 0), 0);
  show(find("more"), hidden > 0);
  find("more").textContent = `Show more (${hidden.toLocaleString("en")} not shown)`;
  show(find("answers"), asked.results.some(Boolean));
  const done = asked.items.length - asked.waiting.length;
  find("progress").max = asked.items.length;
  find("progress").value = done;
}

function spentInWords(requests) {
  if (!requests.length) return "";
  const sum = (name) => milliseconds(requests.reduce((total, spent) => total + (spent[name] ?? 0), 0));
  const most = (name) => Math.max(...requests.map((spent) => spent[name] ?? 0));
  const head = requests.length > 1 ? `${counted(requests.length, "request")}, together: ` : "";
  const batch = `${requests.length > 1 ? "largest batch" : "batch of"} ${counted(most("batch"), "text")}, ${counted(most("tokens"), "token")}`;
  return `${head}queue ${sum("queue")} · tokenise ${sum("tokenize")} · compute ${sum("compute")} · ${batch} · ${sum("whole")} in all`;
}

function summary() {
  const told = asked.results.filter(Boolean);
  const answers = told.map(({ answer }) => answer).filter((answer) => answer && !answer.error);
  const versions = [...new Set(told.map(({ version }) => version).filter((version) => version !== undefined))];
  const unsure = answers.filter(({ heads }) => Object.values(heads).some((head) => head.abstained)).length;
  const cut = answers.filter(({ truncated }) => truncated).length;
  const notes = [[unsure, "with a head that is not sure"], [cut, "cut"], [told.length - answers.length, "without an answer"]];
  const by = versions.length ? ` by version ${versions.join(" and ")}` : "";
  const more = notes.filter(([count]) => count).map(([count, words]) => `, ${count.toLocaleString("en")} ${words}`).join("");
  return `${counted(answers.length, "text")} answered${by}${more}.`;
}

const told = {
  async answers(part, { content, spent }) {
    const { version, answers } = content;
    if (facts.version !== version) learn(await readFacts().catch(() => facts));
    const heads = facts.version === version ? facts.heads : undefined;
    part.forEach((place, position) => { asked.results[place] = { ...told.about(place), version, heads, answer: answers[position] }; });
    asked.requests.push(spent);
    find("spent").textContent = spentInWords(asked.requests);
    countAsked();
    showAnswers();
    say(`${asked.items.length - asked.waiting.length} of ${counted(asked.items.length, "text")} …`);
  },
  wrong(place, reason) {
    asked.results[place] = { ...told.about(place), reason };
    showAnswers();
  },
  waits(refusal, left) {
    // Read aloud once, not every second.
    if (told.last !== refusal) say(`${sentence(refusal.problem.title)} ${sentence(refusal.message)} It is asked again soon.`);
    told.last = refusal;
    find("count").textContent = `asking again in ${left} s`;
  },
  about: (place) => ({ text: asked.textOf(asked.items[place]), cells: asked.rows[place] }),
};

function setRunning(controller) {
  running = controller;
  const isFocused = [find("ask"), find("cancel"), find("resume")].includes(document.activeElement);
  show(find("ask"), !running);
  show(find("cancel"), running);
  show(find("under-way"), running);
  show(find("resume"), !running && asked.waiting.length);
  if (isFocused) ["cancel", "resume", "ask"].map(find).find((button) => !button.hidden).focus();
}

async function run() {
  const controller = new AbortController();
  const { signal } = controller;
  find("problem").replaceChildren();
  say(`Asking about ${counted(asked.waiting.length, "text")} …`);
  setRunning(controller);
  showAnswers();
  try {
    if (!facts) learn(await patiently(() => readFacts({ signal }), signal, told.waits));
    await askAll(asked.items, asked.waiting, asked.key, facts.limits, signal, told);
    say(summary());
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof Refusal)) throw error;
    say(`Stopped. ${summary()} ${counted(asked.waiting.length, "text")} left.`);
    if (error instanceof Refusal) problemIn(find("problem"), error);
  } finally {
    countAsked();
    setRunning(null);
  }
}

function begin(event) {
  event.preventDefault();
  if (running) return;
  const found = wanted();
  if (!found.items.length) {
    say("There is no text to ask about yet.");
    find(kind()).focus();
    return;
  }
  seen.abort();
  seen = new AbortController();
  const waiting = [...found.items.keys()];
  Object.assign(asked, found, { waiting, results: [], cards: [], requests: [], shown: FIRST_ANSWERS });
  find("answered").replaceChildren();
  find("spent").textContent = "";
  run();
}

function download() {
  const address = URL.createObjectURL(new Blob([writeCsv(tableOf(asked.results, asked.names))], { type: "text/csv" }));
  make("a", { href: address, download: "answers.csv" }).click();
  URL.revokeObjectURL(address);
}

find("asking").addEventListener("submit", begin);
find("asking").addEventListener("input", countAsked);
find("asking").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("asking").requestSubmit();
});
for (const radio of find("asking").elements.kind) radio.addEventListener("change", chooseKind);
find("file").addEventListener("change", ({ target }) => { if (target.files.length) takeFile(target.files[0]); });
find("named").addEventListener("change", offerColumns);
find("cancel").addEventListener("click", () => running?.abort());
find("resume").addEventListener("click", run);
find("download").addEventListener("click", download);
find("more").addEventListener("click", () => {
  asked.shown += FIRST_ANSWERS;
  showAnswers();
});
takeDrops();
chooseKind();
watch(learn);
