// Elements and numbers. Elements are made of text and other elements alone, so that nothing a person or a model wrote is read as HTML.

const find = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const show = (element, isShown) => { element.hidden = !isShown; };

const counted = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

// Words of a server as a sentence.
const ended = (words) => (/[.…!?]$/.test(words) ? words : `${words}.`);
const sentence = (words) => ended(`${words[0].toUpperCase()}${words.slice(1)}`);

// A probability as .994; what is not quite 1 or 0 is not called so.
function share(probability) {
  if (probability > 0.9995 && probability < 1) return "> .999";
  if (probability < 0.0005 && probability > 0) return "< .001";
  return probability.toFixed(3).replace(/^0/, "");
}

function milliseconds(duration) {
  if (duration >= 1000) return `${(duration / 1000).toFixed(1)} s`;
  return `${duration.toFixed(duration < 10 ? 1 : 0)} ms`;
}

// A button that opens and closes something, and says so.
function toggle(closed, opened, onToggle) {
  const button = make("button", { type: "button", className: "link", textContent: closed });
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const isOpen = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(isOpen));
    button.textContent = isOpen ? opened : closed;
    onToggle(isOpen);
  });
  return button;
}
