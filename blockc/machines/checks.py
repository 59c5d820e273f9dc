"""What the tables of a machine file have to agree on. Only sound values are compared, so no problem shows twice."""

from __future__ import annotations

from collections.abc import Iterator

from blockc.ir.dtypes import DTYPES
from blockc.ir.machine import NUMPY, OPERATIONS, TORCH
from blockc.machines import fields
from blockc.machines.findings import Contents, Findings, Values
from blockc.names import listing, suggest

_ACCUMULATED = 4  # bytes of a result of a product, f32
_MISORDERED = {
    "capacity": "is larger than",
    "read": "is slower to read than",
    "write": "is slower to write than",
    "scope": "belongs to the device, but not",
}


def check(contents: Contents, findings: Findings) -> None:
    """Records every problem between fields and between tables."""
    _check_unique("tier", contents.tiers, findings)
    _check_unique("compute", contents.compute, findings)
    names = [tier["name"] for tier in contents.tiers if "name" in tier]
    tiers = {tier["name"]: tier for tier in contents.tiers if names.count(tier.get("name")) == 1}
    if "tier" in contents.whole and len(tiers) == len(contents.tiers) >= 2:
        _check_tiers_exist(contents, tiers, findings)
    _check_tiles(contents, tiers, findings)
    _check_moves(contents, tiers, findings)
    _check_order(contents, tiers, findings)
    if contents.moves and contents.compute and len(contents.whole) == len(fields.LISTS):
        _check_reach(contents, tiers, findings)
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


def _check_order(contents: Contents, tiers: dict[str, Values], findings: Findings) -> None:
    """The first tier belongs to the device. Further in, tiers are no larger and no more widely shared, and no slower if
    they form a chain. (A tier that feeds two others may be faster than each.) Only moves lead inwards: units may leave
    the results of computing in a tier of the device that is listed behind their own."""
    if "tier" in contents.whole and contents.tiers and contents.tiers[0].get("scope") == "unit":
        hint = "inputs and outputs are in the first tier"
        message = "the first tier must belong to the device"
        findings.at_value(fields.ORDER, message, ("tier", 0, "scope"), hint)
    outside = _outside(contents, tiers)
    ports = () if contents.moves else ("read", "write")
    for inner, tier in enumerate(contents.tiers):
        for key in ("capacity", *ports, "scope"):
            outer = _misordered(inner, key, contents, outside)
            if outer is not None:
                names = tier.get("name", inner + 1), contents.tiers[outer].get("name", outer + 1)
                message = f"tier `{names[0]}` {_MISORDERED[key]} `{names[1]}`, which is outside it"
                hint = "list tiers from the outermost (large, slow, shared) inwards"
                findings.at_value(fields.ORDER, message, ("tier", inner, key), hint)


def _outside(contents: Contents, tiers: dict[str, Values]) -> list[list[int]]:
    """The tiers, by number, from which data go inwards to each tier. Without moves, tiers form a chain."""
    outside: list[list[int]] = [[] for _ in contents.tiers]
    if not contents.moves and "move" in contents.whole:
        for inner in range(1, len(contents.tiers)):
            outside[inner].append(inner - 1)
    numbers = {tier["name"]: number for number, tier in enumerate(contents.tiers) if tier.get("name") in tiers}
    for move in contents.moves:
        outer, inner = (numbers.get(move.get(end), -1) for end in ("from", "to"))
        if 0 <= outer < inner and outer not in outside[inner]:
            outside[inner].append(outer)
    return outside


def _misordered(inner: int, key: str, contents: Contents, outside: list[list[int]]) -> int | None:
    """The tier outside another one that it is out of order with in a field, if any. A tier of which that cannot be said
    is left out: those outside it are taken."""
    waiting = list(outside[inner])
    while waiting:
        outer = waiting.pop(0)
        first, second = contents.tiers[outer], contents.tiers[inner]
        is_first = outer == 0 and "tier" in contents.whole  # which has to belong to the device, whatever it says
        scopes = "device" if is_first else first.get("scope"), second.get("scope")
        wrong = _is_wrong(key, first, second, scopes, contents.machine.get("units"))
        if wrong:
            return outer
        if wrong is None:
            waiting.extend(outside[outer])
    return None


def _is_wrong(
    key: str, outer: Values, inner: Values, scopes: tuple[str | None, str | None], units: int | None
) -> bool | None:
    """True if a field of an inner tier does not go with that of an outer one; None if that cannot be said."""
    if key == "capacity" and key in outer and key in inner:
        return bool(inner[key] > outer[key])
    if key == "scope" and None not in scopes:
        return scopes == ("unit", "device")
    together = 1 if scopes[0] == scopes[1] else units  # how many of the inner tier have what one outer tier is for
    if key in ("capacity", "scope") or None in scopes or scopes == ("unit", "device") or together is None:
        return None
    return bool(inner[key] * together < outer[key]) if key in outer and key in inner else None


def _check_reach(contents: Contents, tiers: dict[str, Values], findings: Findings) -> None:
    """Data get from the first tier to every other one, and results back. Computing leads from operands to results. An
    end that is wrong may be meant as any tier, so that no tier is reported only because of it."""
    start = contents.tiers[0].get("name") if contents.tiers else None
    if start not in tiers:
        return
    ends = [(move.get("from"), move.get("to")) for move in contents.moves]
    ends += [(name, unit.get("accumulator")) for unit in contents.compute for name in unit.get("operands", (None,))]
    ways: set[tuple[str, str]] = set()
    for first, second in ends:
        sources, destinations = ([name] if name in tiers else list(tiers) for name in (first, second))
        ways.update((source, destination) for source in sources for destination in destinations)
    ways.update(way for move in contents.moves if move.get("from") == move.get("to") for way in _around(move, tiers))
    there, back = _reached(start, ways), _reached(start, {(second, first) for first, second in ways})
    for index, tier in enumerate(contents.tiers):
        name, path = tier.get("name"), ("tier", index, "name")
        if name in tiers and name not in there:
            hint = f'add a [[move]] with to = "{name}"'
            findings.at_value(fields.WAY, f"nothing gets from `{start}` to tier `{name}`", path, hint)
        elif name in tiers and name not in back:
            hint = f'add a [[move]] with from = "{name}"'
            findings.at_value(fields.WAY, f"nothing gets from tier `{name}` back to `{start}`", path, hint)


def _around(move: Values, tiers: dict[str, Values]) -> Iterator[tuple[str, str]]:
    """The ways that a move from a tier to itself may be meant as."""
    for name in tiers:
        yield from ((name, move.get("to", name)), (move.get("from", name), name))


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
        if contents.compute and "compute" in contents.whole and operation not in done:
            hint = f'add {operation}.f32 = {{ rate = "..." }} to one of them'
            findings.at_key(fields.MISSING, f"no compute unit does `{operation}`", ("compute",), hint)
