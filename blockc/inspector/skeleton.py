"""The loops of a program in a few lines, so that one sees how two programs differ.

    map b, h, m {
      loop n {
        contract[d], exp, max[n]
      }
      keeps P.24 in dram
    }

A `loop` accumulates, the blocks of a `map` may be computed at the same time. Maps with nothing else around them share
a line. What is kept is a list that is neither an input nor an output.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from blockc.ir.block import Apply, Definition, Graph, Map, Program, Reduce, roots
from blockc.ir.text import format_part
from blockc.passes.cost import buffered_lists

COLUMNS = 34  # of the operators in a line


def skeleton(program: Program, placement: Mapping[str, str], home: str) -> list[str]:
    """The loops of a program, with its operators and the lists that it keeps, in the tiers where they lie."""
    return list(_graph(program, program.body, frozenset(buffered_lists(program)), placement, home, ""))


def _graph(
    program: Program, graph: Graph, kept: frozenset[str], placement: Mapping[str, str], home: str, indent: str
) -> Iterator[str]:
    operators: list[str] = []
    for definition in graph:
        if not isinstance(definition, Map):
            operators += _operator(definition)
            continue
        yield from _listed(operators, indent)
        operators = []
        chain = [definition]
        while len(chain[-1].body) == 1 and isinstance(inner := chain[-1].body[0], Map) and not chain[-1].is_loop:
            if inner.is_loop or inner.part != "all":
                break
            chain.append(inner)
        kind = "loop" if definition.is_loop else "map"
        dims = ", ".join(f"{node.dim}{format_part(node.part)}" for node in chain)
        yield f"{indent}{kind} {dims} {{"
        inside = list(_graph(program, chain[-1].body, kept, placement, home, f"{indent}  "))
        sums = sum(len(output.names) for output in chain[-1].outputs if output.monoid is not None)
        yield from inside or [f"{indent}  combines {sums} {'value' if sums == 1 else 'values'}"]
        for name in _lists(program, definition, kept):
            yield f"{indent}  keeps {name} in {placement.get(name, home)}"
        yield f"{indent}}}"
    yield from _listed(operators, indent)


def _operator(definition: Definition) -> Iterator[str]:
    match definition:
        case Apply(_, op, _, dims):
            yield f"{op}[{', '.join(dims)}]" if dims else op
        case Reduce(_, _, dim, monoid):
            yield f"{monoid}[{dim}]"
        case _:  # a new name moves nothing and computes nothing
            return


def _listed(operators: list[str], indent: str) -> Iterator[str]:
    """The operators on lines, one that occurs several times once."""
    found = {name: operators.count(name) for name in operators}
    texts = [name if count == 1 else f"{count} {name}" for name, count in found.items()]
    for line in textwrap.wrap(", ".join(texts), COLUMNS, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}{line}"


def _lists(program: Program, node: Map, kept: frozenset[str]) -> Iterator[str]:
    """The kept lists that a map of the top graph, or a map in it, is the outermost to define."""
    names = roots(program)
    for output in node.outputs:
        for name in output.names:
            if name in kept and names.get(name, name) == name and program.types[name].lists:
                yield name
