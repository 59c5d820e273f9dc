"""What may stand in a machine file: the fields of every table, and how the value of each is read."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockc.ir.machine import BACKENDS, DUPLEX, KINDS, PRODUCTS, SCOPES
from blockc.machines import quantities
from blockc.machines.gpus import GPUS
from blockc.machines.quantities import BANDWIDTH, BYTES, RATE, TIME, Kind, QuantityError
from blockc.machines.toml_places import Path
from blockc.names import listing, suggest

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_LARGEST = 2**20  # of whole numbers: parallel units, sizes of tiles
_LARGEST_BYTES = 2**60
_FASTEST, _MOST_OPERATIONS, _LONGEST = 10**18, 10**21, 1  # bytes per second, operations per second, seconds
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text"), (list, "a list"),
    (dict, "a table"), (datetime.datetime, "a date"), (datetime.date, "a date"), (datetime.time, "a time of day"),
)  # fmt: skip

SYNTAX, UNKNOWN_KEY, MISSING, WRONG_TYPE, UNIT = "E0201", "E0202", "E0203", "E0204", "E0205"
IMPOSSIBLE, UNKNOWN_NAME, DUPLICATE, ORDER, WAY = "E0206", "E0207", "E0208", "E0209", "E0210"


class WrongValueError(ValueError):
    """A value that a field cannot have: a code, what is wrong (a sentence without its subject), what to do, and where
    in the value."""

    def __init__(self, code: str, message: str, hint: str = "", at: Path = ()) -> None:
        self.code, self.hint, self.at = code, hint, at
        super().__init__(message)


Check = Callable[[Any], Any]  # the value of a field as it is in TOML, to what the machine gets


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a table. `default` is None where there has to be a value."""

    key: str
    check: Check
    default: Any = None


def type_name(value: object) -> str:
    """What to call the type of a value of TOML."""
    return next(name for known, name in _TYPES if isinstance(value, known))


def wrong_type(value: object, wanted: str, hint: str = "", at: Path = ()) -> WrongValueError:
    """What to raise for a value of another type."""
    return WrongValueError(WRONG_TYPE, f"must be {wanted}, not {type_name(value)}", hint, at)


def name(value: Any) -> str:
    """A name: a letter, then letters, digits, `-` and `_`."""
    if not isinstance(value, str):
        raise wrong_type(value, "a name", 'names stand in quotes, such as "L2"')
    if not _NAME.fullmatch(value):
        hint = "a name starts with a letter and has at most 40 letters, digits, - and _"
        raise WrongValueError(IMPOSSIBLE, f"cannot be `{value}`", hint)
    return value


def sentence(value: Any) -> str:
    """A short text on one line."""
    if not isinstance(value, str):
        raise wrong_type(value, "text", "text stands in quotes")
    if len(value) > 200 or not value.isprintable():
        raise WrongValueError(
            IMPOSSIBLE, "must be one line of at most 200 characters that can be seen", "use # comments"
        )
    return value


def choice(*known: str) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise wrong_type(value, f"one of {listing(known)}", "words stand in quotes")
        if value not in known:
            hint = suggest(value, known) or f"known: {listing(known)}"
            raise WrongValueError(UNKNOWN_NAME, f"cannot be `{value}`", hint)
        return value

    return check


