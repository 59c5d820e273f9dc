"""Which kernels a program gets on a GPU that is there, and which next if the GPU refuses them.

What tuning has found comes first. Else every way to launch a kernel is compiled for that GPU, and what `lint` chooses
is taken (`linting.py`); in Triton's interpreter, and for a GPU that is not known, what estimates prefer. Where Triton
does not compile a kernel, or the GPU has too little for it, that way is out, as if the compiler had said so before: the
next one is tried, then blocks of half the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blockc import driver
from blockc.cache import Store
from blockc.codegen import triton_runtime
from blockc.codegen.triton_runtime import RefusedError
from blockc.codegen.triton_tiles import LEAST
from blockc.errors import LimitError
from blockc.ir.array_program import ArrayProgram
from blockc.ir.machine import Machine
from blockc.linting import Compiler, Way, launched, lint, way_of
from blockc.machines.gpus import GPUS
from blockc.triton_kernels import TritonKernels, ranked, triton_kernels, with_blocks
from blockc.tuning import tuned

MOST = 16  # kernels that are tried for some sizes

Sizes = tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Attempts:
    """The kernels of a program on a device: `refused` ways with the reasons and texts that were `tried`, by sizes."""

    program: ArrayProgram
    machine: Machine
    tiles: driver.Tiles
    split: driver.Split
    device: str
    store: Store
    compiler: Compiler | None = None
    refused: dict[Sizes, dict[Way, str]] = field(default_factory=dict)
    tried: dict[Sizes, set[str]] = field(default_factory=dict)

    def first(self, sizes: Mapping[str, int]) -> TritonKernels:
        """What is tried first for some sizes. LimitError if there are no kernels."""
        asked = self.tiles or self.split
        name = triton_runtime.name_of(self.device)
        found = tuned(self.program, self.machine, sizes, name) if not asked else None
        return found or self.untuned(sizes)

    def untuned(self, sizes: Mapping[str, int]) -> TritonKernels:
        """What is tried first if nothing was tuned, without ways that were refused."""
        machine = self._described()
        if machine is None:
            return triton_kernels(self.program, self.machine, sizes, self.tiles, self.split)
        choices = ranked(self.program, self.machine, sizes, self.tiles, self.split)
        refused = self.refused.get(tuple(sizes.items()), {})
        return launched(lint(choices, machine, self.store, self.compiler, refused), machine)

    def _described(self) -> Machine | None:
        """The machine as one for the GPU that is there, which kernels are compiled for; None if that is not known."""
        there = triton_runtime.capability(self.device)
        if there is None:
            return None
        machine = replace(self.machine, capability=there) if there in GPUS else self.machine
        return machine if machine.capability in GPUS else None

    def after(self, made: TritonKernels, sizes: Mapping[str, int], error: RefusedError) -> TritonKernels | None:
        """What is tried after kernels that the GPU has refused; None if there is nothing left."""
        key = tuple(sizes.items())
        tried = self.tried.setdefault(key, set())
        tried.add(made.source.text)
        named = [each for each in made.source.functions if each.name == error.function] or made.source.functions
        refused = self.refused.setdefault(key, {})
        refused.update((way_of(made, function, function.options), error.why) for function in named)
        if len(tried) < MOST:
            found: TritonKernels | None = self.untuned(sizes)
            if found is not None and found.source.text in tried:
                found = self._smaller(made, sizes)
            if found is not None and found.source.text not in tried:
                return found
        return None

    def _smaller(self, made: TritonKernels, sizes: Mapping[str, int]) -> TritonKernels | None:
        """The kernels with half of the largest block that nobody asked for; None if there are no such ones."""
        kept = made.named(self.tiles)
        free = {dim: tile for dim, tile in made.plan.tiles.items() if tile > LEAST and dim not in kept}
        if not free:
            return None
        largest = max(free, key=free.__getitem__)
        try:
            return self.with_blocks(made, sizes, {**made.plan.tiles, **kept, largest: free[largest] // 2})
        except LimitError:  # nothing fits the machine then
            return None

    def with_blocks(self, made: TritonKernels, sizes: Mapping[str, int], tiles: driver.Tiles) -> TritonKernels:
        """The kernels with other blocks, launched as estimates prefer."""
        return with_blocks(made, self.program, self.machine, sizes, tiles, self.split)
