// What is asked about: texts that were pasted, or a column of a table, or the fields that the version's template joins.

let facts = null;
let table = null;

const kind = () => new FormData(find("asking")).get("kind");
const plainLines = (text) => text.split(/\r\n|\n|\r/).filter((line) => line.trim());

function chooseKind() {
  for (const one of ["lines", "whole", "file"]) show(find(`${one}-asked`), one === kind());
  show(find("template"), find("template").textContent && kind() !== "file");
  countAsked();
}

const header = () => (find("named").checked ? table.rows[0] : table.rows[0].map((_, place) => `column ${place + 1}`));
const body = () => (find("named").checked ? table.rows.slice(1) : table.rows);

// Which column is the text: one that the version learned from or that is called so, else the one with the longest fields.
function likelyColumn(names, rows) {
  const learned = facts ? templateColumns(facts.text_template) : [];
  const named = names.findIndex((name) => learned.includes(name) || /^texts?$/i.test(name.trim()));
  const length = (place) => rows.slice(0, 50).reduce((sum, row) => sum + row[place].length, 0);
  return named >= 0 ? named : names.reduce((best, _, place) => (length(place) > length(best) ? place : best), 0);
}

function offerColumns() {
  const names = header();
  const columns = facts ? templateColumns(facts.text_template) : [];
  const joins = columns.length > 0 && !isBare(facts.text_template) && columns.every((column) => names.includes(column));
  const options = names.map((name, place) => make("option", { value: String(place), textContent: name || `column ${place + 1}` }));
  if (joins) options.unshift(make("option", { value: "fields", textContent: `${columns.join(" and ")}, joined as the version learned them` }));
  find("column").replaceChildren(...options);
  find("column").value = joins ? "fields" : String(likelyColumn(names, body()));
  show(find("table"), true);
  countAsked();
}

async function takeFile(file) {
  table = null;
  show(find("table"), false);
  try {
    table = { rows: await readTable(file) };
    find("file-found").textContent = `${file.name}: ${counted(table.rows.length, "row")} of ${counted(table.rows[0].length, "column")}.`;
    find("file-found").className = "note";
    offerColumns();
  } catch (error) {
    if (!(error instanceof TableError)) throw error;
    find("file-found").textContent = `${file.name}: ${sentence(error.message)}`;
    find("file-found").className = "problem";
    countAsked();
  }
}

// What would be asked about now: items as the server takes them, the texts they make, and what the download begins with.
function wanted() {
  if (kind() !== "file") {
    const texts = kind() === "lines" ? plainLines(find("lines").value) : [find("whole").value].filter((text) => text.trim());
    return { key: "texts", items: texts, textOf: (item) => item, names: ["text"], rows: texts.map((text) => [text]) };
  }
  if (!table) return { key: "texts", items: [], textOf: String, names: [], rows: [] };
  const names = header();
  const rows = body();
  if (find("column").value !== "fields") {
    return { key: "texts", items: rows.map((row) => row[Number(find("column").value)]), textOf: (item) => item, names, rows };
  }
  const { text_template: template } = facts;
  const places = templateColumns(template).map((column) => [column, names.indexOf(column)]);
  const items = rows.map((row) => Object.fromEntries(places.map(([column, place]) => [column, row[place]])));
  return { key: "examples", items, textOf: (item) => joined(template, item), names, rows };
}

const beginning = (text) => (text.length > 200 ? `${text.slice(0, 200).trimEnd()}…` : text);

function countAsked() {
  const { items, textOf } = wanted();
  find("count").textContent = items.length ? counted(items.length, "text") : "";
  if (table) find("first").textContent = items.length ? beginning(textOf(items[0])) : "";
}

function takeDrops() {
  const holdsFile = (event) => event.dataTransfer.types.includes("Files");
  const mark = (isOver) => document.body.classList.toggle("dropping", isOver);
  document.addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(false); });
  document.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    mark(false);
    find("asking").elements.kind.value = "file";
    chooseKind();
    find("file").files = event.dataTransfer.files;
    takeFile(event.dataTransfer.files[0]);
  });
}
