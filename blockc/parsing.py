"""Text to syntax tree: limits on the text, line breaks, the parser, and syntax errors in words that a user knows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import chain, pairwise
from typing import Any

import lark

from blockc import syntax
from blockc.errors import BlockcError, LimitError, Problem, visible
from blockc.ir.array_program import Span
from blockc.syntax import Identifier
from blockc.syntax_errors import CLOSING, open_brackets, starts_item, syntax_problem, token_span

MAX_BYTES = 2**20
MAX_NESTING = 64
MAX_WORDS = 250_000
MAX_SIZE = 2**40
MAX_PROBLEMS = 50


def parse_file(source: str, filename: str) -> syntax.File:
    """The syntax tree of a normalised source (see `normalise`). Raises `BlockcError` or `LimitError`."""
    if len(source.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        start = Span(1, 1, 1, 2)
        problem = Problem("E0190", "the file is larger than 1 MiB", start, "split it into several files")
        raise LimitError((problem,), "", filename)
    try:
        tokens = _tokens(source)
        return _parse(tokens, source, filename)
    except _LimitReached as reached:
        raise LimitError((reached.problem,), source, filename) from None


def normalise(source: str) -> str:
    """The source without a byte order mark and with `\\n` for every line break: what all spans refer to."""
    return source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


class _Mistake(Exception):
    """A syntax error found while the tree is built."""

    def __init__(self, code: str, message: str, span: Span, hint: str) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, span, hint)


class _LimitReached(Exception):
    def __init__(self, code: str, message: str, span: Span | None, hint: str) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, span, hint)


def _span(first: lark.Token | Span, last: lark.Token | Span) -> Span:
    start = first if isinstance(first, Span) else token_span(first)
    end = last if isinstance(last, Span) else token_span(last)
    return Span(start.line, start.column, end.end_line, end.end_column)


def _identifier(token: lark.Token) -> Identifier:
    return Identifier(str(token), token_span(token))


class _Layout:
    """Keeps the line breaks that end a statement and drops others: within brackets, repeated, before `{` or `->`."""

    always_accept = ("UNKNOWN",)

    def process(self, stream: Iterator[lark.Token]) -> Iterator[lark.Token]:
        stack: list[str] = []  # the closing brackets that are to come
        end: lark.Token | None = None  # the line break before this token
        last = lark.Token("END", "", line=1, column=1, end_line=1, end_column=1)
        for token, follower in pairwise(chain(_bounded(stream), (None,))):
            assert token is not None
            last = token
            if token.type == "END" and (token == "\n" or not _in_brackets(stack)):
                end = end or token
                continue
            if end is not None and _in_brackets(stack) and _starts_statement(stack, token, follower):
                del stack[1:]
            if end is not None and not _in_brackets(stack) and token.type not in ("LBRACE", "ARROW"):
                yield end
            end = None
            _track(stack, token)
            yield token
        if end is None or _in_brackets(stack):
            end = lark.Token("END", "", line=last.end_line, column=last.end_column)
        yield end


def _bounded(stream: Iterator[lark.Token]) -> Iterator[lark.Token]:
    words = 0
    for token in stream:
        words += token != "\n"
        if words > MAX_WORDS:
            message = f"the file has more than {MAX_WORDS:,} words and symbols"
            raise _LimitReached("E0191", message, token_span(token), "split it into several files")
        yield token


def _in_brackets(stack: list[str]) -> bool:
    return bool(stack) and stack[-1] != "RBRACE"


def _starts_statement(stack: list[str], token: lark.Token, follower: lark.Token | None) -> bool:
    """True for `name =` at the start of a line although a bracket is open: it was forgotten, and what follows is no
    part of it. (A size such as `d=64` looks the same but stands in the head of a program.)"""
    named = token.type == "NAME" and follower is not None and follower.type == "EQUAL"
    return stack[0] == "RBRACE" and (named or token.type == "RETURN")


def _track(stack: list[str], token: lark.Token) -> None:
    if token.type in CLOSING:
        stack.append(CLOSING[token.type])
        if len(stack) - (stack[0] == "RBRACE") > MAX_NESTING:
            message = f"brackets nest more than {MAX_NESTING} deep"
            raise _LimitReached("E0192", message, token_span(token), "name parts of the expression in statements")
    elif token.type == "RBRACE":
        while stack and stack.pop() != "RBRACE":
            pass
    elif stack and token.type == stack[-1]:
        stack.pop()


@lark.v_args(inline=True)
class _Builder(lark.Transformer[Any, Any]):
    """Builds the tree while the parser runs: one method per rule of `grammar.lark`, given the rule's parts."""

    def start(self, *items: Any) -> syntax.File:
        programs = tuple(item for item in items if isinstance(item, syntax.Program))
        definitions = tuple(item for item in items if isinstance(item, syntax.Definition))
        return syntax.File(programs, definitions)

    def program(self, _word: Any, name: lark.Token, inputs: Any, outputs: Any, body: Any, *_end: Any) -> syntax.Program:
        return syntax.Program(_identifier(name), inputs, outputs, body)

    def single_result(self, result: syntax.Declaration) -> tuple[syntax.Declaration, ...]:
        return (result,)

    def short_definition(self, word: lark.Token, name: lark.Token, *parts: Any) -> syntax.Definition:
        *head, value, _end = parts
        return self._definition(name, head, (syntax.Return(token_span(word), _shallow(value)),))

    def long_definition(self, _word: lark.Token, name: lark.Token, *parts: Any) -> syntax.Definition:
        *head, body = (part for part in parts if not isinstance(part, lark.Token))
        return self._definition(name, head, body)

    def _definition(self, name: lark.Token, head: list[Any], body: tuple[syntax.Statement, ...]) -> syntax.Definition:
        dims, parameters = head if len(head) == 2 else ((), head[0])
        return syntax.Definition(_identifier(name), dims, parameters, body)

    def declarations(self, *declarations: syntax.Declaration) -> tuple[syntax.Declaration, ...]:
        return declarations

    def declaration(self, name: lark.Token, declared: syntax.Type) -> syntax.Declaration:
        return syntax.Declaration(_identifier(name), declared)

    def type(self, dtype: lark.Token, *parts: Any) -> syntax.Type:
        *axes, close = parts
        return syntax.Type(_identifier(dtype), tuple(axes), _span(dtype, close))

    def single_axis(self, dim: syntax.DeclaredDim) -> tuple[syntax.DeclaredDim, ...]:
        return (dim,)

    def packed_axis(self, *dims: syntax.DeclaredDim) -> tuple[syntax.DeclaredDim, ...]:
        return dims

    def dim(self, name: lark.Token, size: lark.Token | None = None) -> syntax.DeclaredDim:
        return syntax.DeclaredDim(_identifier(name), None if size is None else _size(size))

    def names(self, *names: lark.Token) -> tuple[Identifier, ...]:
        return tuple(map(_identifier, names))

    parameters = names

    def block(self, *parts: Any) -> tuple[syntax.Statement, ...]:
        return tuple(part for part in parts if not isinstance(part, lark.Token))

    def assignment(self, name: lark.Token, *parts: Any) -> syntax.Assignment:
        declared = parts[0] if len(parts) == 2 else None
        return syntax.Assignment(_identifier(name), declared, _shallow(parts[-1]))

    def return_statement(self, word: lark.Token, value: syntax.Expression) -> syntax.Return:
        return syntax.Return(token_span(word), _shallow(value))

    def binary(self, left: syntax.Expression, operator: lark.Token, right: syntax.Expression) -> syntax.Binary:
        return syntax.Binary(_identifier(operator), left, right, _span(left.span, right.span))

    def comparison(self, left: Any, operator: lark.Token, right: Any, *more: Any) -> syntax.Binary:
        if more:
            hint = "join two comparisons: `a < b and b < c`"
            raise _Mistake("E0124", "comparisons cannot be chained", token_span(more[0]), hint)
        return self.binary(left, operator, right)

    def unary(self, operator: lark.Token, operand: syntax.Expression) -> syntax.Expression:
        span = _span(operator, operand.span)
        if isinstance(operand, syntax.Literal) and operator == "-" and not isinstance(operand.value, bool):
            return syntax.Literal(-operand.value, span)
        return syntax.Unary(_identifier(operator), operand, span)

    def reference(self, name: lark.Token) -> syntax.Expression:
        if name in syntax.LITERALS:
            return syntax.Literal(syntax.LITERALS[name], token_span(name))
        return syntax.Reference(str(name), token_span(name))

    def number(self, token: lark.Token) -> syntax.Literal:
        return syntax.Literal(_number(token), token_span(token))

    def grouped(self, left: lark.Token, expression: syntax.Expression, right: lark.Token) -> syntax.Expression:
        return replace(expression, span=_span(left, right))

    def indexed(self, name: lark.Token, brackets: Any) -> syntax.Expression:
        for old, new in brackets[0]:
            if new is None:
                call = (
                    f"`{name}({old.text})`"
                    if name in ("index", "size")
                    else f"`{name}[{old.text}](...)` calls an operator"
                )
                hint = f"{call}; `{name}[{old.text} -> other]` renames a dimension"
                raise _Mistake("E0108", "these brackets name a dimension and do nothing with it", old.span, hint)
        return self.renamed(self.reference(name), brackets)

    def renamed(self, operand: syntax.Expression, brackets: Any) -> syntax.Rename:
        pairs, close = brackets
        for old, new in pairs:
            if new is None:
                hint = f"`[{old.text} -> other]` renames a dimension"
                raise _Mistake("E0108", "these brackets name a dimension and do nothing with it", old.span, hint)
        return syntax.Rename(operand, pairs, _span(operand.span, close))

    def call(self, name: lark.Token, *parts: Any) -> syntax.Call:
        arguments, close = parts[-1]
        pairs = parts[0][0] if len(parts) == 2 else ()
        span = _span(name, close)
        if name in ("index", "size"):
            return syntax.Call(_identifier(name), (_dimension(name, pairs, arguments, span),), (), span)
        for old, new in pairs:
            if new is not None:
                hint = f"rename the value: `{visible(name)}[{old.text}](x[{old.text} -> {new.text}])`"
                raise _Mistake(
                    "E0108", "an operator takes dimensions here, not a renaming", _span(old.span, new.span), hint
                )
        return syntax.Call(_identifier(name), tuple(old for old, _ in pairs), arguments, span)

    def brackets(self, *parts: Any) -> tuple[tuple[Any, ...], lark.Token]:
        return parts[:-1], parts[-1]

    def bracket(self, old: lark.Token, new: lark.Token | None = None) -> tuple[Identifier, Identifier | None]:
        return _identifier(old), None if new is None else _identifier(new)

    arguments = brackets


