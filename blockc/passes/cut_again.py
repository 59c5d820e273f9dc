"""A second cut: the rows of a kernel in large blocks of small ones, for machines with more than two tiers.

A parallel map becomes a map over chunks around a map over the blocks of each, so that a task is a chunk. That moves no
more and no less; but what a chunk needs can now be put into a middle tier once, and be read from there by all its
blocks. With `loop`, loops over that dimension are cut into chunks too, and the map over blocks is put inside of the
loop over these: what one of their iterations reads is then used by all blocks before the next one, and what is
accumulated becomes a list (`interchange_maps`).

    map m uses W {
      X.1: slow f32[n](m, n) <- X
      map n {
        X.2: local f32(m, n) <- X.1
        W.1: local f32(d, n) <- W
        P.2: local f32(m, d) = contract[n](X.2, W.1)
        => P.1: local f32(m, d) = add(P.2)
      }
      => P: slow f32[m](m, d) = stack(P.1)
    }
  =>
    map m_chunk uses W {
      X.4: slow f32[m][n](m, n) <- X
      map n_chunk {
        W.2: slow f32[n](d, n) <- W
        X.5: slow f32[m][n](m, n) <- X.4
        map m uses W.2 {
          X.3: slow f32[n](m, n) <- X.5
          map n {
            X.2: local f32(m, n) <- X.3
            W.1: local f32(d, n) <- W.2
            P.2: local f32(m, d) = contract[n](X.2, W.1)
            => P.4: local f32(m, d) = add(P.2)
          }
          => P.6: slow f32[m](m, d) = stack(P.4)
        }
        => P.7: slow f32[m](m, d) = add(P.6)
      }
      map m {
        P.8: local f32(m, d) <- P.7
        => P.5: slow f32[m](m, d) = stack(P.8)
      }
      => P: slow f32[m](m, d) = stack(P.5)
    }
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blockc.ir.block import Definition, Fresh, Graph, Map, Output, Port, Program, Type, walk
from blockc.ir.verify import VerifyError, verify
from blockc.passes.choose import safe
from blockc.passes.normalise import normalise
from blockc.passes.rules.interchange_maps import Stuck, loops_outside
from blockc.passes.rules.split_reduction import with_chunks


def cut_again(program: Program, loop: str | None) -> Program | None:
    """The program with a second cut of every kernel whose blocks read the same; None if there is no such kernel, or a
    loop over `loop` is not there or cannot be outside, or the result cannot be made safe."""
    kernels = {node.defines: dims for node in program.body if isinstance(node, Map) and (dims := shared(program, node))}
    if not kernels or program.chunks:
        return None
    chunked = program
    for dim in dict.fromkeys((*(dim for dims in kernels.values() for dim in dims), *((loop,) if loop else ()))):
        chunked, _ = with_chunks(chunked, dim)
    body: list[Definition] = []
    fresh, found = Fresh(program), False
    names = {base: chunk for chunk, base in chunked.chunks.items()}
    for node in program.body:
        dims = kernels.get(node.defines, ())
        if isinstance(node, Map) and dims:
            changed = _Kernel(program.types, names, fresh, dims, loop).changed(node)
            found = found or changed is not None
            body.append(changed or node)
        else:
            body.append(node)
    if not found:
        return None
    used = {node.dim for node in walk(tuple(body)) if isinstance(node, Map)}
    kept = tuple(dim for dim in chunked.dims if dim.chunks_of is None or dim.name in used)
    result = normalise(replace(chunked, dims=kept, body=tuple(body)))
    verify(result)
    return result if _can_be_safe(result) else None


def _can_be_safe(program: Program) -> bool:
    """False where exponents become lists of which something outside the map over them would read the elements."""
    try:
        safe(program)
    except VerifyError:
        return False
    return True


def kernels_in_chunks(program: Program) -> tuple[str, ...]:
    """The first names of the kernels that have a second cut."""
    found = [node for node in program.body if isinstance(node, Map)]
    return tuple(
        node.defines[0]
        for node in found
        if any(isinstance(inner, Map) and inner.dim in program.chunks for inner in walk((node,)))
    )


def loops(program: Program) -> tuple[str, ...]:
    """The dimensions of the loops of kernels, outermost ones only."""
    found = [nest(node)[-1].body for node in program.body if isinstance(node, Map) and not node.is_loop]
    return tuple(dict.fromkeys(node.dim for body in found for node in body if isinstance(node, Map) and node.is_loop))


def nest(node: Map) -> tuple[Map, ...]:
    """A parallel map and the parallel maps that are all of its body."""
    chain = [node]
    while len(chain[-1].body) == 1:
        (inner,) = chain[-1].body
        values = [output.values[0] for output in chain[-1].outputs]
        if not isinstance(inner, Map) or inner.is_loop or sorted(values) != sorted(inner.defines):
            break
        chain.append(inner)
    return tuple(chain)


def shared(program: Program, node: Map) -> tuple[str, ...]:
    """The dimensions of the parallel maps of a kernel whose blocks read the same tiles of something."""
    if node.is_loop:
        return ()
    ports = [port.name for inner in walk((node,)) if isinstance(inner, Map) for port in inner.ports]
    read = [program.types[name].axes for name in ports if program.types[name].is_item]
    return tuple(link.dim for link in nest(node) if any(link.dim not in axes for axes in read))


@dataclass
class _Kernel:
    """One kernel that gets a second cut along `dims`; `chunks` are the names of chunks by what they are chunks of."""

    types: Mapping[str, Type]
    chunks: dict[str, str]
    fresh: Fresh
    dims: tuple[str, ...]
    loop: str | None
    parts: dict[tuple[str, str], str] = field(default_factory=dict)  # of lists, by the dimension that they are taken at

    def changed(self, node: Map) -> Map | None:
        """The kernel with chunks; None if the loop cannot be outside of the blocks."""
        chain = nest(node)
        body = chain[-1].body
        if self.loop is not None:
            if not all(map(self.may_be_outside, body)):
                return None
            body = tuple(self.in_chunks(inner) if self.cuts(inner) else inner for inner in body)
        tasks = [self.chunks[link.dim] if link.dim in self.dims else link.dim for link in chain]
        order = [*tasks, *(link.dim for link in chain if link.dim in self.dims)]
        ports, names = self.ports(chain, order), self.outputs(chain, len(order))
        for at in reversed(range(len(order))):
            stacks = tuple(
                Output((name,), (value,), None) for name, value in zip(names[at], names[at + 1], strict=True)
            )
            body = (Map(order[at], tuple(ports[at]), body, stacks, node.span),)
            if at == len(tasks) and self.loop is not None:
                outside = self.outside(body[0])
                if outside is None:
                    return None
                body = outside
        (result,) = body
        assert isinstance(result, Map)
        return result

    def outside(self, blocks: Definition) -> Graph | None:
        """The maps over blocks inside of the loop; None if that cannot be."""
        assert isinstance(blocks, Map) and self.loop is not None
        inside = {node.dim for node in walk(blocks.body) if isinstance(node, Map)}
        dim = self.chunks[self.loop] if self.chunks[self.loop] in inside else self.loop
        result = loops_outside(blocks, dim, self.fresh)
        if isinstance(result, Stuck) or not any(isinstance(node, Map) and node.dim == dim for node in result):
            return None
        return result

    def may_be_outside(self, node: Definition) -> bool:
        """False for a map over the loop's dimension that stacks something, which would be a list of chunks of it."""
        if not isinstance(node, Map) or node.dim != self.loop:
            return True
        return all(output.monoid is not None for output in node.outputs)

    def cuts(self, node: Definition) -> bool:
        """True for a loop that is cut into chunks: not where it accumulates lists, which chunks could not pass on."""
        return (
            isinstance(node, Map)
            and node.dim == self.loop
            and node.is_loop
            and all(self.types[name].is_item for out in node.outputs if out.monoid is not None for name in out.names)
        )

    def in_chunks(self, node: Definition) -> Map:
        """A loop over chunks around a loop over the blocks of each."""
        assert isinstance(node, Map)
        parts = {source: self.fresh(source) for source in dict.fromkeys(port.source for port in node.ports)}
        ports = tuple(Port(port.name, parts[port.source]) for port in node.ports)
        inner = tuple(
            Output(tuple(self.fresh(name) for name in output.names), output.values, output.monoid)
            for output in node.outputs
        )
        outer = tuple(Output(out.names, made.names, out.monoid) for out, made in zip(node.outputs, inner, strict=True))
        loop = Map(node.dim, ports, node.body, inner, node.span)
        taken = tuple(Port(name, source) for source, name in parts.items())
        return Map(self.chunks[node.dim], taken, (loop,), outer, node.span)

    def ports(self, chain: tuple[Map, ...], order: list[str]) -> list[list[Port]]:
        """The ports of the maps in their new order: each name that the innermost body uses is reached over the same
        dimensions as before, and over their chunks."""
        sources = {port.name: (link.dim, port.source) for link in chain for port in link.ports}
        innermost = chain[-1]
        used = set().union(*(inner.uses for inner in innermost.body), *(out.values for out in innermost.outputs))
        result: list[list[Port]] = [[] for _ in order]
        for name in (name for name in sources if name in used):
            root, along = name, set[str]()
            while root in sources:
                dim, root = sources[root]
                along |= {dim, self.chunks.get(dim, dim)}
            *steps, last = (at for at, dim in enumerate(order) if dim in along)
            part = root
            for at in steps:
                key = part, order[at]
                if key not in self.parts:
                    self.parts[key] = self.fresh(root)
                    result[at].append(Port(self.parts[key], part))
                part = self.parts[key]
            result[last].append(Port(name, part))
        return result

    def outputs(self, chain: tuple[Map, ...], depth: int) -> list[list[str]]:
        """The names of what the maps stack, at every depth, and of the values in the innermost body."""
        tops = list(chain[0].defines)
        values = tops
        for link in chain:
            taken = {output.names[0]: output.values[0] for output in link.outputs}
            values = [taken[value] for value in values]
        return [tops, *([self.fresh(top) for top in tops] for _ in range(depth - 1)), values]
