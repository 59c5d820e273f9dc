"""What a Triton kernel needs of a multiprocessor, before it is compiled: registers of a thread and shared memory.

Both come from the kernel's text (`triton_types.py`). Shared memory is a bound: blocks on their way to products, what of
their operands goes through it, and the largest tile that changes its layout, at the worst place. Registers are an
estimate: tiles that live at the same time and operands of products, over the threads that share them. Its factors are
fitted to what the compiler said of 400 kernels; of seven in eight it tells right whether they spill.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockc.codegen.triton_types import SIZES, Block, Line, Product, Shaped, lines

_WARP = 32
_BASE = 40  # registers for addresses and counts
_ROW = 16  # elements of a row's results, one for several threads, that come to one register
_READ = 0.5  # of an operand that comes from shared memory: it is not there all at once
_ALONE = 0.4  # of the operands of a product without tensor cores


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched. `in_groups`: four warps of the GPU multiply together, from shared memory."""

    warps: int
    stages: int
    in_groups: bool


@dataclass(frozen=True, slots=True)
class Needs:
    """About so many registers of a thread, and at most so many bytes of shared memory."""

    registers: int
    shared_bytes: int


def needs(kernel: Block, launch: Launch) -> Needs:
    """What a kernel needs."""
    return Needs(_registers(kernel, launch), _held(kernel, frozenset(), launch))


def _by_groups(product: Product, launch: Launch) -> bool:
    return launch.in_groups and not product.exact and product.result.shape[-2] >= 64


# Shared memory


def _held(block: Block, counted: frozenset[str], launch: Launch) -> int:
    """The bytes at the worst place of a block. `counted` are operands that are held around it."""
    every = list(lines(block))
    made = {name for line in every for name in line.makes}
    direct, loops = _parts(block)
    around = {
        operand.base: operand.bytes
        for line in every
        if block.loop
        for product in line.products
        for operand in (product.left, product.right)
        if operand.base not in made and operand.base not in counted
    }
    held = counted | around.keys()
    loaded: dict[str, int] = {}
    if block.loop and not loops:
        loaded = _on_the_way([line for line in block.body if isinstance(line, Line)], launch)
        held |= loaded.keys()
    pairs = [_operands(line, held, launch) for line in direct]
    if any(product.exact or _by_groups(product, launch) for line in direct for product in line.products):
        operands = sum({name: size for pair in pairs for name, size in pair.items()}.values())
    else:  # they are in registers once the next but one is there
        operands = sum(sorted((sum(pair.values()) for pair in pairs), reverse=True)[:2])
    places = operands + max([0, *(_scratch(line, launch) for line in direct)])
    inside = [_held(loop, held, launch) for loop in loops]
    return sum(around.values()) + sum(loaded.values()) + max([places, *inside])


def _parts(block: Block) -> tuple[list[Line], list[Block]]:
    """The statements of a block, and the loops in it."""
    statements: list[Line] = []
    loops: list[Block] = []
    for part in block.body:
        if isinstance(part, Line):
            statements.append(part)
        elif part.loop:
            loops.append(part)
        else:
            inner = _parts(part)
            statements += inner[0]
            loops += inner[1]
    return statements, loops


def _on_the_way(statements: list[Line], launch: Launch) -> dict[str, int]:
    """The bytes of blocks that are loaded ahead for the products of a loop."""
    products = [product for line in statements for product in line.products]
    wanted = frozenset().union(*(product.left.sources | product.right.sources for product in products))
    ahead = any(
        _by_groups(product, launch) or _converted(product.left) or _converted(product.right) for product in products
    )
    buffers = launch.stages if ahead else launch.stages - 1
    return {
        name: max(1, buffers) * tile.bytes
        for line in statements
        if line.loads
        for name, tile in line.makes.items()
        if name in wanted and tile.shape
    }


def _operands(line: Line, held: frozenset[str], launch: Launch) -> dict[str, int]:
    """The bytes of the operands of products that are not `held` anyway."""
    found = {}
    for product in line.products:
        whole = product.exact or _by_groups(product, launch)
        for at, operand in enumerate((product.left, product.right)):
            if operand.base not in held or (whole and _converted(operand)):
                name = operand.base or f"{product.result.origin} {at}"
                found[name] = operand.bytes if whole else operand.least_bytes
    return found


def _converted(operand: Shaped) -> bool:
    """True if it is multiplied in another type than it is at hand in."""
    return operand.narrow not in ("", operand.dtype)


def _scratch(line: Line, launch: Launch) -> int:
    """The bytes in which a tile changes its layout, or the warps' parts of a reduction meet."""
    moved = [tile.bytes for tile in line.moved]
    reduced = [tile.elements * launch.warps * SIZES[tile.dtype] for tile in line.reduced]
    return max([*moved, *reduced], default=0)


# Registers


def _registers(block: Block, launch: Launch) -> int:
    """Those of tiles at the worst place, and a few for addresses and counts."""
    most = 0.0
    types: dict[str, Shaped] = {}
    elsewhere: set[str] = set()  # what is used as it is, and not only as an operand of a product
    for line in lines(block):
        types.update(line.makes)
        operands = {operand.base for product in line.products for operand in (product.left, product.right)}
        elsewhere |= line.reads - operands

    def words(name: str) -> float:
        tile = types[name]
        from_memory = (tile.origin or "").startswith("load")
        return 0.0 if from_memory and name not in elsewhere else _of_thread(tile, launch)

    def lived(part: Block, after: frozenset[str]) -> frozenset[str]:
        nonlocal most
        for inner in reversed(part.body):
            if isinstance(inner, Block):
                again = lived(inner, after) if inner.loop else frozenset[str]()
                after = lived(inner, after | again) | after
                continue
            before = (after - inner.makes.keys()) | inner.reads
            places = (before, after) if _is_elementwise(inner) else (before | after,)
            held = max(sum(words(name) for name in names if name in types) for names in places)
            most = max(most, held + sum(_fragments(product, launch, types) for product in inner.products))
            after = before
        return after

    lived(block, frozenset())
    return _BASE + round(most)


def _is_elementwise(line: Line) -> bool:
    """True if elements of what is made take the place of those that are read."""
    return not (line.products or line.reduced or line.loads)


def _of_thread(tile: Shaped, launch: Launch) -> float:
    """Registers of a thread for a tile."""
    if tile.origin is None and tile.dtype in ("int32", "int1", "int64"):
        return 0.0  # positions are computed again
    words = tile.bytes / 4
    long = [length for length in tile.shape if length > 1]
    if len(long) < 2:
        return words / _ROW
    return words / (_WARP * launch.warps)


def _fragments(product: Product, launch: Launch, types: dict[str, Shaped]) -> float:
    """Registers of a thread for operands that are computed: threads that share rows have the same ones."""
    rows, columns = product.result.shape[-2:]
    if _by_groups(product, launch):
        return _of_thread(product.left, launch) if _is_computed(product.left, types) else 0.0
    if rows >= columns:
        down = min(launch.warps, max(1, rows // 16))
        across = launch.warps // down
    else:
        across = min(launch.warps, max(1, columns // 8))
        down = launch.warps // across
    found = 0.0
    for operand, parts in ((product.left, down), (product.right, across)):
        if product.exact:
            share = _ALONE * (rows * columns / (_WARP * launch.warps)) ** 0.5 * product.left.shape[-1]
        else:
            share = operand.bytes / 4 / (_WARP * parts)
        found += share if _is_computed(operand, types) else _READ * share
    return found


def _is_computed(operand: Shaped, types: dict[str, Shaped]) -> bool:
    return not (operand.base in types and (types[operand.base].origin or "").startswith("load"))