def _dimension(name: lark.Token, pairs: Any, arguments: Any, span: Span) -> Identifier:
    """The dimension that `index(n)` or `size(n)` asks about."""
    if pairs or len(arguments) != 1 or not isinstance(arguments[0], syntax.Reference):
        raise _Mistake("E0108", f"`{name}` takes the name of one dimension", span, f"such as `{name}(n)`")
    return Identifier(arguments[0].name, arguments[0].span)


def _shallow(expression: syntax.Expression) -> syntax.Expression:
    if syntax.depth(expression) > MAX_NESTING:
        message = f"operators nest more than {MAX_NESTING} deep"
        raise _LimitReached("E0192", message, expression.span, "name parts of the expression in statements")
    return expression


def _size(token: lark.Token) -> int:
    span = token_span(token)
    if not token.isdigit():
        raise _Mistake("E0119", "a size must be a whole number", span, "such as `d=64`")
    # Python refuses to read very long numbers.
    if len(token) > 20 or int(token) > MAX_SIZE:
        raise _LimitReached("E0194", "a dimension may have at most 2^40 elements", span, "that is 1099511627776")
    return int(token)


def _number(token: lark.Token) -> float | int:
    span = token_span(token)
    # 2147483648 is only legal behind a minus sign, which the builder has not seen yet: the type checker decides.
    if token.isdigit():
        if len(token) > 20 or int(token) > 2**31:
            real = f"`{token}.0`" if len(token) <= 20 else "`1e30`"
            raise _Mistake("E0119", "this whole number does not fit i32", span, f"write it as a real number: {real}")
        return int(token)
    value = float(token)
    nonzero = any(digit in "123456789" for digit in token.lower().split("e")[0])
    if math.isinf(value):
        raise _Mistake("E0119", "this number is too large for f64", span, "`inf` is infinity")
    if value == 0 and nonzero:
        raise _Mistake("E0119", "this number is too small for f64", span, "write 0")
    return value


