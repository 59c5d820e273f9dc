"""The function of a Triton file that takes tensors: sizes from shapes, memory, launches in order, outputs."""

from __future__ import annotations

import builtins
import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence

from blockc.codegen.numpy_launch import packed_shape, size_lines, sizes_of
from blockc.codegen.triton_descriptors import HELPER, Descriptors
from blockc.codegen.triton_storage import Function, Storage
from blockc.codegen.triton_values import Array, Number
from blockc.ir.array_program import Argument
from blockc.ir.block import Program
from blockc.ir.dtypes import NUMPY_NAMES


def launcher_lines(
    program: Program,
    storage: Storage,
    functions: list[Function],
    lengths: Mapping[str, int],
    numbers: Mapping[str, Number],
    descriptors: Descriptors,
) -> Iterator[str]:
    """The lines of the function and of what it needs. Tensors that it makes are there as long as they are needed."""
    names = parameter_names(program)
    if descriptors.made:
        yield from (*HELPER.strip().split("\n"), "", "")
    sizes = ", ".join(f"d{number}" for number in range(len(program.dims)))
    if numbers:
        yield from ("def _number(value):", '    return torch.tensor(value, dtype=torch.float64, device="cpu")', "", "")
        yield from ("@lru_cache(maxsize=256)", f"def _numbers({sizes}):")
        yield from ("    return (", *(f"        {number.text}," for number in numbers.values()), "    )")
        yield from ("", "")
    yield f"def {launcher_name(program)}({', '.join(names)}):"
    declared = "; ".join(f"{argument.name}: {_shape_text(argument)}" for argument in program.arguments)
    yield f'    """{_plain(declared)} -> {_plain(", ".join(r.argument.name for r in program.outputs))}.'
    yield ""
    yield "    Torch tensors in any strides; several results come as a dictionary. ValueError if one does not fit."
    yield '    """'
    checks = dict(_reach_lines(program, storage, lengths))
    lines = _argument_lines(program, lengths)
    lines += [line for text, check in checks.items() for line in check if text not in storage.made]
    if numbers:
        lines.append(f"{', '.join(number.name for number in numbers.values())}, = _numbers({sizes})")
    lines += descriptors.launcher_lines()
    lines += _launch_lines(program, storage, functions, lengths, checks)
    lines += _return_lines(program, storage)
    yield from (f"    {line}" for line in lines)


def _argument_lines(program: Program, lengths: Mapping[str, int]) -> list[str]:
    """What checks the tensors, and binds sizes and strides."""
    lines: list[str] = []
    names = parameter_names(program)
    for at, argument in enumerate(program.arguments):
        element = NUMPY_NAMES[argument.dtype]
        rank = len(argument.axes)
        lines.append(f"a{at} = {names[at]}")
        lines.append(f"if not torch.is_tensor(a{at}) or a{at}.dim() != {rank} or a{at}.dtype != torch.{element}:")
        wanted = json.dumps(f"{argument.name} must be a tensor with {rank} axes and the type {element}")
        lines.append(f"    raise ValueError({wanted})")
        lines.append(f"_n{at} = a{at}.shape")
    extents = size_lines(program)
    lines += (re.sub(r"\ba(\d+)\.shape", r"_n\1", line) for line in extents)
    for at, argument in enumerate(program.arguments):
        own = {f"d{program.rank[axis[0]]} = a{at}.shape[{place}]" for place, axis in enumerate(argument.axes) if axis}
        if len(own) < len(argument.axes) or not own.issubset(extents):  # else all sizes come from this shape
            lines.append(f"if _n{at} != {packed_shape(program, argument)}:")
            lines.append(
                f"    raise ValueError({json.dumps(f'{argument.name} has another shape than the others say')})"
            )
        if any(len(axis) > 1 for axis in argument.axes):
            lines += _unpacked(program, at, argument)
        lines += _stride_lines(f"a{at}", len(argument.dims))
    for number, dim in enumerate(program.dims):
        if dim.name in program.whole:
            lines.append(f"if d{number} > {lengths[dim.name]}:")
            lines.append(f"    raise ValueError({json.dumps(f'{dim.name} is larger than {lengths[dim.name]}')})")
    return lines


