"""Syntax errors in words that a user knows: what was expected, what stands there, and what was probably meant."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Sequence

from lark import Token

from blockc.errors import Problem, visible
from blockc.ir.array_program import Span
from blockc.names import REDUCTIONS, usage

CLOSING = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}

_VALUE = frozenset({"NAME", "NUMBER", "LPAR", "MINUS", "NOT"})
_OPERATORS = frozenset({"PLUS", "MINUS", "STAR", "SLASH", "POWER", "COMPARE", "AND", "OR"})
_KEYWORDS = frozenset({"PROGRAM", "DEF", "RETURN", "AND", "OR", "NOT"})
_WORDS = {
    "PROGRAM": "`program`", "DEF": "`def`", "RETURN": "`return`", "NOT": "`not`", "NAME": "a name",
    "NUMBER": "a number", "EQUAL": "`=`", "COLON": "`:`", "ARROW": "`->`", "COMMA": "`,`", "LPAR": "`(`", "RPAR": "`)`",
    "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`", "END": "the end of the line",
    "$END": "the end of the file",
}  # fmt: skip
_STRANGERS = {
    "&": "`and` joins conditions", "|": "`or` joins conditions", "!": "write `not`", "^": "a power is written `a ** b`",
    "@": "a product is written `dot[d](a, b)`", "%": "a remainder is written `a - b * floor(a / b)`",
    "'": "the language has no texts", '"': "the language has no texts",
    ".": "there are no modules, methods or attributes: `exp(x)`, `sum[n](x)`",
    "$": "names are made of ASCII letters, digits and `_`", "?": "write `where(condition, a, b)`",
    "\\": "a statement goes on in the next line within parentheses",
}  # fmt: skip
_LOOKALIKES = {
    "\u2010": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "*", "\u00b7": "*",
    "\u22c5": "*", "\u00f7": "/", "\u2192": "->", "\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u221e": "inf",
    "\u2227": "and", "\u2228": "or", "\u00ac": "not",
}  # fmt: skip
_COMMENT = "a comment starts with `#`"
_IMPORTS = ("import", "include", "from", "use", "using")
_NUMBERS = "a product is written with `*`, a number as in `64`, `0.5` or `1e-5`"
_OUTSIDE = "statements stand within `program name(inputs) -> output { ... }`"
_NO_SLICES = "there are no slices; `[m -> n]` renames a dimension"
_GO_ON = "put the expression in parentheses to go on in the next line"


def token_span(token: Token) -> Span:
    """Where a token stands. None spans lines: a caret under a line break belongs to the line that it ends."""
    line, column = token.line or 1, token.column or 1
    return Span(line, column, line, column + max(1, len(token)))


def syntax_problem(tokens: Sequence[Token], at: int, accepted: Collection[str]) -> Problem:
    """The problem that the parser met at `tokens[at]` (the end of the file if there is none), where it would have
    accepted terminals called `accepted`."""
    token = tokens[at] if at < len(tokens) else tokens[-1]
    if token.type == "UNKNOWN":
        return _stranger(token)
    brackets = open_brackets(tokens[:at])
    found = _found(tokens, at)
    if brackets and _left_open(brackets[-1], tokens, at):
        bracket = brackets[-1]
        where = f"{found} in line {token.line}" if token.type != "END" and at < len(tokens) else found
        hint = f"expected {_WORDS[CLOSING[bracket.type]]} before {where}"
        if at < len(tokens) and token.type in ("PROGRAM", "DEF"):
            hint += "; programs and definitions do not nest"
        return Problem("E0121", f"`{bracket}` is never closed", token_span(bracket), hint)
    expected = _one_of(_expected(set(accepted)))
    return Problem(
        "E0100", f"expected {expected}, found {found}", token_span(token), _hint(tokens, at, set(accepted), brackets)
    )


def open_brackets(tokens: Sequence[Token]) -> list[Token]:
    """The brackets that are still open after `tokens`, outermost first."""
    stack: list[Token] = []
    for token in tokens:
        if token.type in CLOSING:
            stack.append(token)
        elif token == "\n":
            # Line breaks within brackets are gone by now: this one ends a statement whose brackets were left open.
            stack = [bracket for bracket in stack if bracket.type == "LBRACE"]
        elif token.type == "RBRACE":
            while stack and stack.pop().type != "LBRACE":
                pass
        elif stack and token.type == CLOSING[stack[-1].type]:
            stack.pop()
    return stack


def starts_item(tokens: Sequence[Token], at: int) -> bool:
    """True if a program or a definition probably begins at `tokens[at]`, whatever stands before it."""
    if tokens[at].type not in ("PROGRAM", "DEF") or (at + 1 < len(tokens) and tokens[at + 1].type in ("EQUAL", "END")):
        return False
    return at == 0 or tokens[at - 1].type in ("END", "RBRACE") or tokens[at - 1].line != tokens[at].line


def _left_open(bracket: Token, tokens: Sequence[Token], at: int) -> bool:
    token = tokens[at] if at < len(tokens) else Token("$END", "")
    if bracket.type == "LBRACE":
        return token == "" or (starts_item(tokens, at) and token.line != bracket.line)
    return token.type in ("RBRACE", "LBRACE", "RETURN") or token in ("\n", "")


def _stranger(token: Token) -> Problem:
    text = str(token)
    shown = f"`{visible(text if len(text) <= 20 else text[:20] + '...')}`"
    if len(text) == 1 and not text.isascii():
        # The name tells an invisible character, or one that only looks like an ASCII letter.
        shown += f" (U+{ord(text):04X} {unicodedata.name(text, 'without a name')})"
    return Problem("E0101", f"the language has no character {shown}", token_span(token), _stranger_hint(text))


def _stranger_hint(text: str) -> str:
    if text in _STRANGERS:
        return _STRANGERS[text]
    plain = _LOOKALIKES.get(text) or unicodedata.normalize("NFKC", text)
    if plain != text and plain.isascii() and plain.isprintable():
        return f"write `{plain}`" if plain.strip() else "write an ordinary space"
    if text.isascii() and text.isprintable():
        return "remove it"
    if not text.isprintable():
        return "it does not show on a screen: remove it"
    return "names are made of ASCII letters, digits and `_`; everything else belongs in a comment"


def _found(tokens: Sequence[Token], at: int) -> str:
    if at >= len(tokens) or tokens[at] == "":
        return "the end of the file"
    return "the end of the line" if tokens[at] == "\n" else f"`{_short(tokens[at])}`"


def _short(token: Token) -> str:
    return visible(token if len(token) <= 40 else token[:40] + "...")


def _expected(accepted: set[str]) -> list[str]:
    words = []
    if accepted >= {"NUMBER", "NAME", "LPAR"}:
        words.append("a value")
        accepted = accepted - _VALUE
    if accepted & {"AND", "OR"}:
        words.append("an operator")
        # What may follow any value is not what anyone forgot.
        accepted = accepted - _OPERATORS - {"LSQB", "LPAR"}
    if accepted >= {"RETURN", "NAME"}:
        words.append("a statement")
        accepted = accepted - {"RETURN", "NAME", "END"}
    if accepted >= {"PROGRAM", "DEF"}:
        accepted = accepted - {"END", "$END"}
    return words + [word for name, word in _WORDS.items() if name in accepted]


def _one_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "nothing more"


def _hint(tokens: Sequence[Token], at: int, accepted: set[str], brackets: list[Token]) -> str:
    return _particular_hint(tokens, at, accepted, brackets) or _general_hint(tokens, at, accepted, brackets)


def _general_hint(tokens: Sequence[Token], at: int, accepted: set[str], brackets: list[Token]) -> str:
    """What to write at such a place, where nothing tells what was meant."""
    kind = tokens[at].type if at < len(tokens) else "$END"
    if kind == "COMMA":
        return "remove this comma"
    if "COMMA" in accepted and kind in _VALUE:
        return "a comma is missing"
    if brackets and brackets[-1].type == "LSQB":
        return "dimensions are listed as in `[m, n]`, renamed as in `[m -> n]`, and sized in a type as in `[d=64]`"
    if brackets and brackets[0].type == "LBRACE":
        return "a statement reads `name = expression`"
    if any(token.type == "DEF" for token in tokens[max(0, at - 12) : at]):
        return "a definition reads `def name[dims](values) = expression`"
    return "a program reads `program name(X: f32[m, n]) -> Y: f32[m, n] { Y = X }`"


def _particular_hint(tokens: Sequence[Token], at: int, accepted: set[str], brackets: list[Token]) -> str:
    token = tokens[at] if at < len(tokens) else Token("$END", "")
    before = tokens[at - 1] if at else Token("$START", "")
    after = tokens[at + 1] if at + 1 < len(tokens) else Token("$END", "")
    in_block = bool(brackets) and brackets[0].type == "LBRACE"
    value_expected = accepted >= {"NUMBER", "NAME", "LPAR"}
    if token.type in ("RPAR", "RSQB", "RBRACE") and (not brackets or CLOSING[brackets[-1].type] != token.type):
        return _closing_hint(token, brackets)
    if token == "/" and after in ("/", "*", "**") and not value_expected:
        return _COMMENT
    if value_expected:
        return _value_hint(token, before)
    if token.type in _KEYWORDS and "NAME" in accepted:
        return f"`{token}` is a word of the language and cannot be a name"
    if "NAME" in accepted and token.type == "NUMBER":
        return (
            "a name starts with a letter or `_`"
            if "RETURN" in accepted
            else "dimensions have names: `d=64` fixes a size"
        )
    if "RETURN" in accepted and token.type in _OPERATORS:
        return _GO_ON
    if not in_block:
        return _header_hint(token, before, accepted)
    if brackets[-1].type == "LSQB":
        if token.type == "COLON":
            return _NO_SLICES
        return _closing_hint(token, brackets) if token.type in ("LPAR", "NAME") and "RSQB" in accepted else ""
    return _statement_hint(token, before, after, accepted, brackets)


def _closing_hint(token: Token, brackets: list[Token]) -> str:
    if not brackets or brackets[-1].type == "LBRACE":
        return f"nothing is open that `{token}` could close"
    bracket = brackets[-1]
    return f"the `{bracket}` in line {bracket.line}, column {bracket.column} needs {_WORDS[CLOSING[bracket.type]]}"


def _value_hint(token: Token, before: Token) -> str:
    if token.type == "END" and before.type in _OPERATORS | {"EQUAL", "NOT"}:
        return _GO_ON
    if token == "/" and before == "/":
        return "`floor(a / b)` divides and rounds down"
    if token.type == "EQUAL" and before.type == "COMPARE":
        return "a comparison is one of `<`, `<=`, `>`, `>=`, `==` and `!=`"
    if token.type == "EQUAL":
        return "`==` compares; a comparison can also be `<=` or `>=`"
    if token.type == "LSQB":
        return "there are no lists: brackets stand behind a name, as in `sum[n](x)`"
    if token.type in _KEYWORDS:
        return f"`{token}` is a word of the language and cannot be a value"
    missing = token.type in _OPERATORS or token.type in ("RPAR", "RBRACE")
    return f"a value is missing before `{token}`" if missing else ""


def _header_hint(token: Token, before: Token, accepted: set[str]) -> str:
    if "PROGRAM" in accepted and token.type == "NAME":
        if token in _IMPORTS:
            return "nothing needs importing: the prelude's definitions are always there"
        close = difflib.get_close_matches(token.lower(), ("program", "def"), 1, 0.8)
        return f"did you mean `{close[0]}`?" if close else _OUTSIDE
    if "ARROW" in accepted:
        return "name the outputs: `-> Y: f32[m, n]`"
    if accepted == {"COLON"}:
        return f"give it a type: `{before}: f32[m, n]`"
    if accepted == {"LSQB"}:
        return f"a type has its dimensions in brackets: `{before}[m, n]`, or `{before}[]` for a single number"
    if accepted == {"NUMBER"}:
        return "a size is a whole number, as in `d=64`, or is left open, as in `d`"
    if token.type == "COMMA" and "LBRACE" in accepted:
        return "several outputs stand in parentheses: `-> (A: f32[m], B: f32[n])`"
    return ""


def _statement_hint(token: Token, before: Token, after: Token, accepted: set[str], brackets: list[Token]) -> str:
    if accepted <= {"EQUAL", "COLON", "LSQB", "LPAR"} and "COLON" in accepted:
        return _assignment_hint(token, before, after)
    if token.type == "EQUAL" and before.type == "COLON":
        return "`name = ...` assigns; what stands after a colon is a type: `name: f32[m] = ...`"
    if token.type == "EQUAL" and brackets[-1].type == "LPAR":
        if after.type == "COMPARE" or before.type == "COMPARE":
            return "a comparison is one of `<`, `<=`, `>`, `>=`, `==` and `!=`"
        return "`==` compares; values are given in order, without names"
    if token.type == "EQUAL":
        return "`==` compares; a statement assigns one name"
    if token in ("if", "else"):
        return "write `where(condition, a, b)`"
    if token == ";":
        return "`;` ends a statement; values are separated by commas"
    if token.type == "COLON":
        return "a statement of its own gives a value a name" if after.type == "EQUAL" else _NO_SLICES
    return _second_value_hint(token, before, after)


def _assignment_hint(token: Token, before: Token, after: Token) -> str:
    """What to write where a statement's first word is not followed by `=`."""
    if before in ("if", "for", "while", "let", "var", "const"):
        return "there are only statements of the form `name = expression`; `where(condition, a, b)` chooses"
    if token == "==":
        return f"`{before} = ...` assigns; `==` compares"
    if token == "-" and after.type == "NAME":
        return f"names are made of letters, digits and `_`: `{before}_{after}`"
    if token.type in _OPERATORS and token.type != "COMPARE":
        return "every name is assigned once"
    return "a statement assigns one name: `S = ...`"


def _second_value_hint(token: Token, before: Token, after: Token) -> str:
    """What to write where a value follows another one."""
    if token.type not in _VALUE | {"LSQB"}:
        return ""
    adjacent = before.line == token.line and (before.column or 0) + len(before) == token.column
    if before.type == "NUMBER" and adjacent and token.type != "LPAR":
        return _NUMBERS
    if before in REDUCTIONS:
        return f"dimensions stand in brackets: {usage(before, {})}"
    if before == "lambda":
        return "outside of programs, `def name(x) = ...` defines an operator"
    if token.type == "LSQB" or (token.type == "NAME" and before.type == "NUMBER"):
        return "a product is written with `*`"
    if after.type == "EQUAL":
        return "a line break or `;` ends a statement"
    return "two values need an operator between them"
