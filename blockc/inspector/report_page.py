"""The page of a report: one HTML file with its style, its script and its data, which requests nothing.

Its content security policy allows this style and this script, by their hashes, and nothing else. The data are JSON in a
script element that no browser executes; what could end that element is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = ("core.js", "picture.js", "charts.js", "report.js")
ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def page(data: Mapping[str, Any]) -> str:
    """The text of the page."""
    style = asset("report.css")
    script = "(() => {\n" + "".join(map(asset, SCRIPTS)) + "})();\n"
    return Template(asset("report.html")).substitute(
        title=html.escape(f"{data['program']}: fusion report"),
        version=html.escape(data["version"]),
        style=style,
        style_hash=allowed(style),
        script=script,
        script_hash=allowed(script),
        data=embedded(data),
    )


def embedded(data: Mapping[str, Any]) -> str:
    """Data as JSON that may stand in a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.translate(ESCAPES)


def allowed(text: str) -> str:
    """The source expression of a policy that allows this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("blockc.inspector") / "page" / name).read_text(encoding="utf-8")
