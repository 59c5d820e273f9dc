"""Kernels for a GPU timed with several blocks and ways to launch them, and what is kept of that.

A short list comes from the cost model: blocks near the chosen ones, each launched in the ways that the compiler has
nothing against. They are checked and timed in that order, within a time. What is chosen is kept in a file for the
machine, with the name of the GPU: one that comes with blockc, and the user's own, which comes first. `compile` on that
GPU and `emit` use what is kept for a program and its sizes, up to the next power of two.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from pathlib import Path
from typing import Any

from blockc import driver
from blockc.codegen.triton_storage import LOADS, Loading, Options
from blockc.codegen.triton_tiles import LEAST
from blockc.errors import BlockcError, LimitError, Problem, visible
from blockc.ir import array_program
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.machines import loading
from blockc.triton_kernels import TritonKernels, launched_with, triton_kernels, with_blocks

MOST, SECONDS = 24, 30.0  # settings that are timed, and how long that may take, if nobody says
NOISE = 0.02  # of a time: what is less faster than the first setting is not taken for faster
FORMAT = 1  # of the files
LARGEST_FILE = 2**22
WARPS, STAGES = (1, 2, 4, 8, 16), range(1, 9)

Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """Blocks, and how each function of the file that they give is launched."""

    tiles: Mapping[str, int]
    launches: Mapping[str, Options]


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting and the seconds of its runs, or why it has none."""

    setting: Setting
    seconds: tuple[float, ...]
    problem: str = ""

    @property
    def median(self) -> float:
        """The median of its seconds."""
        return statistics.median(self.seconds) if self.seconds else math.inf


@dataclass(frozen=True, slots=True)
class Tuned:
    """All trials, the first with what is chosen without tuning, the number of the fastest, and how many settings were
    left out for lack of time."""

    trials: tuple[Trial, ...]
    chosen: int
    left_out: int


class UnusableError(Exception):
    """A setting that cannot be timed: it does not compile, does not fit, or is wrong."""


# --- trying -----------------------------------------------------------------------------------------------------------


def tune(
    settings: Iterable[Setting],
    timed: Callable[[Setting], Sequence[float]],
    clock: Callable[[], float],
    budget: float = SECONDS,
    most: int = MOST,
) -> Tuned:
    """Time settings in their order, at most so many, and none that may take longer than what is left of some seconds if
    it takes as long as the longest before it. The first is always tried."""
    started = clock()
    trials: list[Trial] = []
    longest = 0.0
    waiting = list(islice(settings, most))
    for setting in waiting:
        begun = clock()
        if trials and begun - started + longest > budget:
            break
        try:
            trials.append(Trial(setting, tuple(timed(setting))))
        except UnusableError as error:
            trials.append(Trial(setting, (), str(error)))
        longest = max(longest, clock() - begun)
    return Tuned(tuple(trials), fastest(trials), len(waiting) - len(trials))


def fastest(trials: Sequence[Trial]) -> int:
    """The number of the trial with the least median; the first, unless another one is faster by more than noise."""
    best = min(range(len(trials)), key=lambda at: trials[at].median)
    return best if trials[best].median < trials[0].median * (1 - NOISE) else 0


def settings(
    choices: Iterable[TritonKernels], ways: Callable[[TritonKernels], Mapping[str, Sequence[Options]]]
) -> Iterator[Setting]:
    """What is tried: the first choice of blocks as it is launched without tuning and in all its ways, then every other
    choice in the best way with pointers and in the best one with tensor descriptors. `ways` are those of each function,
    the best first; a choice is passed over if one has none."""
    seen: list[Setting] = []
    for made in choices:
        own = {function.name: function.options for function in made.source.functions}
        found = [own] if not seen else []
        possible = ways(made)
        if all(possible.get(name) for name in own):
            if seen:
                found += ({name: _best(possible[name], loads) for name in own} for loads in LOADS)
            else:
                for at in range(max(map(len, possible.values()), default=0)):
                    found.append({name: possible[name][min(at, len(possible[name]) - 1)] for name in own})
        for launches in found:
            setting = Setting(dict(made.plan.tiles), launches)
            if setting not in seen:
                seen.append(setting)
                yield setting


def _best(ways: Sequence[Options], loads: Loading) -> Options:
    """The first way with such loads, or the first of all if there is none."""
    return next((way for way in ways if way.loads == loads), ways[0])