def quantity(kind: Kind, low: int, high: int) -> Check:
    """A number with a unit, above zero unless `low` is zero. Bytes are whole."""

    def check(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            units = quantities.units_of(kind)
            raise WrongValueError(UNIT, "needs a unit", f'write text, such as "{kind.example}"; units: {units}')
        if not isinstance(value, str):
            raise wrong_type(value, kind.noun, f'write text, such as "{kind.example}"')
        try:
            exact = quantities.parse(value, kind)
        except QuantityError as error:
            raise WrongValueError(UNIT, str(error), error.hint) from error
        if exact < low or (exact == 0 and low):
            raise WrongValueError(IMPOSSIBLE, "must not be negative" if not low else "must be greater than zero")
        if exact > high:
            raise WrongValueError(IMPOSSIBLE, "is too large", f"at most {quantities.written(high, kind)}")
        if kind is not BYTES:
            return float(exact)
        if exact.denominator != 1:
            raise WrongValueError(IMPOSSIBLE, "is not a whole number of bytes", "use B, or a unit that divides it")
        return int(exact)

    return check


def whole(low: int, high: int) -> Check:
    """A whole number."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            if isinstance(value, float) and not math.isfinite(value):
                raise WrongValueError(IMPOSSIBLE, f"must be a whole number, not {value}")
            raise wrong_type(value, "a whole number", "it has no quotes, no unit and no decimal point")
        if not low <= value <= high:
            raise WrongValueError(IMPOSSIBLE, "is impossible", f"from {low} to {high:,}")
        return value

    return check


def capability(value: Any) -> int:
    """A compute capability that limits are known of, or 0."""
    if whole(0, 999)(value) not in (0, *GPUS):
        known = listing([str(known) for known in GPUS])
        raise WrongValueError(UNKNOWN_NAME, f"cannot be {value}", f"known: {known}, and 0 for what is no GPU")
    return int(value)


def power_of_two(value: Any) -> int:
    """A number of bytes that is a power of two."""
    size = int(quantity(BYTES, 1, _LARGEST)(value))
    if size & (size - 1):
        raise WrongValueError(IMPOSSIBLE, "must be a power of two")
    return size


def several(check: Check, counts: tuple[int, ...], example: str) -> Check:
    """A list with one of some lengths, of values that pass another check."""
    lengths = " or ".join(map(str, counts))

    def checked(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise wrong_type(value, f"a list of {lengths}", f"for example {example}")
        if len(value) not in counts:
            raise WrongValueError(IMPOSSIBLE, f"must have {lengths} values, not {len(value)}", f"for example {example}")
        result = []
        for index, element in enumerate(value):
            try:
                result.append(check(element))
            except WrongValueError as error:
                raise WrongValueError(error.code, str(error), error.hint, (index, *error.at)) from error
        return tuple(result)

    return checked


MACHINE = (
    Field("name", name),
    Field("description", sentence, ""),
    Field("backend", choice(*BACKENDS)),
    Field("units", whole(1, _LARGEST)),
    Field("dispatch", quantity(TIME, 0, _LONGEST)),
    Field("call", quantity(TIME, 0, _LONGEST), 0.0),
    Field("capability", capability, 0),
    Field("products", choice(*PRODUCTS), PRODUCTS[0]),
)
TIER = (
    Field("name", name),
    Field("capacity", quantity(BYTES, 1, _LARGEST_BYTES)),
    Field("read", quantity(BANDWIDTH, 1, _FASTEST)),
    Field("write", quantity(BANDWIDTH, 1, _FASTEST)),
    Field("scope", choice(*SCOPES)),
    Field("kind", choice(*KINDS)),
    Field("alignment", power_of_two, 1),
    Field("latency", quantity(TIME, 0, _LONGEST), 0.0),
    Field("buffers", whole(1, 16), 1),
    Field("duplex", choice(*DUPLEX), "full"),
)
MOVE = (
    Field("from", name),
    Field("to", name),
    Field("bandwidth", quantity(BANDWIDTH, 1, _FASTEST)),
    Field("granularity", quantity(BYTES, 1, _LARGEST), 1),
)
COMPUTE = (
    Field("name", name),
    Field("operands", several(name, (1, 2), '["L0A", "L0B"]')),
    Field("accumulator", name),
)
_SIZE = whole(1, _LARGEST)
_RATE = Field("rate", quantity(RATE, 1, _MOST_OPERATIONS))
RATES = {
    "matmul": (_RATE, Field("tile", several(_SIZE, (3,), "[16, 16, 16]"), (1, 1, 1))),
    "vector": (_RATE, Field("tile", several(_SIZE, (1,), "[64]"), (1,))),
    "special": (_RATE, Field("tile", several(_SIZE, (1,), "[64]"), (1,))),
}
LISTS = {"tier": (2, 8), "move": (0, 64), "compute": (1, 16)}  # lists of tables: how few and how many
