// Shows answers: of each head its class, how probable the others are, and what there is to know about the text.

const FIRST_CLASSES = 3;
const FIRST_ANSWERS = 25;
const LONG_CHARACTERS = 280;

function classRow(name, probability, isBest, isNamed) {
  const bar = make("span", { className: "bar" }, make("span"));
  bar.firstChild.style.inlineSize = `${100 * probability}%`;
  bar.setAttribute("aria-hidden", "true");
  const row = make("li", {}, make("span", { className: "class", textContent: name }), bar, shareOf(probability));
  row.classList.toggle("best", isBest);
  row.classList.toggle("named", isNamed);
  return row;
}

const shareOf = (probability) => make("data", { value: String(probability), title: String(probability), textContent: share(probability) });

// `facts` are those of the head in the version that answered; undefined where another one answers by now.
function unsure(facts) {
  const threshold = facts?.threshold ?? null;
  const why = threshold > 1 ? "no threshold reached its target" : `below ${share(threshold ?? 0)}`;
  return make("p", { className: "unsure" }, make("b", { textContent: "not sure" }), threshold === null ? "" : `: ${why}`);
}

function headBlock(name, told, facts) {
  const scores = Object.entries(told.scores);
  const ranked = [...scores].sort(([, one], [, other]) => other - one);
  const isBest = (one) => one === ranked[0][0];
  const list = make("ul", { className: "classes" });
  const fill = (rows) => list.replaceChildren(...rows.map(([one, score]) => classRow(one, score, isBest(one), told.class === one)));
  fill(ranked.slice(0, FIRST_CLASSES));
  const doubt = told.class === null ? [unsure(facts)] : [];
  const block = make("div", { className: "head" }, make("h3", { textContent: name }), ...doubt, list);
  // Ordered classes say more in their order, which an object does not keep of names that are numbers.
  const all = facts?.ordered ? facts.classes.map((one) => [one, told.scores[one]]) : ranked;
  if (scores.length > FIRST_CLASSES) {
    block.append(toggle(`All ${scores.length} classes`, "The first ones", (isOpen) => fill(isOpen ? all : ranked.slice(0, FIRST_CLASSES))));
  }
  return block;
}

function textOf(text) {
  const shown = make("p", { className: "text", textContent: text });
  if (text.length <= LONG_CHARACTERS && text.split("\n").length <= 4) return [shown];
  shown.classList.add("clamped");
  return [shown, toggle("Whole text", "Less of it", (isOpen) => shown.classList.toggle("clamped", !isOpen))];
}

// `told` is {text, heads, answer} or {text, reason}; `signal` ends what its explanation waits for.
function answerCard(place, told, signal) {
  const card = make("li", { className: "card", value: place + 1 }, ...textOf(told.text));
  const reason = told.reason ?? told.answer.error;
  if (reason) {
    card.append(make("p", { className: "problem" }, make("strong", { textContent: "No answer: " }), sentence(reason)));
    return card;
  }
  const { tokens, truncated } = told.answer;
  const blocks = Object.entries(told.answer.heads).map(([name, one]) => headBlock(name, one, told.heads?.find((head) => head.name === name)));
  const read = truncated ? `read ${tokens} of its tokens; the rest was cut` : counted(tokens, "token");
  const note = make("span", { className: truncated ? "note cut" : "note", textContent: read });
  const [button, region] = explanationFor(told.text, `head-of-${place}`, signal);
  card.append(make("div", { className: "heads" }, ...blocks), make("div", { className: "below" }, note, button), region);
  return card;
}

// The table of answers: what was asked, and behind it what was answered.
function tableOf(results, names) {
  const heads = [...new Set(results.flatMap((told) => Object.keys(told?.answer?.heads ?? {})))];
  const of = (head) => [`answer.${head}`, `answer.${head}.probability`, `answer.${head}.abstained`];
  const rest = ["answer.tokens", "answer.truncated", "answer.version", "answer.error"];
  const rows = results.filter(Boolean).map((told) => {
    const answer = told.answer ?? { heads: {} };
    const cells = heads.flatMap((head) => {
      const one = answer.heads[head];
      return one ? [one.class ?? "", one.probability, one.abstained ?? false] : ["", "", ""];
    });
    const error = told.reason ?? answer.error ?? "";
    return [...told.cells, ...cells, answer.tokens ?? "", answer.truncated ?? "", told.version ?? "", error];
  });
  return [[...names, ...heads.flatMap(of), ...rest], ...rows];
}
