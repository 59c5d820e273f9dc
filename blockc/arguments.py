"""What commands make of their arguments: the program of a file, and the arrays of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blockc.errors import UsageError
from blockc.files import read_array, read_source
from blockc.options import Options

if TYPE_CHECKING:
    from blockc.ir.array_program import ArrayProgram


def load(file: str, options: Options, kernels: bool = True, device: str | None = None) -> ArrayProgram:
    """The checked program of a file, once all options that do not need more have been checked as well: among them,
    whether `kernels` can be run for the target, on a device if it is a GPU."""
    from blockc import driver
    from blockc.language import parse
    from blockc.machines.loading import load_machine

    if kernels:
        driver.check_target(options.target, device)
    else:
        load_machine(options.target)
    text, name = read_source(file)
    program = parse(text, name, options.program, options.dtype)
    driver.check_dims(program, options.dims, options.tiles, options.split)
    return program


def read_inputs(program: ArrayProgram, files: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of the --input options."""
    arguments = {argument.name: argument for argument in program.inputs}
    known(program, files, tuple(arguments), "input")
    return {name: read_array(path, arguments[name]) for name, path in files.items()}


def known(program: ArrayProgram, given: Mapping[str, str], names: Sequence[str], kind: str) -> None:
    """UsageError for a name that is none of `names`, which are the program's inputs or outputs."""
    for name in given:
        if name not in names:
            hint = f"its {kind}s: {', '.join(names) or 'none'}"
            raise UsageError(f"program `{program.name}` has no {kind} `{name}`", hint)
