"""A machine as the text of a machine file. Reading it back gives the same machine."""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.machine import ComputeUnit, Machine, Tier, chain
from blockc.machines.quantities import BANDWIDTH, BYTES, FLOPS, OPERATIONS, TIME, quoted, written


def machine_text(machine: Machine) -> str:
    """The machine as TOML, every field with its unit."""
    return "\n".join(_lines(machine)) + "\n"


def _lines(machine: Machine) -> Iterator[str]:
    yield f"name = {quoted(machine.name)}"
    yield f"description = {_string(machine.description)}"
    yield f"backend = {quoted(machine.backend)}"
    yield f"units = {machine.units}"
    yield f"dispatch = {quoted(written(machine.dispatch, TIME))}"
    yield f"call = {quoted(written(machine.call, TIME))}"
    yield f"capability = {machine.capability}"
    yield f"products = {quoted(machine.products)}"
    for tier in machine.tiers:
        yield from ("", "[[tier]]", *_tier(tier))
    for move in machine.moves if machine.moves != chain(machine.tiers) else ():
        yield from ("", "[[move]]", f"from = {quoted(move.source)}", f"to = {quoted(move.destination)}")
        yield f"bandwidth = {quoted(written(move.bandwidth, BANDWIDTH))}"
        yield f"granularity = {quoted(written(move.granularity, BYTES))}"
    for unit in machine.compute:
        yield from ("", "[[compute]]", *_unit(unit))


def _tier(tier: Tier) -> Iterator[str]:
    yield f"name = {quoted(tier.name)}"
    yield f"capacity = {quoted(written(tier.capacity, BYTES))}"
    yield f"read = {quoted(written(tier.read, BANDWIDTH))}"
    yield f"write = {quoted(written(tier.write, BANDWIDTH))}"
    yield f"scope = {quoted(tier.scope)}"
    yield f"kind = {quoted(tier.kind)}"
    yield f"alignment = {quoted(written(tier.alignment, BYTES))}"
    yield f"latency = {quoted(written(tier.latency, TIME))}"
    yield f"buffers = {tier.buffers}"
    yield f"duplex = {quoted(tier.duplex)}"


def _unit(unit: ComputeUnit) -> Iterator[str]:
    yield f"name = {quoted(unit.name)}"
    yield f"operands = [{', '.join(map(quoted, unit.operands))}]"
    yield f"accumulator = {quoted(unit.accumulator)}"
    for operation, rates in unit.operations.items():
        for dtype, rate in rates.items():
            speed = quoted(written(rate.rate, OPERATIONS if operation == "special" else FLOPS))
            yield f"{operation}.{dtype} = {{ rate = {speed}, tile = {list(rate.tile)} }}"


def _string(text: str) -> str:
    """A text that can be seen, as a string of TOML."""
    return quoted(text.replace("\\", "\\\\").replace('"', '\\"'))
