"""The page of a report: one HTML file that needs no network, no script and no other file, and reads well on a phone.

Functions take plain text and return HTML.  Text is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from kdstream.reporting.utterances import GAP, Comparison

LINE = 26  # letters that fit side by side on a phone beside the names of the systems

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")

STYLE = """
:root { --text: #1d1d1f; --back: #fff; --soft: #63636a; --line: #d9d9de; --box: #f5f5f7; --wrong: #b00020;
  --wrong-back: #fde3e6; --new: #7a4a00; --new-back: #fff0d1; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --back: #17181a; --soft: #a3a3ab; --line: #3b3c40; --box: #222326; --wrong: #ff9aa5;
    --wrong-back: #4a1d24; --new: #ffcf7d; --new-back: #45350f; }
}
body { max-width: 46rem; margin: 0 auto; padding: 0.5rem 1rem 3rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0.8rem 0 0.4rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.3rem; }
h4 { font-size: 1rem; margin: 1.2rem 0 0; }
p { margin: 0.5rem 0; }
.lead { font-size: 1.15rem; font-weight: 600; }
.note, figcaption { color: var(--soft); font-size: 0.9rem; }
.scroll { overflow-x: auto; margin: 0.7rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--box); }
figure { margin: 0.7rem 0; }
img { display: block; width: 100%; max-width: 720px; height: auto; background: #fff; border-radius: 4px; }
dt { font-weight: 600; }
dd { margin: 0 0 0.3rem 1rem; }
summary { cursor: pointer; color: var(--soft); }
pre { background: var(--box); padding: 0.7rem; border-radius: 4px; font-size: 0.8rem; overflow-x: auto;
  overflow-wrap: normal; }
.words { display: inline-table; margin: 0.2rem 1.2rem 0.5rem 0; font-size: 0.85rem; white-space: nowrap; }
.words tbody tr { background: none; }
.words th, .words td { padding: 0.05rem 0.25rem; line-height: 1.35; }
.words th { color: var(--soft); font-weight: 400; max-width: 6.5rem; overflow: hidden; text-overflow: ellipsis; }
.words tr:first-child td { font-weight: 600; border-bottom: 1px solid var(--line); }
.changed, .missing { color: var(--wrong); background: var(--wrong-back); }
.missing::after { content: "\\2013"; }
.added { color: var(--new); background: var(--new-back); }
""".strip()


class Section(NamedTuple):
    """A heading and the HTML below it."""

    title: str
    body: str


def document(title: str, lead: Iterable[str], sections: Iterable[Section]) -> str:
    """The whole page; `lead` are paragraphs of text."""
    pieces = [f'<p class="lead">{escape(text)}</p>' for text in lead]
    pieces += [f"<h2>{escape(section.title)}</h2>\n{section.body}" for section in sections]
    return PAGE.substitute(title=escape(title), style=STYLE, body="\n".join(pieces))


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def notes(lines: Iterable[str]) -> str:
    return '<ul class="note">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def definitions(terms: Mapping[str, str]) -> str:
    """Terms and their meanings."""
    lines = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return f'<dl class="note">\n{lines}\n</dl>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a box of its own, which scrolls where the table is wider than the screen."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """HTML that is folded until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def image(path: Path, alt: str, caption: str = "") -> str:
    """A PNG file, put inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{escape(alt)}">{below}</figure>'


def commands(lines: Iterable[str]) -> str:
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def comparison(utterance: Comparison) -> str:
    """An utterance as tables of reference and hypotheses, each as wide as a phone; errors are coloured."""
    counts = ", ".join(f"{system} {utterance.errors(system)}" for system in utterance.hypotheses)
    title = f"<h4>{escape(utterance.cut_id)}</h4>" + note(f"errors in {utterance.words} words: {counts}")
    rows = {"reference": utterance.reference, **utterance.hypotheses}
    lines = []
    for first, end in _lines(list(zip(*rows.values(), strict=True))):
        cells = {
            name: "".join(_cell(*pair) for pair in zip(utterance.reference[first:end], words[first:end], strict=True))
            for name, words in rows.items()
        }
        body = "\n".join(
            f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{row}</tr>' for name, row in cells.items()
        )
        lines.append(f'<table class="words"><tbody>\n{body}\n</tbody></table>')
    return f'{title}\n<div class="scroll">\n{chr(10).join(lines)}\n</div>'


def _lines(columns: Sequence[Sequence[str]]) -> list[tuple]:
    """(first, end) of the columns that stand in one line."""
    lines, first, width = [], 0, 0
    for place, column in enumerate(columns):
        letters = max(map(len, column)) + 1
        if place > first and width + letters > LINE:
            lines.append((first, place))
            first, width = place, 0
        width += letters
    return [*lines, (first, len(columns))]


def _cell(said: str, heard: str) -> str:
    kind = "" if said == heard else "added" if said == GAP else "missing" if heard == GAP else "changed"
    return f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(heard)}</td>"
