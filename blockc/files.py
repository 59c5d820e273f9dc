"""Files that the command line reads and writes: program texts, arrays in .npy files, results.

What is written goes to a temporary file in the same folder first and takes its name at the end, so that a file is there
whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from blockc.errors import LimitError, Problem, UsageError, visible
from blockc.ir.array_program import Argument, argument_type

STANDARD_INPUT = "-"
_LARGEST_FILE = 2**20 + 3  # bytes: what the language takes, and a byte order mark

# What NumPy raises for a file that is no .npy file, whose header it reads as a Python expression.
_BROKEN_ARRAY = (ValueError, TypeError, OverflowError, EOFError, SyntaxError, RecursionError, tokenize.TokenError)

# NumPy stores the types of ml_dtypes in .npy files as bytes without a meaning.
_STORED_AS_BYTES = {"bf16": 2, "f8e4m3": 1, "f8e5m2": 1}


def read_source(file: str) -> tuple[str, str]:
    """The text of a program and the name to show for it. `-` is standard input. UsageError if it cannot be read."""
    return read_text(file, _LARGEST_FILE, "the file is larger than 1 MiB", "split it into several files")


def read_text(file: str, largest: int, too_large: str, advice: str) -> tuple[str, str]:
    """The text of a file of at most `largest` bytes and the name to show for it. `-` is standard input. UsageError if
    it cannot be read, LimitError if it is larger."""
    name = "<stdin>" if file == STANDARD_INPUT else file
    try:
        if file == STANDARD_INPUT:
            content = sys.stdin.buffer.read(largest + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(largest + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read `{visible(name)}`: {_reason(error)}") from error
    if len(content) > largest:
        raise LimitError((Problem("E0190", f"`{visible(name)}`: {too_large}", None, advice),))
    try:
        return content.decode("utf-8"), name
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = len(content[content.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
        message = f"cannot read `{visible(name)}:{line}:{column}`: byte 0x{content[error.start]:02x} is not UTF-8 text"
        raise UsageError(message, "save it as UTF-8") from error


def read_array(path: str, argument: Argument) -> Any:
    """The array in a .npy file, for an argument. UsageError, naming the file, if it holds none."""
    import numpy as np

    from blockc.data import numpy_dtype

    shown = f"input `{argument.name}`: cannot read `{visible(path)}`"
    try:
        with open(path, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers of old versions
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{shown}: {_reason(error)}") from error
    except MemoryError as error:
        raise UsageError(f"{shown}: it says that it holds more than fits in memory") from error
    except _BROKEN_ARRAY as error:
        hint = "write it with numpy.save, as an array of numbers"
        raise UsageError(f"{shown}: it is no .npy file of numbers ({visible(str(error)[:80])})", hint) from error
    opaque = array.dtype.kind == "V" and array.dtype.fields is None
    if opaque and _STORED_AS_BYTES.get(argument.dtype) == array.dtype.itemsize:
        return array.view(numpy_dtype(argument.dtype))
    if array.dtype.kind not in "biufc":
        raise UsageError(f"{shown}: it holds {array.dtype}, not {argument_type(argument)}")
    return array


def check_outputs(paths: Mapping[str, str]) -> None:
    """UsageError for a path of an output array that cannot become a .npy file."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        target = Path(path)
        shown = f"output `{name}`: cannot write `{visible(path)}`"
        if target.suffix != ".npy":
            raise UsageError(f"{shown}: the name must end in .npy")
        if not target.parent.is_dir():
            raise UsageError(f"{shown}: there is no folder `{visible(str(target.parent))}`")
        if target.is_dir():
            raise UsageError(f"{shown}: it is a folder")
        other = seen.setdefault(target.resolve(), name)
        if other != name:
            raise UsageError(f"outputs `{other}` and `{name}` cannot both be written to `{visible(path)}`")


def write_arrays(arrays: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    """Write arrays by name as .npy files. All of them are complete before the first takes its name."""
    import numpy as np

    def writer(array: Any) -> Callable[[IO[bytes]], None]:
        return lambda stream: np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)

    _write_all({Path(path): writer(arrays[name]) for name, path in paths.items()})


def check_file(path: str, suffix: str) -> None:
    """UsageError for a path that cannot become a file with this suffix."""
    target, shown = Path(path), f"cannot write `{visible(path)}`"
    if target.suffix != suffix:
        raise UsageError(f"{shown}: the name must end in {suffix}")
    if not target.parent.is_dir():
        raise UsageError(f"{shown}: there is no folder `{visible(str(target.parent))}`")
    if target.is_dir():
        raise UsageError(f"{shown}: it is a folder")


def write_file(path: str, text: str) -> None:
    """Write a text, whole or not at all."""
    _write_all({Path(path): _byte_writer(text.encode("utf-8"))})


def write_texts(folder: str, texts: Mapping[str, str]) -> tuple[str, ...]:
    """Write texts by file name into a folder, which is made if it is not there. Returns the paths."""
    if not folder or "\0" in folder:
        raise UsageError(f"the folder to write to has {'no name' if not folder else 'a name that cannot be'}")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"cannot write into `{visible(folder)}`: it is not a folder")
    missing = [place for place in (target, *target.parents) if not place.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        encoded = {target / name: text.encode("utf-8") for name, text in texts.items()}
        _write_all({path: _byte_writer(content) for path, content in encoded.items()})
    except (OSError, ValueError, UsageError) as error:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot write into `{visible(folder)}`: {_reason(error)}") from error
    return tuple(str(path) for path in encoded)


def _byte_writer(content: bytes) -> Callable[[IO[bytes]], object]:
    return lambda stream: stream.write(content)


def _write_all(writers: Mapping[Path, Callable[[IO[bytes]], object]]) -> None:
    """Write every file under a temporary name, and rename when all of them are there."""
    with contextlib.ExitStack() as stack:
        ready = [(stack.enter_context(_temporary(path, write)), path) for path, write in writers.items()]
        for temporary, path in ready:
            try:
                os.replace(temporary, path)
            except OSError as error:
                raise UsageError(f"cannot write `{visible(str(path))}`: {_reason(error)}") from error


@contextlib.contextmanager
def _temporary(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[str]:
    """The name of a complete temporary file beside `path`; what is left of it is removed at the end."""
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".blockc-", delete=False) as stream:
            temporary = stream.name
            write(stream)
        os.chmod(temporary, 0o666 & ~_umask())
        yield temporary
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write `{visible(str(path))}`: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _umask() -> int:
    """The permissions that new files do not get. (There is no way to ask without setting.)"""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return visible(text)
