"""The page of a report: one HTML file with its style, its script and its data, which requests nothing.

Its content security policy allows this style and this script, by their hashes, and nothing else. The data are JSON in a
script element that no browser executes, packed if they are many; what could end that element is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = ("core.js", "picture.js", "charts.js", "report.js")
LONG = 1_000_000  # characters of data that are packed
ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def page(data: Mapping[str, Any]) -> str:
    """The text of the page."""
    style = asset("report.css")
    script = "(async () => {\n" + "".join(map(asset, SCRIPTS)) + "})();\n"
    kind, text = embedded(data)
    return Template(asset("report.html")).substitute(
        title=html.escape(f"{data['program']}: fusion report"),
        version=html.escape(data["version"]),
        style=style,
        style_hash=allowed(style),
        script=script,
        script_hash=allowed(script),
        kind=kind,
        data=text,
    )


def embedded(data: Mapping[str, Any]) -> tuple[str, str]:
    """Data as they stand in a script element, with its type: JSON, or, if that is long, packed and in base64."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if len(text) <= LONG:
        return "application/json", text.translate(ESCAPES)
    return "text/plain", base64.b64encode(zlib.compress(text.encode())).decode()


def allowed(text: str) -> str:
    """The source expression of a policy that allows this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("blockc.inspector") / "page" / name).read_text(encoding="utf-8")
