// Shows which words an answer comes from: the text itself, its words shaded by their weight.

// Below this, what a word takes from the probability is nothing to speak of.
const LEAST_WEIGHT = 0.005;
const STRONGEST = 5;

const signed = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(3).replace(/^0/, "")}`;

// Spans count characters as Python does, and JavaScript's strings count halves of some.
function passageOf(text, spans, weights) {
  const characters = Array.from(text);
  const piece = (begin, end) => characters.slice(begin, end).join("");
  const most = Math.max(LEAST_WEIGHT, ...weights.map(Math.abs));
  const passage = make("p", { className: "passage" });
  let read = 0;
  spans.forEach(({ begin, end }, place) => {
    const mark = make("mark", { textContent: piece(begin, end), title: signed(weights[place]) });
    mark.className = weights[place] < 0 ? "against" : "for";
    mark.style.setProperty("--weight", (Math.abs(weights[place]) / most).toFixed(3));
    passage.append(piece(read, begin), mark);
    read = end;
  });
  if (read < characters.length) passage.append(make("span", { className: "unread", textContent: piece(read), title: "not read" }));
  return passage;
}

// The same in words, for those who do not see shades.
function strongest(text, spans, weights, sign) {
  const characters = Array.from(text);
  const ranked = weights.map((weight, place) => [sign * weight, place]).filter(([weight]) => weight >= LEAST_WEIGHT);
  ranked.sort(([one], [other]) => other - one);
  return ranked.slice(0, STRONGEST).map(([weight, place]) => {
    const words = make("span", { textContent: characters.slice(spans[place].begin, spans[place].end).join("") });
    return make("li", {}, words, " ", make("data", { value: String(sign * weight), textContent: signed(sign * weight) }));
  });
}

function weighed(text, spans, told) {
  const sides = [[1, `for ${told.class}`], [-1, `against ${told.class}`]];
  const lists = sides.map(([sign, words]) => [words, strongest(text, spans, told.weights, sign)]).filter(([, items]) => items.length);
  const legend = lists.length
    ? `Without a word, ${told.class} (${share(told.probability)}) is by so much less probable:`
    : `No single word matters to ${told.class} (${share(told.probability)}).`;
  return [
    passageOf(text, spans, told.weights),
    make("p", { className: "note", textContent: legend }),
    ...lists.map(([words, items]) => make("div", { className: "words" }, make("span", { textContent: words }), make("ul", {}, ...items))),
  ];
}

// The explanation of one text, head by head.
function explanationOf(text, { spans, heads, truncated }, name) {
  const shown = make("div");
  const choice = make("fieldset", { className: "choice" }, make("legend", { className: "unseen", textContent: "Head to explain" }));
  Object.entries(heads).forEach(([head, told], place) => {
    const radio = make("input", { type: "radio", name, value: head, checked: place === 0 });
    const choose = () => shown.replaceChildren(...weighed(text, spans, told));
    radio.addEventListener("change", choose);
    if (place === 0) choose();
    choice.append(make("label", {}, radio, make("span", { textContent: head })));
  });
  const cut = truncated ? [make("p", { className: "note", textContent: "What is faint was not read." })] : [];
  return [choice, shown, ...cut];
}

// Asks for the explanation when it is first opened; `signal` ends waiting for a busy server.
function explanationFor(text, name, signal) {
  const region = make("div", { className: "explanation", hidden: true });
  let isAsked = false;
  const button = toggle("Which words?", "Which words?", async (isOpen) => {
    show(region, isOpen);
    if (isAsked) return;
    isAsked = true;
    const note = make("p", { className: "note", role: "status", textContent: "Leaving out each word once …" });
    region.replaceChildren(note);
    const tick = (refusal, left) => { note.textContent = `${sentence(refusal.message)} Asking again in ${left} s.`; };
    try {
      const { content } = await patiently(() => ask("v1/explain", { text }, signal), signal, tick);
      region.replaceChildren(...explanationOf(text, content, name));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refusal)) throw error;
      isAsked = false;
      problemIn(note, error);
      note.className = "problem";
    }
  });
  return [button, region];
}
