"""Syntax errors in words that a user knows: what was expected, what stands there, and what was probably meant."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lark import Token

from blockc.errors import Problem, visible
from blockc.ir.array_program import Span

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
    "'": "the language has no texts", '"': "the language has no texts", ".": "operators stand alone: `exp(x)`",
    "$": "names are made of ASCII letters, digits and `_`", "?": "write `where(condition, a, b)`",
}  # fmt: skip
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
    if brackets and _left_open(brackets[-1], token, at == len(tokens)):
        bracket = brackets[-1]
        expected = _one_of([_WORDS[CLOSING[bracket.type]]])
        where = f"{found} in line {token.line}" if token.type != "END" and at < len(tokens) else found
        return Problem(
            "E0121", f"`{bracket}` is never closed", token_span(bracket), f"expected {expected} before {where}"
        )
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


def _left_open(bracket: Token, token: Token, at_end: bool) -> bool:
    if bracket.type == "LBRACE":
        return at_end or token == "" or (token.type in ("PROGRAM", "DEF") and token.line != bracket.line)
    return token.type in ("RBRACE", "LBRACE", "RETURN") or token in ("\n", "")


def _stranger(token: Token) -> Problem:
    text = str(token)
    if text.isascii():
        hint = _STRANGERS.get(text, "remove it" if text.isprintable() else "an invisible character: remove it")
    elif not text.isprintable():
        hint = "an invisible character: remove it"
    else:
        hint = "names are made of ASCII letters, digits and `_`; everything else belongs in a comment"
    shown = visible(text if len(text) <= 20 else text[:20] + "...")
    return Problem("E0101", f"the language has no character `{shown}`", token_span(token), hint)


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
    in_block = bool(brackets) and brackets[0].type == "LBRACE"
    value_expected = accepted >= {"NUMBER", "NAME", "LPAR"}
    if token.type in ("RPAR", "RSQB", "RBRACE") and (not brackets or CLOSING[brackets[-1].type] != token.type):
        return _closing_hint(token, brackets)
    if value_expected:
        return _value_hint(token, before)
    if token.type in _KEYWORDS and "NAME" in accepted:
        return f"`{token}` is a word of the language and cannot be a name"
    if "NAME" in accepted and token.type == "NUMBER":
        return "dimensions have names: `d=64` fixes a size"
    if "RETURN" in accepted and token.type in _OPERATORS:
        return _GO_ON
    if not in_block:
        return _header_hint(token, before, accepted)
    return _statement_hint(token, before, accepted, brackets)


def _closing_hint(token: Token, brackets: list[Token]) -> str:
    if not brackets or brackets[-1].type == "LBRACE":
        return f"nothing is open that `{token}` could close"
    bracket = brackets[-1]
    return f"the `{bracket}` in line {bracket.line}, column {bracket.column} needs {_WORDS[CLOSING[bracket.type]]}"


def _value_hint(token: Token, before: Token) -> str:
    if token.type == "END" and before.type in _OPERATORS | {"EQUAL", "NOT"}:
        return _GO_ON
    if token.type == "SLASH" and before.type == "SLASH":
        return "`floor(a / b)` divides and rounds down"
    if token.type == "EQUAL":
        return "`==` compares; a comparison can also be `<=` or `>=`"
    return ""


def _header_hint(token: Token, before: Token, accepted: set[str]) -> str:
    if "ARROW" in accepted:
        return "name the outputs: `-> Y: f32[m, n]`"
    if accepted == {"COLON"}:
        return f"give it a type: `{before}: f32[m, n]`"
    if accepted == {"LSQB"}:
        return f"a type has its dimensions in brackets: `{before}[m, n]`, or `{before}[]` for a single number"
    if "PROGRAM" in accepted and token.type == "NAME":
        return "statements stand within `program name(inputs) -> output { ... }`"
    return ""


def _statement_hint(token: Token, before: Token, accepted: set[str], brackets: list[Token]) -> str:
    if token.type == "EQUAL" and brackets[-1].type == "LPAR":
        return "`==` compares; values are given in order, without names"
    if token.type == "EQUAL":
        return "`==` compares; a statement assigns one name"
    if accepted == {"EQUAL", "COLON"} or accepted == {"COLON", "EQUAL", "LSQB", "LPAR"}:
        if before in ("if", "for", "while", "let", "var", "const"):
            return "there are only statements of the form `name = expression`; `where(condition, a, b)` chooses"
        return (
            "every name is assigned once" if token.type in _OPERATORS else "a statement gives a value a name: `S = ...`"
        )
    if token in ("if", "else"):
        return "write `where(condition, a, b)`"
    if token.type == "LSQB" or (token.type == "NAME" and before.type == "NUMBER"):
        return "a product is written with `*`"
    if token.type == "COLON":
        return "there are no slices; `[m -> n]` renames a dimension"
    return "two values need an operator between them" if token.type in _VALUE else ""
