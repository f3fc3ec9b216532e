"""What a report consists of, and the two forms it is written in: one page of HTML that needs no network, and Markdown.

The page embeds plotly.js once and forbids itself, by a Content-Security-Policy, to load anything from anywhere; so it
reads from a file, in a mail and inside MLflow's artifact viewer alike.
"""

import html
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search.report_style import CSS, SCRIPT
from search.results import OBJECTIVE, cell

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
PLOTLY = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"]}


@dataclass(frozen=True)
class Text:
    """A paragraph; a `note` says why something is missing or how to read it."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a frame's rows; its index is not shown."""

    frame: "pandas.DataFrame"


@dataclass(frozen=True)
class Charts:
    """Figures, several of them side by side; in Markdown the picture beside it stands for them, where there is one."""

    figures: "list[Figure]"
    picture: str | None = None


@dataclass(frozen=True)
class Code:
    """Text to be copied as it stands."""

    text: str
    language: str = ""


Block = Text | Table | Charts | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def to_html(title: str, subtitle: str, lead: str, sections: list[Section]) -> str:
    """The whole page.

    Args:
        title: the study's name.
        subtitle: what it is about, in a line.
        lead: the sentence that the reader came for.
        sections: in order; the table of contents lists them.
    """
    from plotly.offline import get_plotlyjs

    figures: list[str] = []  # numbered through, for their elements' ids
    bodies = [
        f'<section id="{section.anchor}"><h2>{html.escape(section.title)}</h2>'
        + "".join(_html(block, figures) for block in section.blocks)
        + "</section>"
        for section in sections
    ]
    contents = "".join(f'<li><a href="#{one.anchor}">{html.escape(one.title)}</a></li>' for one in sections)
    plotly = f"<script>{get_plotlyjs()}</script>" if figures else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{CSS}</style>{plotly}</head><body>\n"
        f'<nav aria-label="contents"><ol>{contents}</ol></nav>\n<main><header><h1>{html.escape(title)}</h1>'
        f'<p class="subtitle">{html.escape(subtitle)}</p><p class="lead">{html.escape(lead)}</p></header>\n'
        + "\n".join(bodies)
        + f"\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def to_markdown(title: str, subtitle: str, lead: str, sections: list[Section]) -> str:
    """The same in Markdown; figures are left to the page but for the pictures in the study's folder."""
    parts = [f"# {title}", subtitle, f"**{lead}**"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_markdown(block, section.title) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _html(block: Block, figures: list[str]) -> str:
    if isinstance(block, Text):
        return f"<p{' class=note' if block.note else ''}>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    if isinstance(block, Table):
        return _html_table(block.frame)
    drawn, several = [], len(block.figures) > 1
    config = PLOTLY | ({"displayModeBar": False} if several else {})  # small ones have no room for it
    for figure in block.figures:
        figures.append(f"figure-{len(figures) + 1}")
        options = {"full_html": False, "include_plotlyjs": False, "include_mathjax": False, "config": config}
        drawn.append(f'<figure class="chart">{figure.to_html(div_id=figures[-1], **options)}</figure>')
    return f'<div class="{"charts" if several else "single"}">{"".join(drawn)}</div>'


def _html_table(frame: "pandas.DataFrame") -> str:
    right = [_numeric(frame[column]) for column in frame.columns]
    classes = [" class=number" if numeric else "" for numeric in right]
    head = "".join(
        f"<th{kind}>{html.escape(str(name))}</th>" for name, kind in zip(frame.columns, classes, strict=True)
    )
    rows = [
        "".join(f"<td{kind}>{html.escape(text)}</td>" for text, kind in zip(row, classes, strict=True))
        for row in _texts(frame)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _markdown(block: Block, title: str) -> str:
    if isinstance(block, Text):
        return f"*{block.text}*" if block.note else block.text
    if isinstance(block, Code):
        return f"```{block.language}\n{block.text.rstrip()}\n```"
    if isinstance(block, Charts):
        return f"![{title}]({block.picture})" if block.picture else "*Its figures are in report.html.*"
    marks = ["---:" if _numeric(block.frame[column]) else "---" for column in block.frame.columns]
    lines = [list(map(str, block.frame.columns)), marks, *_texts(block.frame)]
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _texts(frame: "pandas.DataFrame") -> list[list[str]]:
    objective = frame.attrs.get(OBJECTIVE)
    return [[cell(name, value, objective) for name, value in row.items()] for row in frame.to_dict("records")]


def _numeric(column: Any) -> bool:
    """Whether all of a column that is there are numbers, or texts of figures."""
    known = [value for value in column if value is not None and not (isinstance(value, float) and math.isnan(value))]
    return bool(known) and all(
        (isinstance(value, (int, float)) and not isinstance(value, bool))
        or (isinstance(value, str) and re.fullmatch(r"[-+±\d.\s]+( (h|min|s)[\d\s]*)*( min| s)?", value) is not None)
        for value in known
    )