def _launch_lines(
    program: Program,
    storage: Storage,
    functions: list[Function],
    lengths: Mapping[str, int],
    checks: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """What launches the kernels in order: memory is made ahead of the first that uses it and given back behind the
    last. `checks` are the lines that follow where a tensor is made."""
    used = [_used(function, storage) for function in functions]
    first = {text: at for at, texts in reversed(list(enumerate(used))) for text in texts}
    last = {text: at for at, texts in enumerate(used) for text in texts}
    kept = {storage.arrays[result.value].text for result in program.outputs}
    several = len({function.part for function in functions}) > 1
    for at, function in enumerate(functions):
        if several and (at == 0 or function.part != functions[at - 1].part):
            yield f"# Part {function.part}"
        for text in used[at]:
            if first[text] == at:
                array = storage.made[text][0]
                yield from (_memory_line(program, array, lengths), *_stride_lines(text, len(array.dims)))
                yield from checks.get(text, ())
        grid = re.sub(r"T(\d+)", lambda found: str(lengths[program.dims[int(found[1])].name]), function.grid)
        arguments = [_argument(program, storage, name, lengths) for name in function.parameters]
        yield from (f"grid = {grid}", "if grid > 0:", f"    {function.name}[(grid,)](")
        yield from (f"        {argument}," for argument in arguments)
        yield f"        num_warps={function.options.warps}, num_stages={function.options.stages},"
        yield "    )"
        yield from (f"del {text}" for text in used[at] if last[text] == at and text not in kept)


def _return_lines(program: Program, storage: Storage) -> Iterator[str]:
    """What returns one output, or several as a dictionary."""
    results = {
        result.argument.name: _result(program, storage, result.value, result.argument) for result in program.outputs
    }
    if len(results) == 1:
        yield f"return {next(iter(results.values()))}"
    else:
        yield from ("return {", *(f"    {json.dumps(name)}: {text}," for name, text in results.items()), "}")


def _stride_lines(text: str, rank: int) -> Iterator[str]:
    """What binds the strides of a tensor, all at once."""
    if rank:
        yield f"{', '.join(f'{text}_s{at}' for at in range(rank))}, = {text}.stride()"


def _memory_line(program: Program, array: Array, lengths: Mapping[str, int]) -> str:
    """What makes a tensor."""
    device = "a0.device" if program.arguments else '"cuda"'
    extents = [
        f"-(-{_size(program, dim)} // {lengths[dim]})" if dim in array.counted else f"d{program.rank[dim]}"
        for dim in array.dims
    ]
    shape = f"({''.join(extent + ', ' for extent in extents).rstrip()})"
    return f"{array.text} = torch.empty({shape}, dtype=torch.{array.element}, device={device})"


def _used(function: Function, storage: Storage) -> list[str]:
    """The tensors that are made and that a function takes."""
    return list(dict.fromkeys(text for name in function.parameters if (text := name.split("_s")[0]) in storage.made))


def _reach_lines(
    program: Program, storage: Storage, lengths: Mapping[str, int]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """For each tensor, which may be read under several names of its dimensions, the check that elements of a block can
    be counted in 32 bits."""
    titles = {storage.arrays[entry.name].text: entry.argument for entry in program.inputs}
    titles |= {text: made.name if made is not None else "a list" for text, (_, made) in storage.made.items()}
    for text, title in titles.items():
        reaches = dict.fromkeys(
            f"{text}_s{at} * {lengths[dim] - 1} >= 2**31"
            for array in storage.every()
            if array.text == text
            for at, dim in enumerate(array.dims)
            if dim not in array.counted and lengths[dim] > 1
        )
        if reaches:
            message = json.dumps(f"blocks of {title} reach over 2**31 elements or more")
            yield text, (f"if {' or '.join(reaches)}:", f"    raise ValueError({message})")


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() and char not in '"\\' else "?" for char in text)


def _shape_text(argument: Argument) -> str:
    axes = ("(" + ", ".join(axis) + ")" if len(axis) > 1 else "".join(axis) for axis in argument.axes)
    return f"{argument.dtype}[{', '.join(axes)}]"


def _size(program: Program, dim: str) -> str:
    return f"d{program.rank[program.chunks.get(dim, dim)]}"


def _unpacked(program: Program, at: int, argument: Argument) -> Iterator[str]:
    """Axes that pack several dimensions become one axis each, without a copy."""
    position = 0
    for axis in argument.axes:
        if len(axis) > 1:
            sizes = ", ".join(sizes_of(program, axis))
            yield f"a{at} = a{at}.unflatten({position}, ({sizes}))"
        position += len(axis)


def _argument(program: Program, storage: Storage, name: str, lengths: Mapping[str, int]) -> str:
    if name.startswith(("T", "SHORT")):
        number = int(name.removeprefix("T").removeprefix("SHORT"))
        dim = program.dims[number].name
        if name[0] == "T":
            return f"{name}={lengths[dim]}"
        if dim in program.whole:
            return f"{name}=d{number} != {lengths[dim]}"
        return f"{name}=d{number} % {lengths[dim]} != 0"
    if name[0] == "g":
        return f"{name}={name}"
    if name.startswith("DESC"):
        return f"{name}=t{name.removeprefix('DESC')} is not None"
    return name


def _result(program: Program, storage: Storage, value: str, argument: Argument) -> str:
    array = storage.arrays[value]
    text = array.text
    made = storage.made.get(text)
    if made is None or made[1] is None or made[1].name != argument.name:
        order = [array.dims.index(dim) for dim in argument.dims]
        if order != sorted(order):
            text = f"{text}.permute({order})"
        text = f"{text}.to(torch.{NUMPY_NAMES[argument.dtype]}, copy=True, memory_format=torch.contiguous_format)"
    packed = any(len(axis) > 1 for axis in argument.axes)
    return f"{text}.reshape({packed_shape(program, argument)})" if packed else text


def launcher_name(program: Program) -> str:
    """The name of the function that takes tensors: that of the program, if Python has no other use for it."""
    return identifier(
        program.name, {"torch", "triton", "tl", "lru_cache", "TensorDescriptor", *parameter_names(program)}
    )


def parameter_names(program: Program) -> list[str]:
    """Names of the launcher's parameters: those of the arguments, where Python has no other use for them."""
    taken: set[str] = {"torch", "triton", "tl", "TensorDescriptor", "grid"}
    names = []
    for argument in program.arguments:
        names.append(identifier(argument.name, taken))
        taken.add(names[-1])
    return names


_OURS = re.compile(r"(?:[adfghtTx]\d+|[ax]\d+_s\d+|SHORT\d+|DESC\d+|kernel\d+|_.*)")


def identifier(name: str, taken: set[str]) -> str:
    """A Python name as near as possible to one of a program."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    taken = taken.union(keyword.kwlist, dir(builtins))
    while not name.isidentifier() or _OURS.fullmatch(name) or name in taken:
        name = f"{name}_" if not _OURS.fullmatch(name) else f"in_{name.lstrip('_')}"
    return name
