"""How many bytes go from one kernel to another, through lists in slow memory, by the cost model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from blockc.ir.block import Definition, Graph, Map, Program, Rename, kernels
from blockc.partition import Part
from blockc.passing import Passing, passing


@dataclass(slots=True)
class KernelBytes:
    """The kernels of all parts of a program, as they are executed, and what each of their lists moves."""

    parts: Sequence[Part]
    groups: list[tuple[int, Graph]] = field(init=False)  # of each kernel: its part, and the definitions
    moved: list[Passing] = field(init=False)

    def __post_init__(self) -> None:
        programs = [part.plan.chosen.choice.program for part in self.parts]
        self.groups = [(at, group) for at, program in enumerate(programs) for group in kernels(program)]
        self.moved = [
            passing(program, part.plan.sizes, part.plan.chosen.choice.tiles)
            for part, program in zip(self.parts, programs, strict=True)
        ]

    def links(self, first: int, second: int) -> tuple[str, ...]:
        """What the first kernel stores and the second one loads: names of the part of the first."""
        (part, group), (other, reader) = self.groups[first], self.groups[second]
        made = [name for definition in group for name in definition.defines]
        used = set(self._used(other, reader))
        if part == other:
            return tuple(name for name in made if name in used)
        given = {entry.argument for entry in self.program(other).inputs if entry.name in used}
        return tuple(
            result.value
            for result in self.program(part).outputs
            if result.value in made and result.argument.name in given
        )

    def between(self, first: int, second: int, links: Collection[str]) -> int:
        """The bytes that loading these lists in the second kernel takes, and storing them if no one else needs them."""
        part, _ = self.groups[first]
        loads = sum(self.loads(first, name, second) for name in links)
        needed = self._needed(first, second)
        return loads + sum(self.moved[part].stored.get(name, 0) for name in links if name not in needed)

    def loads(self, first: int, name: str, second: int) -> int:
        """The bytes of a list of the first kernel that the second one loads."""
        part, (other, group) = self.groups[first][0], self.groups[second]
        names = {name} if part == other else self._inputs(part, name, other)
        return sum(self._loads(other, definition, names) for definition in group)

    def program(self, part: int) -> Program:
        """The program of a part, as it is executed."""
        return self.parts[part].plan.chosen.choice.program

    def _inputs(self, part: int, name: str, other: int) -> set[str]:
        """What a value of one part is called as an input of another."""
        arguments = {result.argument.name for result in self.program(part).outputs if result.value == name}
        return {entry.name for entry in self.program(other).inputs if entry.argument in arguments}

    def _loads(self, part: int, definition: Definition, names: Collection[str]) -> int:
        moved, program = self.moved[part], self.program(part)
        source = _sources(program)
        used = {name for name in definition.uses if source.get(name, name) in names}
        items = sum(moved.once.get(name, 0) for name in used if program.types[name].is_item)
        if not isinstance(definition, Map):
            return items
        ports = [port for port in definition.ports if port.source in used]
        whole = definition.captures & used
        return items + sum(moved.loaded[port.name] for port in ports) + sum(moved.into(definition, n) for n in whole)

    def _used(self, part: int, group: Graph) -> Iterator[str]:
        source = _sources(self.program(part))
        return (source.get(name, name) for definition in group for name in definition.uses)

    def _needed(self, first: int, second: int) -> set[str]:
        """What other kernels than the second load, or the caller gets, of what the first one stores."""
        part, _ = self.groups[first]
        found = {name for at in range(len(self.groups)) if at not in (first, second) for name in self.links(first, at)}
        passed = {
            entry.argument for at, one in enumerate(self.parts) if at != part for entry in self.program(at).inputs
        }
        results = self.program(part).outputs
        return found | {result.value for result in results if result.argument.name not in passed}


def _sources(program: Program) -> dict[str, str]:
    """For each name that is another one for a stored value, that value."""
    found: dict[str, str] = {}
    for definition in program.body:
        if isinstance(definition, Rename):
            found[definition.name] = found.get(definition.source, definition.source)
    return found
