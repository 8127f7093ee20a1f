"""The report of a search: one HTML page without scripts or outside files.

It knows the search's `result.json` and shows numbers, settings, classes and row counts, never texts.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root{--ink:#1d2433;--soft:#667085;--line:#e4e7ec;--paper:#fff;--back:#f6f7f9;--accent:#2f6fed;--good:#12805c}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#2b3240;--paper:#171c26;--back:#10141b;--accent:#7aa7ff;--good:#4cc38a}}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}p.lead{color:var(--soft);margin:0 0 20px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:16px}
.card b{display:block;font-size:28px;line-height:1.2}.card span{color:var(--soft)}
.scroll{overflow-x:auto;background:var(--paper);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:13px}th:first-child,td:first-child{text-align:left}
tr:last-child td{border-bottom:0}tr.best td{font-weight:600;color:var(--good)}
td.cell{text-align:center;min-width:34px}
.small{color:var(--soft);font-size:13px}
"""


def write_report(record: Mapping[str, Any]) -> str:
    """Render a search's result as a page."""
    split = "test" if "test" in record["metrics"] else "validation"
    sections = [
        _headline(record, split),
        _trials(record),
        *(_confusion(head, classes, record["confusion"][head], split) for head, classes in record["classes"].items()),
        _facts(record),
    ]
    title = escape(f"Search {record['name']}")
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return page + f"<style>{_STYLE}</style></head><body><main>" + "\n".join(sections) + "</main></body></html>\n"


def _headline(record: Mapping[str, Any], split: str) -> str:
    metrics = record["metrics"][split]
    cards = [
        f"<div class=card><span>{escape(head)}</span><b>{metrics[head]['macro_f1']:.3f}</b>"
        f"<span>macro-F1 · majority {metrics[head]['majority_macro_f1']:.3f}<br>accuracy {metrics[head]['accuracy']:.3f} "
        f"· majority {metrics[head]['majority_accuracy']:.3f}</span></div>"
        for head in record["classes"]
    ]
    cards.append(
        f"<div class=card><span>all heads right</span><b>{metrics['joint_accuracy']:.3f}</b><span>share of fully labelled texts</span></div>"
    )
    count = record["splits"][split]
    return (
        f"<h1>{escape(record['name'])}</h1><p class=lead>Trial {record['best']} is the best of {len(record['trials'])}. "
        f"Figures on {count} {split} texts that no choice has seen.</p>"
        if split == "test"
        else f"<h1>{escape(record['name'])}</h1><p class=lead>Trial {record['best']} is the best of {len(record['trials'])}. "
        f"There is no test split: these are the {count} validation texts that chose the trial, so they flatter.</p>"
    ) + f"<div class=cards>{''.join(cards)}</div>"


def _trials(record: Mapping[str, Any]) -> str:
    heads = list(record["classes"])
    paths = sorted({path for trial in record["trials"] for path in trial["point"]})
    header = ["trial", "score", *heads, "epochs", "state", "seconds", *paths]
    rows = []
    for trial in sorted(record["trials"], key=lambda one: -(one["score"] if one["score"] is not None else -1.0)):
        figures = [trial["metrics"].get(head, {}).get("macro_f1") for head in heads]
        name = f"{trial['position']} (default)" if trial["position"] == 0 else str(trial["position"])
        cells = [
            name,
            trial["score"],
            *figures,
            trial["epoch"],
            trial["state"],
            round(trial["seconds"]),
            *(trial["point"].get(path) for path in paths),
        ]
        rows.append(_row(cells, "best" if trial["position"] == record["best"] else ""))
    note = "<p class=small>Scores on the validation texts: mean macro-F1 over heads (or as weighted), in each trial's best epoch.</p>"
    return f"<h2>Trials</h2>{note}{_table(header, rows)}"


def _confusion(head: str, classes: Sequence[str], counts: Sequence[Sequence[int]], split: str) -> str:
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td class=cell style="background:color-mix(in srgb,var(--accent) {round(70 * count / total)}%,transparent)">{count or ""}</td>'
            for count in row
        )
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f"<h2>{escape(head)}: true class by row, answer by column ({split})</h2>{_table([head, *classes], rows)}"


def _facts(record: Mapping[str, Any]) -> str:
    encoder = record["encoder"]
    lines = [
        f"Encoder {encoder['name']} ({encoder['model_type']}, pooled by {encoder['pooling']}), weights SHA-256 {encoder['sha256'][:16]}…",
        "Examples: "
        + ", ".join(f"{count} {split}" for split, count in record["splits"].items())
        + f"; data digest {record['data_digest'][:16]}…",
        *record["notes"],
    ]
    return "<h2>Data and encoder</h2>" + "".join(f"<p class=small>{escape(line)}</p>" for line in lines)


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    return f"<div class=scroll><table><thead><tr>{''.join(f'<th>{escape(title)}</th>' for title in header)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _row(cells: Sequence[object], name: str) -> str:
    return f'<tr class="{name}">' + "".join(f"<td>{escape(_shown(cell))}</td>" for cell in cells) + "</tr>"


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3f}" if 0.001 <= abs(cell) < 1000 or cell == 0 else f"{cell:.1e}"
    return str(cell)
