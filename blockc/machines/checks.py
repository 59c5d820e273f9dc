"""What the tables of a machine file have to agree on. Only sound values are compared, so no problem shows twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import NUMPY, OPERATIONS, TORCH
from blockc.machines import fields
from blockc.machines.findings import Contents, Findings, Values
from blockc.names import listing, suggest

_ACCUMULATED = 4  # bytes of a result of a product, f32


def check(contents: Contents, findings: Findings) -> None:
    """Records every problem between fields and between tables."""
    _check_unique("tier", contents.tiers, findings)
    _check_unique("compute", contents.compute, findings)
    names = [tier.get("name") for tier in contents.tiers]
    tiers = {tier["name"]: tier for tier in contents.tiers if "name" in tier}
    sound = len(tiers) == len(names) >= 2
    if sound:
        _check_tiers_exist(contents, tiers, findings)
        _check_tiles(contents, tiers, findings)
    _check_moves(contents, tiers, findings)
    _check_order(contents, findings)
    if sound and contents.moves and _ends_known(contents, tiers):
        _check_reach(contents, list(tiers), findings)
    _check_operations(contents, findings)
    _check_products(contents, findings)
    for index, tier in enumerate(contents.tiers):
        if "capacity" in tier and tier.get("alignment", 1) > tier["capacity"]:
            findings.at_value(fields.IMPOSSIBLE, "`alignment` is larger than the tier", ("tier", index, "alignment"))


def _check_products(contents: Contents, findings: Findings) -> None:
    """Only NumPy kernels have products of another library."""
    backend = contents.machine.get("backend")
    if contents.machine.get("products") == TORCH and backend not in (NUMPY, None):
        message = f"`products` is for machines whose backend is {NUMPY}"
        findings.at_value(fields.IMPOSSIBLE, message, ("products",), f"here the backend is {backend}: remove the line")


def _check_unique(key: str, tables: list[Values], findings: Findings) -> None:
    """Two tables of a list have different names."""
    seen: dict[str, int] = {}
    for index, table in enumerate(tables):
        name = table.get("name")
        if name in seen:
            line = findings.places[key, seen[name], "name"].key.line
            hint = f"the other one is in line {line}"
            findings.at_value(fields.DUPLICATE, f"there is another {key} `{name}`", (key, index, "name"), hint)
        elif name is not None:
            seen[name] = index


def _check_tiers_exist(contents: Contents, tiers: dict[str, Values], findings: Findings) -> None:
    """Moves and compute units name tiers that there are."""
    for index, move in enumerate(contents.moves):
        for end in ("from", "to"):
            _check_tier(move.get(end), ("move", index, end), tiers, findings)
    for index, unit in enumerate(contents.compute):
        for number, name in enumerate(unit.get("operands", ())):
            _check_tier(name, ("compute", index, "operands", number), tiers, findings)
        _check_tier(unit.get("accumulator"), ("compute", index, "accumulator"), tiers, findings)


def _check_tier(name: str | None, path: tuple[str | int, ...], tiers: dict[str, Values], findings: Findings) -> None:
    if name is not None and name not in tiers:
        hint = suggest(name, tiers) or f"the tiers are {listing(tiers)}"
        findings.at_value(fields.UNKNOWN_NAME, f"there is no tier `{name}`", path, hint)


def _check_tiles(contents: Contents, tiers: dict[str, Values], findings: Findings) -> None:
    """The smallest tile of every product fits in the tiers where it has to be."""
    for index, unit in enumerate(contents.compute):
        for dtype, rate in unit["operations"].get("matmul", {}).items():
            if "tile" not in rate or "operands" not in unit or "accumulator" not in unit:
                continue
            m, n, k = rate["tile"]
            left, right = unit["operands"][0], unit["operands"][-1]
            need: dict[str, int] = {}
            accumulated = max(_ACCUMULATED, DTYPES[dtype].size)
            sizes = ((left, m * k * DTYPES[dtype].size), (right, k * n * DTYPES[dtype].size))
            for name, size in (*sizes, (unit["accumulator"], m * n * accumulated)):
                need[name] = need.get(name, 0) + size
            for name, size in need.items():
                capacity = tiers.get(name, {}).get("capacity", size)
                if size > capacity:
                    path = ("compute", index, "matmul", dtype, "tile")
                    message = f"a tile of m={m}, n={n}, k={k} does not fit in tier `{name}`"
                    findings.at_value(fields.IMPOSSIBLE, message, path, f"it takes {size:,} of {capacity:,} bytes")


def _check_moves(contents: Contents, tiers: dict[str, Values], findings: Findings) -> None:
    """A move has two ends, is there once, and is no faster than what it connects."""
    seen: dict[tuple[str, str], int] = {}
    for index, move in enumerate(contents.moves):
        if "from" not in move or "to" not in move:
            continue
        ends = move["from"], move["to"]
        if move["from"] == move["to"]:
            hint = "a move has two different ends"
            findings.at_value(fields.WAY, f"this move leads from `{ends[0]}` to itself", ("move", index, "to"), hint)
        elif ends in seen:
            line = findings.places["move", seen[ends]].key.line
            message = f"there is another move from `{ends[0]}` to `{ends[1]}`"
            findings.at_key(fields.DUPLICATE, message, ("move", index), f"the other one is in line {line}")
        seen.setdefault(ends, index)
        for name, port, verb in ((ends[0], "read", "read"), (ends[1], "write", "written")):
            limit = tiers.get(name, {}).get(port)
            if limit is not None and move.get("bandwidth", 0) > limit:
                path = ("move", index, "bandwidth")
                findings.at_value(fields.IMPOSSIBLE, f"the move is faster than `{name}` can be {verb}", path)


def _ends_known(contents: Contents, tiers: dict[str, Values]) -> bool:
    """True if every end of a move and every tier of a compute unit is sound."""
    ends = [move.get(end) for move in contents.moves for end in ("from", "to")]
    ends += [name for unit in contents.compute for name in (*unit.get("operands", (None,)), unit.get("accumulator"))]
    return all(name in tiers for name in ends)


def _inward(contents: Contents) -> Iterator[tuple[int, int]]:
    """Pairs of tiers, by number, of which data go from the first inwards to the second."""
    if not contents.moves:
        yield from pairwise(range(len(contents.tiers)))
        return
    numbers = {tier.get("name"): index for index, tier in enumerate(contents.tiers)}
    for move in contents.moves:
        outer, inner = numbers.get(move.get("from")), numbers.get(move.get("to"))
        if outer is not None and inner is not None and outer < inner:
            yield outer, inner


def _check_order(contents: Contents, findings: Findings) -> None:
    """The first tier belongs to the device. Further in, tiers are no larger and no more widely shared, and no slower if
    they form a chain. (A tier that feeds two others may be faster than each.)"""
    if contents.tiers and contents.tiers[0].get("scope") == "unit":
        hint = "inputs and outputs are in the first tier"
        message = "the first tier must belong to the device"
        findings.at_value(fields.ORDER, message, ("tier", 0, "scope"), hint)
    units = contents.machine.get("units")
    reported = set()
    for outer, inner in _inward(contents):
        first, second = contents.tiers[outer], contents.tiers[inner]
        between = f"tier `{second.get('name', inner + 1)}`", f"`{first.get('name', outer + 1)}`, which is outside it"
        found = []
        if "capacity" in first and "capacity" in second and second["capacity"] > first["capacity"]:
            found.append(("capacity", f"{between[0]} is larger than {between[1]}"))
        for port in () if contents.moves else ("read", "write"):
            speeds = _of_device(first, port, units), _of_device(second, port, units)
            if speeds[0] is not None and speeds[1] is not None and speeds[1] < speeds[0]:
                found.append((port, f"{between[0]} is slower to {port} than {between[1]}"))
        if (first.get("scope"), second.get("scope")) == ("unit", "device"):
            found.append(("scope", f"{between[0]} belongs to the device, but not {between[1]}"))
        for key, message in found:
            if (inner, key) not in reported:
                hint = "list tiers from the outermost (large, slow, shared) inwards"
                findings.at_value(fields.ORDER, message, ("tier", inner, key), hint)
            reported.add((inner, key))


def _of_device(tier: Values, port: str, units: int | None) -> float | None:
    """The bandwidth of a tier in all units together."""
    if port not in tier or "scope" not in tier or units is None:
        return None
    return float(tier[port]) * (units if tier["scope"] == "unit" else 1)


def _check_reach(contents: Contents, names: list[str], findings: Findings) -> None:
    """Data get from the first tier to every other one, and results back. Computing leads from operands to results."""
    ways = {(move["from"], move["to"]) for move in contents.moves}
    ways |= {(name, unit["accumulator"]) for unit in contents.compute for name in unit["operands"]}
    there, back = _reached(names[0], ways), _reached(names[0], {(second, first) for first, second in ways})
    for index, name in enumerate(names):
        path = ("tier", index, "name")
        if name not in there:
            hint = f'add a [[move]] with to = "{name}"'
            findings.at_value(fields.WAY, f"nothing gets from `{names[0]}` to tier `{name}`", path, hint)
        elif name not in back:
            hint = f'add a [[move]] with from = "{name}"'
            findings.at_value(fields.WAY, f"nothing gets from tier `{name}` back to `{names[0]}`", path, hint)


def _reached(start: str, ways: set[tuple[str, str]]) -> set[str]:
    """Everything that ways lead to."""
    found, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        further = {second for first, second in ways if first == here} - found
        found |= further
        waiting.extend(further)
    return found


def _check_operations(contents: Contents, findings: Findings) -> None:
    """Something on the machine does each of the operations."""
    done = {operation for unit in contents.compute for operation in unit["operations"]}
    done |= {key for _, _, key in (path for path in findings.meant if path[0] == "compute" and len(path) == 3)}
    for operation in OPERATIONS:
        if contents.compute and operation not in done:
            hint = f'add {operation}.f32 = {{ rate = "..." }} to one of them'
            findings.at_key(fields.MISSING, f"no compute unit does `{operation}`", ("compute",), hint)
