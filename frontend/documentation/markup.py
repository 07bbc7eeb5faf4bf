"""HTML that is escaped by construction: text becomes markup only by `Html` or by an element of `tag`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #d8dde3; --back: #fff; --code: #f3f5f7;
  --accent: #0b63c5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa4af; --line: #343b44; --back: #14171b; --code: #1e2329; --accent: #6cb2ff } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back) }
a { color: var(--accent) }
code, pre { font: .875rem/1.5 ui-monospace, monospace }
pre { padding: .75rem; overflow-x: auto; border-radius: .4rem; background: var(--code) }
h2 { margin-top: 3rem; border-bottom: 2px solid var(--line) }
h3 { margin-top: 2.5rem; overflow-wrap: anywhere }
h4 { margin: 1.2rem 0 .3rem }
.method { padding: .1rem .4rem; border-radius: .3rem; color: var(--back); background: var(--accent) }
.table { overflow-x: auto }
table { width: 100%; border-collapse: collapse; font-size: .9375rem }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th, small { font-weight: normal; color: var(--soft) }
td:last-child { min-width: 12rem }
nav ul { padding: 0; list-style: none }
"""


class Html(str):
    """Text that is HTML already; all other text is escaped where it meets a tag."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str) -> Html:
    """An element around its content, which is escaped unless it is Html; what stands in `backticks` becomes code."""
    inside = "".join(part if isinstance(part, Html) else _text(part) for part in content)
    written = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{inside}</{name}>")


def block(text: str, kind: str) -> Html:
    """Lines as they are, to copy."""
    return tag("pre", Html(escape(text)), class_=kind)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    """A table that scrolls by itself on a narrow screen."""
    lines = [tag("tr", *(tag("th", cell) for cell in head))]
    lines += [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", *lines), class_="table")


def whole_page(title: str, body: Iterable[str]) -> Html:
    """A page that refers to nothing outside itself."""
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return Html(f'<!doctype html>\n<html lang="en">{tag("head", *head)}{tag("body", *body)}</html>\n')


def _text(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
