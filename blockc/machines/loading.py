"""Where machines come from: files that come with blockc, the user's folder, and paths."""

from __future__ import annotations

import contextlib
import re
from functools import cache
from importlib import resources
from pathlib import Path

from blockc import files
from blockc.errors import UsageError, visible
from blockc.ir.machine import Machine
from blockc.machines.computer import detected
from blockc.machines.reading import LARGEST_FILE, read_machine
from blockc.names import suggest

CPU = "cpu"
SHIPPED = "shipped"


def user_folder() -> Path:
    """The folder of the user's own machine files. `blockc targets calibrate` writes there."""
    import platformdirs

    return platformdirs.user_config_path("blockc", appauthor=False) / "machines"


def machine_names() -> dict[str, str]:
    """The names of all machines that have one, and where each comes from: "shipped", or a path."""
    shipped = (entry.name for entry in resources.files(__package__).iterdir())
    names = {name.removesuffix(".toml"): SHIPPED for name in sorted(shipped) if name.endswith(".toml")}
    own: list[Path] = []
    with contextlib.suppress(OSError):  # there is no such folder, or it cannot be read
        own = sorted(path for path in user_folder().iterdir() if path.suffix == ".toml")
    return names | {path.stem: str(path) for path in own}


def machine_of(device: str) -> str | None:
    """The name of the machine that describes a GPU which calls itself so: one of the words, such as H100 of "NVIDIA
    H100 80GB HBM3", or None."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    named = (name for name in machine_names() if name.lower() in words)
    return next((name for name in named if load_machine(name).capability), None)


def load_machine(name_or_path: str) -> Machine:
    """The machine with a name, or of a file: a path ends in .toml or has a separator.

    A file in the user's folder comes before the shipped one. The shipped `cpu` has this computer's cores and sizes.
    UsageError for a name that there is not and a file that cannot be read; BlockcError for a file with problems.
    """
    if name_or_path.endswith(".toml") or set(name_or_path) & {"/", "\\"}:
        return load_file(name_or_path)
    names = machine_names()
    if name_or_path not in names:
        hint = suggest(name_or_path[:80], names) or f"known: {', '.join(names)}, or a path to a machine file"
        raise UsageError(f"unknown target `{visible(name_or_path)}`", hint)
    return load_shipped(name_or_path) if names[name_or_path] == SHIPPED else load_file(names[name_or_path])


def load_shipped(name: str) -> Machine:
    """A machine that comes with blockc; `cpu` with what the system says of this computer."""
    machine = _as_shipped(name)
    return detected(machine) if name == CPU else machine


@cache
def _as_shipped(name: str) -> Machine:
    return read_machine(_shipped_text(name), f"{name}.toml")


def load_file(path: str) -> Machine:
    """The machine that a file describes; `-` is standard input."""
    too_large = f"the file is larger than {LARGEST_FILE // 1024} KiB"
    return read_machine(*files.read_text(path, LARGEST_FILE, too_large, "a machine file is short"))


def template() -> str:
    """A machine file with comments, to start from."""
    return _shipped_text("toy")


def _shipped_text(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
