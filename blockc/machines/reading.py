"""Reading a machine file: TOML text to a machine, or every problem at once with its place."""

from __future__ import annotations

import re
import tomllib

from blockc.errors import BlockcError, LimitError, Problem
from blockc.ir.array_program import Span
from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import OPERATIONS, ComputeUnit, Machine, Move, Rate, Tier, chain
from blockc.machines import fields
from blockc.machines.checks import check
from blockc.machines.fields import Check, Field, WrongValueError, type_name
from blockc.machines.findings import Contents, Findings, Values
from blockc.machines.toml_places import Path, key_before, places
from blockc.names import listing, suggest

LARGEST_FILE = 2**16  # bytes
_LONGEST_LINE = 500  # characters: tomllib takes a time that is quadratic in the parts of a key
_MOST_PROBLEMS = 100
_SYNTAX_ERROR = re.compile(r"(.*) \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)", re.DOTALL)
_QUOTES = 'text and quantities stand in quotes: capacity = "192 KiB"'
_SYNTAX_HINTS = {
    "Invalid value": _QUOTES,
    "Expected newline or end of document after a statement": _QUOTES,
    "Expected '=' after a key in a key/value pair": "write key = value",
    "Invalid statement": "write key = value, [table] or [[table]]",
    "Cannot overwrite a value": "this key is there already; each table of a list has [[ ]]",
    "Unclosed array": "a ] or a comma is missing",
    "Duplicate inline table key": "this key is there already",
    "Cannot declare": "this table is there already; each table of a list has [[ ]]",
    "Cannot mutate immutable": "a table in { } is complete",
}
_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Cannot redefine", "Duplicate inline table key")