def near(
    first: TritonKernels, program: ArrayProgram, machine: Machine, sizes: Mapping[str, int]
) -> Iterator[TritonKernels]:
    """The kernels with the chosen blocks, and with each of their blocks half and twice as large, as far as there are
    any."""
    extents = array_program.sizes(first.block, sizes)
    yield first
    for dim, tile in first.plan.tiles.items():
        for other in (tile * 2, tile // 2):
            if dim not in first.block.chunks and tile >= LEAST <= other <= max(LEAST, 2 * extents.get(dim, 0)):
                try:
                    yield with_blocks(first, program, machine, sizes, {**first.plan.tiles, dim: other})
                except LimitError:  # nothing fits the machine then
                    continue


def built(
    first: TritonKernels, program: ArrayProgram, machine: Machine, sizes: Mapping[str, int], setting: Setting
) -> TritonKernels | None:
    """The kernels of a setting, in the parts of those that are chosen without tuning; None if there are no such ones
    (any more)."""
    try:
        made = with_blocks(first, program, machine, sizes, setting.tiles)
    except LimitError:
        return None
    if {function.name for function in made.source.functions} != setting.launches.keys():
        return None
    return launched_with(made, machine, setting.launches)


# --- keeping ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept for a program at some sizes: `seconds` of the setting and of what is chosen without it."""

    program: str
    name: str
    sizes: Sizes
    setting: Setting
    seconds: float
    untuned: float
    when: str
    versions: str


@dataclass(frozen=True, slots=True)
class Book:
    """What is kept for a machine, measured on a GPU of a name."""

    device: str
    entries: tuple[Entry, ...]

    def with_entry(self, entry: Entry) -> Book:
        """The book with an entry, in the place of the one for the same program and sizes."""
        return Book(self.device, (*self.without(entry.program, entry.sizes).entries, entry))

    def without(self, program: str, sizes: Sizes) -> Book:
        """The book without what is kept for a program at some sizes."""
        return Book(self.device, tuple(old for old in self.entries if (old.program, old.sizes) != (program, sizes)))

    def find(self, program: str, sizes: Sizes) -> Setting | None:
        """What is kept for a program at some sizes."""
        return next((entry.setting for entry in self.entries if (entry.program, entry.sizes) == (program, sizes)), None)


def digest(program: ArrayProgram) -> str:
    """What tells programs apart: all operators, names and types."""
    arguments = [array_program.argument_type(result.argument) for result in program.outputs]
    return sha256("\n".join((array_program.text(program), *arguments)).encode()).hexdigest()[:32]


def size_class(program: ArrayProgram, sizes: Mapping[str, int]) -> Sizes:
    """The sizes that share what is kept: those that the program does not fix, up to a power of two."""
    fixed = array_program.sizes(program, {})
    return tuple(
        (dim.name, sizes[dim.name] if dim.name in fixed else 1 << max(0, sizes[dim.name] - 1).bit_length())
        for dim in program.dims
    )


def own_file(machine: Machine) -> Path:
    """The user's file for a machine."""
    return loading.user_folder().parent / "tuned" / f"{machine.name}.json"


def books(machine: Machine) -> Iterator[Book]:
    """The user's book for a machine and the one that comes with blockc, as far as they are there."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", machine.name):
        shipped = resources.files("blockc.machines").joinpath(f"{machine.name}.tuned.json")
        yield from filter(None, map(read_file, (own_file(machine), shipped)))


def read_file(path: Traversable) -> Book | None:
    """The book of a file; None if there is no such file. BlockcError if it holds anything else."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return read_book(text, str(path))


def tuned(
    program: ArrayProgram, machine: Machine, sizes: Mapping[str, int], device: str | None = None
) -> TritonKernels | None:
    """The kernels as tuning chose them for these sizes, on a GPU of this name if one is given; None if it did not."""
    for book in books(machine):
        setting = book.find(digest(program), size_class(program, sizes)) if device in (None, book.device) else None
        if setting is not None:
            made = built(triton_kernels(program, machine, sizes, {}), program, machine, sizes, setting)
            if made is not None:
                return made
    return None


def best_known(
    program: ArrayProgram,
    machine: Machine,
    sizes: Mapping[str, int],
    tiles: driver.Tiles,
    split: driver.Split = driver.UNSPLIT,
) -> TritonKernels:
    """The kernels as tuning chose them for these sizes; else, and for blocks and chunks that are asked for, as
    `triton_kernels` does."""
    found = tuned(program, machine, sizes) if not tiles and not split else None
    return found or triton_kernels(program, machine, sizes, tiles, split)


def launches_json(launches: Mapping[str, Options]) -> dict[str, Any]:
    """How functions are launched, as objects."""
    return {name: {"warps": way.warps, "stages": way.stages, "loads": way.loads} for name, way in launches.items()}


def book_text(book: Book) -> str:
    """A book as the text of its file."""
    entries = [
        {
            "program": entry.program,
            "name": entry.name,
            "sizes": dict(entry.sizes),
            "tiles": dict(entry.setting.tiles),
            "launches": launches_json(entry.setting.launches),
            "seconds": entry.seconds,
            "untuned_seconds": entry.untuned,
            "date": entry.when,
            "versions": entry.versions,
        }
        for entry in book.entries
    ]
    return json.dumps({"format": FORMAT, "device": book.device, "entries": entries}, indent=1) + "\n"


def read_book(text: bytes, path: str) -> Book:
    """The book of a file. BlockcError if it holds anything else."""
    try:
        if len(text) > LARGEST_FILE:
            raise ValueError("it is too large")
        content = json.loads(text.decode("utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        return Book(_text(content["device"]), tuple(_entry(entry) for entry in content["entries"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        message = f"{visible(path)} holds no results of `blockc tune`: {visible(why)[:200]}"
        raise BlockcError((Problem("E0298", message, None, "remove it, or run `blockc tune` again"),)) from error


def _entry(value: Any) -> Entry:
    tiles = {_text(dim): _count(tile) for dim, tile in value["tiles"].items()}
    launches = {_text(name): _way(way) for name, way in value["launches"].items()}
    for dim, tile in tiles.items():
        if tile & (tile - 1):
            raise ValueError(f"the block {tile} of {dim} is no power of two")
    sizes = tuple((_text(dim), _count(size)) for dim, size in value["sizes"].items())
    facts = (_text(value["program"]), _text(value["name"]), sizes, Setting(tiles, launches))
    times = (_seconds(value["seconds"]), _seconds(value["untuned_seconds"]))
    return Entry(*facts, *times, _text(value["date"]), _text(value["versions"]))


def _way(value: Any) -> Options:
    if value["warps"] not in WARPS or value["stages"] not in STAGES:
        raise ValueError(f"no kernel is launched with {value['warps']} warps and {value['stages']} stages")
    if value["loads"] not in LOADS:
        raise ValueError(f"no kernel loads tiles by {value['loads']!r}")
    return Options(_count(value["warps"]), _count(value["stages"]), value["loads"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no number of elements")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no time")
    return float(value)
