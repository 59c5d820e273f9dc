"""Programs with hostile texts, and what tests of reports read from a page."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from blockc import driver
from blockc.inspector.report import Request, report_page
from blockc.language import parse
from blockc.machines.loading import load_machine

EXAMPLES = Path(__file__).parent.parent / "examples"
HOSTILE = """
# </script><script>document.title = "broken"</script> <img src=x onerror=fail()> &amp; `${fail()}` \u202e\u2028 ]]> -->
program constructor(
    Q__proto__: f32[valueOf, n], toString: f32[n, hasOwnProperty]
) -> __proto__: f32[valueOf, hasOwnProperty] {
    then = exp(Q__proto__) # "><svg onload=fail()>
    __proto__ = dot[n](then / sum[n](then), toString)
}
"""


@cache
def page_of(source: str, *targets: str, dims: tuple[tuple[str, int], ...] = ()) -> str:
    """The report of a program, given as text or as the name of an example, at some targets."""
    path = EXAMPLES / source if source.endswith(".blk") else None
    program = driver.load_program(path) if path else parse(source, "</title>.blk")
    machines = [(target, load_machine(target)) for target in targets]
    return report_page(Request(program, machines, dict(dims), {}, {}))


class Parsed(HTMLParser):
    """A page as elements: their names, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Elements without an end are never open for long."""
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Keep a text by the element that it is in."""
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def data_of(page: str) -> dict[str, Any]:
    """The object that a page shows."""
    ((kind, text),) = re.findall(r'<script type="([a-z/]*)" id="data">(.*?)</script>', page, re.DOTALL)
    if kind == "text/plain":
        text = zlib.decompress(base64.b64decode(text)).decode()
    found: dict[str, Any] = json.loads(text)
    return found