@cache
def _parser() -> lark.Lark:
    """Built once, on first use: it takes longer than parsing a file."""
    grammar = files("blockc").joinpath("grammar.lark").read_text(encoding="utf-8")
    return lark.Lark(grammar, parser="lalr", lexer="basic", postlex=_Layout(), transformer=_Builder())


def _tokens(source: str) -> list[lark.Token]:
    start = _parser().parse_interactive(source)  # `Lark.lex` would build another lexer
    return list(start.lexer_thread.lex(start.parser_state))  # type: ignore[no-untyped-call]


def _parse(tokens: list[lark.Token], source: str, filename: str) -> syntax.File:
    """Parses; after a mistake drops that statement and goes on, so that one run reports those of the whole file."""
    problems: list[Problem] = []
    while True:
        outcome = _attempt(tokens)
        if isinstance(outcome, syntax.File):
            break
        problem, at = outcome
        problems.append(problem)
        kept = _without_statement(tokens, at)
        if kept is None or len(problems) >= MAX_PROBLEMS or len(tokens) * len(problems) > MAX_WORDS:
            break
        tokens = kept
    if problems or not isinstance(outcome, syntax.File):
        raise BlockcError(tuple(problems), source, filename)
    return outcome


def _without_statement(tokens: list[lark.Token], at: int) -> list[lark.Token] | None:
    """The tokens without the statement at `at`, or without the whole program or definition if it has no statement
    there; None if nothing comes after it."""
    brackets = open_brackets(tokens[:at])
    if brackets and brackets[0].type == "LBRACE":
        start = at
        while tokens[start - 1] is not brackets[0] and not (
            tokens[start - 1].type == "END" and tokens[start - 1] != ";"
        ):
            start -= 1
        inner = 0  # braces within the statement, which has no place for them
        for end in range(at, len(tokens)):
            if starts_item(tokens, end):
                break
            if tokens[end].type == "LBRACE":
                inner += 1
            elif tokens[end].type == "RBRACE" and inner:
                inner -= 1
            elif tokens[end].type == "RBRACE":
                return tokens[:start] + tokens[end:]
            elif tokens[end].type == "END" and len(open_brackets(tokens[start:end])) == 0:
                return tokens[:start] + tokens[end + 1 :]
    items = [number for number in range(len(tokens)) if starts_item(tokens, number)]
    start = max((number for number in items if number < at), default=0)
    later = [number for number in items if number > start and number >= at]
    return tokens[:start] + tokens[later[0] :] if later else None


def _attempt(tokens: list[lark.Token]) -> syntax.File | tuple[Problem, int]:
    parser = _parser().parse_interactive()
    at = 0
    try:
        for at, token in enumerate(tokens):  # noqa: B007
            parser.feed_token(token)
        at = len(tokens)
        tree = parser.feed_token(lark.Token("$END", ""))
        assert isinstance(tree, syntax.File)
        return tree
    except lark.UnexpectedToken:
        return syntax_problem(tokens, at, parser.accepts()), at  # type: ignore[no-untyped-call]
    except _Mistake as mistake:
        return mistake.problem, at