def read_machine(text: str, filename: str = "<string>") -> Machine:
    """The machine that a text in TOML describes. BlockcError with every problem; LimitError for a text that is too
    large."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    _check_limits(text, filename)
    try:
        data = tomllib.loads(text)
        findings = Findings(places(text))
    except RecursionError as error:
        raise _limit("values are nested too deeply", filename) from error
    except ValueError as error:
        raise BlockcError((_syntax_problem(str(error), text),), text, filename) from error
    contents = _contents(data, findings)
    check(contents, findings)
    if findings.problems:
        raise BlockcError(_shown(findings.problems), text, filename)
    return _machine(contents)


def _check_limits(text: str, filename: str) -> None:
    """LimitError for a text that would take long to read."""
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_FILE:
        raise _limit(f"the file is larger than {LARGEST_FILE // 1024} KiB", filename)
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > _LONGEST_LINE:
            raise _limit(f"line {number} is longer than {_LONGEST_LINE} characters", filename)


def _limit(message: str, filename: str) -> LimitError:
    return LimitError((Problem("E0290", f"`{filename}`: {message}", None, "a machine file is short"),))


def _syntax_problem(message: str, text: str) -> Problem:
    """The problem in a text that is no TOML, by what `tomllib` says."""
    match = _SYNTAX_ERROR.fullmatch(message)
    what, line, column = match.groups() if match else (message, "1", "1")
    lines = text.split("\n")
    if line is None:  # at the end
        while len(lines) > 1 and not lines[-1].strip():
            lines.pop()
        line, column = len(lines), len(lines[-1]) + 1
    hint = next((hint for start, hint in _SYNTAX_HINTS.items() if what.startswith(start)), "see https://toml.io")
    span = Span(int(line), int(column), int(line), int(column) + 1)
    if what.startswith(_TWICE):  # tomllib says where its value ends
        span = key_before(text, sum(len(before) + 1 for before in lines[: int(line) - 1]) + int(column) - 1) or span
    return Problem(fields.SYNTAX, f"this is not TOML: {what[0].lower()}{what[1:]}", span, hint)


def _shown(problems: list[Problem]) -> tuple[Problem, ...]:
    """The problems in the order of the text, the first hundred of very many."""
    ordered = sorted(problems, key=lambda problem: (problem.span.line, problem.span.column) if problem.span else (0, 0))
    further = len(ordered) - _MOST_PROBLEMS
    if further <= 0:
        return tuple(ordered)
    return (*ordered[:_MOST_PROBLEMS], Problem("E0200", f"and {further:,} more problems"))


def _contents(data: Values, findings: Findings) -> Contents:
    """What is sound in the tables of a file."""
    machine = _fields(data, (), fields.MACHINE, tuple(fields.LISTS), "the machine", findings)
    tables = {key: _tables(data, key, findings) for key in fields.LISTS}
    read = {key for key in tables if isinstance(data.get(key, []), list) and (key,) not in findings.unread}
    whole = {key for key in read if len(tables[key]) == len(data.get(key, []))}
    tiers = [_fields(table, path, fields.TIER, (), "this tier", findings) for path, table in tables["tier"]]
    moves = [_fields(table, path, fields.MOVE, (), "this move", findings) for path, table in tables["move"]]
    compute = []
    for path, table in tables["compute"]:
        unit = _fields(table, path, fields.COMPUTE, OPERATIONS, "this compute unit", findings)
        unit["operations"] = _operations(table, path, findings)
        compute.append(unit)
    return Contents(machine, tiers, moves, compute, frozenset(whole))


def _tables(data: Values, key: str, findings: Findings) -> list[tuple[Path, Values]]:
    """The tables of a list of tables, with their paths."""
    few, many = fields.LISTS[key]
    value = data.get(key, [])
    if not isinstance(value, list):
        findings.at_key(fields.WRONG_TYPE, f"`{key}` must be a list of tables", (key,), f"write [[{key}]]")
        return []
    misspelt = (key,) in findings.unread
    if key not in data and few and not misspelt:
        findings.at_key(fields.MISSING, f"the machine has no {key}", (), f"write [[{key}]], then its fields")
    elif len(value) > many or (len(value) < few and not misspelt):
        hint = f"from {few} to {many}"
        findings.at_key(fields.IMPOSSIBLE, f"the machine cannot have {len(value):,} of `{key}`", (key,), hint)
    result: list[tuple[Path, Values]] = []
    for index, table in enumerate(value[:many]):
        if isinstance(table, dict):
            result.append(((key, index), table))
        else:
            message = f"`{key}` must be a list of tables, and here is {type_name(table)}"
            findings.at_value(fields.WRONG_TYPE, message, (key, index), f"write [[{key}]]")
    return result if len(result) == len(value[:many]) else []  # the number of a table is its place in the list


def _fields(
    table: Values, path: Path, known: tuple[Field, ...], others: tuple[str, ...], what: str, findings: Findings
) -> Values:
    """The sound values of a table. Unknown keys, missing fields and wrong values are recorded. A sound value of a
    misspelt key is taken as that of the key that was probably meant, which `table` gets."""
    checks = {field.key: field.check for field in known} | dict.fromkeys(others, _tables_inside)
    for key, value in list(table.items()):
        if key not in checks:
            hint = suggest(key[:80], checks)
            for other in [other for other in checks if f"`{other}`" in hint]:
                findings.meant.add((*path, other))
                if other not in table and _passes(checks[other], value):
                    table[other] = value
                    findings.also((*path, key), (*path, other))
                else:
                    findings.unread.add((*path, other))
            hint = hint or f"known: {listing(checks)}"
            findings.at_key(fields.UNKNOWN_KEY, f"{what} has no field `{key}`", (*path, key), hint)
    values = {}
    for each in known:
        if each.key in table:
            try:
                values[each.key] = each.check(table[each.key])
            except WrongValueError as error:
                findings.at_value(error.code, f"`{each.key}` {error}", (*path, each.key, *error.at), error.hint)
        elif each.default is not None:
            values[each.key] = each.default
        elif (*path, each.key) not in findings.meant:
            findings.at_key(fields.MISSING, f"{what} has no `{each.key}`", path, f"add {each.key} = {_example(each)}")
    return values


def _passes(check: Check, value: object) -> bool:
    """True if a value is sound."""
    try:
        check(value)
    except WrongValueError:
        return False
    return True


def _tables_inside(value: object) -> None:
    """WrongValueError for what is neither a table nor a list of tables."""
    if not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise fields.wrong_type(value, "a table or a list of tables")


def _example(wanted: Field) -> str:
    """A value that a field could have, for a hint."""
    return EXAMPLES.get(wanted.key, '"..."')


EXAMPLES = {
    "backend": '"none"', "units": "8", "dispatch": '"4 us"', "capacity": '"192 KiB"', "read": '"100 GB/s"',
    "write": '"100 GB/s"', "scope": '"device" or "unit"', "kind": '"scratchpad" or "cache"',
    "bandwidth": '"100 GB/s"', "operands": '["L2"]', "rate": '"320 TFLOP/s"',
}  # fmt: skip


def _operations(table: Values, path: Path, findings: Findings) -> dict[str, dict[str, Values]]:
    """The rates of a compute unit by operation and type, as far as they are sound."""
    result: dict[str, dict[str, Values]] = {}
    for operation in OPERATIONS:
        rates = table.get(operation, {})
        if rates:
            result[operation] = {}
        example = f'{operation}.f32 = {{ rate = "1 TFLOP/s" }}'
        if not isinstance(rates, dict):
            message = f"`{operation}` must have rates by type, not {type_name(rates)}"
            findings.at_value(fields.WRONG_TYPE, message, (*path, operation), f"write {example}")
            continue
        for dtype, rate in rates.items():
            place = (*path, operation, dtype)
            if dtype not in DTYPES:
                hint = suggest(dtype[:80], DTYPES) or f"the types are {listing(DTYPES)}"
                findings.at_key(fields.UNKNOWN_NAME, f"there is no type `{dtype}`", place, hint)
            elif not isinstance(rate, dict):
                message = f"`{operation}.{dtype}` must be a table, not {type_name(rate)}"
                findings.at_value(fields.WRONG_TYPE, message, place, f"write {example}")
            else:
                values = _fields(rate, place, fields.RATES[operation], (), f"`{operation}.{dtype}`", findings)
                result[operation][dtype] = values
    if not result and not any((*path, operation) in findings.meant for operation in OPERATIONS):
        hint = 'add for example vector.f32 = { rate = "1 TFLOP/s" }'
        findings.at_key(fields.MISSING, "this compute unit does nothing", path, hint)
    return result


def _machine(contents: Contents) -> Machine:
    """The machine of contents without problems."""
    tiers = tuple(Tier(**values) for values in contents.tiers)
    moves = tuple(
        Move(values["from"], values["to"], values["bandwidth"], values["granularity"]) for values in contents.moves
    )
    compute = tuple(
        ComputeUnit(
            unit["name"],
            unit["operands"],
            unit["accumulator"],
            {
                name: {dtype: Rate(**rate) for dtype, rate in rates.items()}
                for name, rates in unit["operations"].items()
            },
        )
        for unit in contents.compute
    )
    return Machine(**contents.machine, tiers=tiers, moves=moves or chain(tiers), compute=compute)
