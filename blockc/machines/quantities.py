"""Numbers with units, such as "192 KiB" or "4.8 TB/s"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

# What seems to be meant as a number, such as 1_000 or 1,5, and what is one.
_MEANT = re.compile(r"([+-]?[0-9.](?:[0-9._,]|[ \t](?=[0-9]))*(?:[eE][+-]?[0-9][0-9._,]*)?)[ \t]*")
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?")
_DECIMAL = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured, the units it may have with their sizes, and an example."""

    noun: str
    units: Mapping[str, Fraction]
    example: str


class QuantityError(ValueError):
    """A text that is no quantity of its kind: what is wrong, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        self.hint = hint
        super().__init__(message)


def _prefixed(unit: str) -> dict[str, Fraction]:
    return {unit: Fraction(1)} | {f"{prefix}{unit}": Fraction(10**power) for prefix, power in _DECIMAL.items()}


_BYTES = _prefixed("B") | {f"{prefix}B": Fraction(2**power) for prefix, power in _BINARY.items()}

BYTES = Kind("a size", _BYTES, "192 KiB")
BANDWIDTH = Kind("a bandwidth", {f"{unit}/s": size for unit, size in _BYTES.items()}, "4.8 TB/s")
FLOPS = Kind("a rate", _prefixed("FLOP/s"), "320 TFLOP/s")
OPERATIONS = Kind("a rate", _prefixed("OP/s"), "4 TOP/s")
RATE = Kind("a rate", {**FLOPS.units, **OPERATIONS.units}, FLOPS.example)
TIME = Kind(
    "a time", {"ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1)}, "4 us"
)


def parse(text: str, kind: Kind) -> Fraction:
    """The exact value in the base unit: bytes, bytes per second, operations per second, seconds. QuantityError if the
    text is no number with a unit of this kind."""
    number = _MEANT.match(text)
    if number is not None and not _NUMBER.fullmatch(number[1]):
        hint = "a number is like 64, 1.5 or 4e3: at most 20 digits, a point and 20 digits, an exponent from -99 to 99"
        raise QuantityError(f"starts with `{number[1]}`, which is no number that can be read", hint)
    unit = text[number.end() :] if number else ""
    if number is None or not unit:
        missing = "has no unit" if number else "does not start with a number"
        raise QuantityError(missing, f"write {kind.noun}, such as {quoted(kind.example)}; units: {units_of(kind)}")
    if unit not in kind.units:
        raise QuantityError(f"is in `{unit}`, which is no unit of {kind.noun}", _suggestion(unit, kind))
    return Fraction(number[1]) * kind.units[unit]


def written(value: float, kind: Kind) -> str:
    """The most readable text that `parse` gives this value for."""
    if value == 0:
        return f"0 {kind.example.split()[1]}"
    numbers = {unit: _number(Fraction(value) / size) for unit, size in kind.units.items()}
    read = {unit: Fraction(number) * kind.units[unit] for unit, number in numbers.items()}
    exact = [unit for unit in kind.units if (read[unit] if isinstance(value, int) else float(read[unit])) == value]
    # The base unit is always among them. Short numbers from 1 to 1,000 read best.
    best = min(exact, key=lambda unit: ("e" in numbers[unit], not 1 <= float(numbers[unit]) < 1000, len(numbers[unit])))
    return f"{numbers[best]} {best}"


def _number(value: Fraction) -> str:
    if value.denominator == 1 and value < 10**20:
        return str(value.numerator)
    return repr(float(value)).removesuffix(".0")


def units_of(kind: Kind) -> str:
    """The units of a kind, for a hint."""
    return ", ".join(kind.units)


def quoted(text: str) -> str:
    """The text as a string of a machine file."""
    return f'"{text}"'


def _suggestion(unit: str, kind: Kind) -> str:
    """Units that look like the one given, or all."""
    plain: dict[str, list[str]] = {}
    for known in kind.units:
        for spelling in {known, known.replace("i", ""), known.removesuffix("/s")}:  # KB may be meant as kB or as KiB
            plain.setdefault(spelling.casefold(), []).append(known)
    close = difflib.get_close_matches(unit[:20].casefold(), plain, 1, 0.6)
    if not close:
        return f"units: {units_of(kind)}"
    return f"did you mean {' or '.join(f'`{known}`' for known in plain[close[0]])}?"
