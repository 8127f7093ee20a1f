// Tables as RFC 4180 writes them, and the text that a version's template makes of a row.

const MOST_FILE_BYTES = 2 ** 26;

class TableError extends Error {}

const lineOf = (text, position) => text.slice(0, position).split(/\r\n|\n|\r/).length;

// Spreadsheets of some countries write semicolons, and .tsv files tabs; the first line tells.
function separatorOf(text) {
  const line = text.replace(/"[^"]*"/g, "").split(/[\r\n]/, 1)[0];
  const count = (separator) => line.split(separator).length;
  return [",", ";", "\t"].reduce((best, separator) => (count(separator) > count(best) ? separator : best));
}

function parseCsv(text) {
  const separator = separatorOf(text);
  const field = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^${separator}\\r\\n]*))(${separator}|\\r\\n|\\n|\\r|$)`, "y");
  const rows = [];
  let row = [];
  for (let position = 0; position < text.length; position = field.lastIndex) {
    field.lastIndex = position;
    const found = field.exec(text);
    // A field that begins with a quote and is no quoted one matches as a plain one.
    if (!found || (found[1] === undefined && found[2].startsWith('"'))) {
      throw new TableError(`line ${lineOf(text, position)}: a quote is opened and not closed before the end of its field`);
    }
    row.push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (found[3] === separator) {
      if (field.lastIndex < text.length) continue;
      row.push("");
    }
    const isBlank = row.length === 1 && row[0] === "";
    if (!isBlank && rows.length && row.length !== rows[0].length) {
      throw new TableError(`line ${lineOf(text, position)}: the row has ${counted(row.length, "field")}, but the first one ${rows[0].length}`);
    }
    if (!isBlank) rows.push(row);
    row = [];
  }
  return rows;
}

const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

// Spreadsheets take a file without the mark at its beginning for one in an old encoding.
const writeCsv = (rows) => `\ufeff${rows.map((row) => `${row.map((value) => quoted(String(value))).join(",")}\r\n`).join("")}`;

// `{title}: {text[:80]}` as serving joins it: whole fields, and doubled braces for single ones.
const FIELD = /\{\{|\}\}|\{([^{}[\]]+)(?:\[:\d+\])?\}/g;

const templateColumns = (template) => [...new Set([...template.matchAll(FIELD)].map((found) => found[1]).filter(Boolean))];

// A single column and nothing else: its fields are finished texts.
const isBare = (template) => /^\{[^{}]+\}$/.test(template);

const joined = (template, example) => template.replace(FIELD, (found, column) => (column === undefined ? found[0] : example[column]));

async function readTable(file) {
  if (file.size > MOST_FILE_BYTES) throw new TableError(`it has more than ${MOST_FILE_BYTES / 2 ** 20} MiB; divide it`);
  const bytes = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    text = new TextDecoder("windows-1252").decode(bytes);
  }
  if (text.includes("\0")) throw new TableError("it holds NUL characters, so it is no CSV; save the table as CSV in UTF-8");
  const rows = parseCsv(text);
  if (!rows.length) throw new TableError("it is empty");
  return rows;
}
