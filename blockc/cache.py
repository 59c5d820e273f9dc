"""The cache: entries on disk that survive a process, such as checked kernels.

    store = usual_store()
    key = key_of({"program": text, "tiles": tiles})     what else matters (versions, blockc's own source) is added
    body = store.read("kernel", key)                    None: there is none, or it was broken
    store.write("kernel", key, body)

An entry is a header (format, kind, key, length, SHA-256) and a body. It is written to a temporary file in the same
folder, which then takes the entry's name, so that it is there whole or not at all, whoever else writes. Every read
verifies it. A broken entry is removed with one warning, and whoever reads makes it again.

The folder belongs to the user alone (0700). One that someone else owns or may enter is not used. A cache that cannot be
read or written is no cache and never an error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from blockc import __version__
from blockc.errors import BlockcWarning, visible

FORMAT = 1
LARGEST_ENTRY = 2**26  # bytes
LARGEST_STORE = 2**28  # bytes of all entries; beyond that the oldest ones go
MOST_FAILED = 100  # reproductions of failed self-checks that are kept
STALE = 3600  # seconds after which a temporary file was left by a process that is gone

FAILED, TEMPORARY = "failed", "temporary"  # what is in the folder besides kinds of entries
_ENTRY = re.compile(r"([a-z]{1,20})-[0-9a-f]{64}")
_TEMPORARY = re.compile(r"tmp-[0-9a-f]{32}")
_REPRODUCTION = re.compile(r"[0-9a-f]{64}\.blk")
_HEADER = re.compile(rb"blockc-cache ([0-9]{1,9}) ([a-z]{1,20}) ([0-9a-f]{64}) ([0-9]{1,12}) ([0-9a-f]{64})\n")
_LONGEST_HEADER = 256
# What kernels come out of, besides blockc.
_DISTRIBUTIONS = ("ml_dtypes", "networkx", "numpy", "sympy", "torch", "triton")

Ingredient = str | int | float | bool | None | Sequence["Ingredient"] | Mapping[str, "Ingredient"]


def key_of(ingredients: Mapping[str, Ingredient]) -> str:
    """The key of an entry: a hash of everything that it depends on.

    `ingredients` are what the caller's entry depends on, in any order. Versions of Python, blockc and the libraries,
    and blockc's own source, are added.
    """
    everything = {"given": ingredients, "environment": environment()}
    return sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@cache
def environment() -> dict[str, Ingredient]:
    """What every entry depends on."""
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    return {"format": FORMAT, "blockc": __version__, "source": own_source(), "python": sys.version, **versions}


def _version(distribution: str) -> str | None:
    """The version of an installed library, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def own_source(folder: Path = Path(__file__).parent) -> str:
    """A hash of the files that blockc consists of: who works on it never gets the kernels of yesterday."""
    found = sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".lark", ".blk", ".toml"):
            name, content = str(path.relative_to(folder)), path.read_bytes()
            found.update(f"{name}\n{len(content)}\n".encode(errors="surrogateescape"))
            found.update(content)
    return found.hexdigest()


def usual_folder() -> Path:
    """The folder of the cache: the environment variable BLOCKC_CACHE, else where the system has a user's caches."""
    import platformdirs

    asked = os.environ.get("BLOCKC_CACHE")
    return Path(asked) if asked else platformdirs.user_cache_path("blockc", appauthor=False)


def usual_store() -> Store:
    """The store in the usual folder. Nothing is touched before it is used."""
    return Store(usual_folder())


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the folder, with its time of writing. Kinds that are no entries: "failed" reproduces a failed
    self-check, "temporary" has not got its name yet."""

    path: Path
    kind: str
    size: int
    written: float


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries. A kind is a short lowercase word; a key comes from `key_of`."""

    folder: Path

    def read(self, kind: str, key: str) -> bytes | None:
        """The body of an entry; None if there is none. A broken one is removed, with a warning."""
        if not self._is_safe():
            return None
        path = self._path(kind, key)
        try:
            content = _content(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link is nothing that blockc writes
                return None
            content = b""
        body = _verified(content, kind, key)
        if body is None:
            _warn(f"removed a broken entry of the cache, which is made again: {path}")
            _unlink(path)
        return body

    def write(self, kind: str, key: str, body: bytes) -> None:
        """Keep an entry. If that cannot be done, nothing happens. Once in a while the oldest entries are removed."""
        path = self._path(kind, key)
        kept = len(body) <= LARGEST_ENTRY and self._is_made() and _replace(path, [_header(kind, key, body), body])
        if kept and key.startswith("0"):  # about every 16th time
            self.prune()

    def keep_failure(self, text: str) -> Path | None:
        """Keep what reproduces a failed self-check, a program with comments; None if that cannot be done."""
        folder, body = self.folder / FAILED, text.encode(errors="surrogateescape")
        path = folder / f"{sha256(body).hexdigest()}.blk"
        with contextlib.suppress(OSError):
            if self._is_made() and len(_inside(folder)) < MOST_FAILED:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                return path if _replace(path, [body]) else None
        return None

    def entries(self) -> Iterator[Entry]:
        """All that blockc has written into the folder, oldest first."""
        found = []
        for path in (*_inside(self.folder), *_inside(self.folder / FAILED)):
            with contextlib.suppress(OSError):
                kind, status = _kind(path), os.lstat(path)
                if kind and not stat.S_ISDIR(status.st_mode):
                    found.append(Entry(path, kind, status.st_size, status.st_mtime))
        yield from sorted(found, key=lambda entry: (entry.written, entry.path))

    def prune(self) -> None:
        """Remove what processes that are gone left behind, and the oldest entries of a store that is too large."""
        entries = [entry for entry in self.entries() if entry.kind != FAILED]
        total = sum(entry.size for entry in entries)
        enough = LARGEST_STORE * 3 // 4 if total > LARGEST_STORE else LARGEST_STORE  # not again with the next entry
        for entry in entries:
            temporary = entry.kind == TEMPORARY
            if entry.written < time.time() - STALE if temporary else total > enough:
                total -= entry.size
                _unlink(entry.path)

    def clear(self) -> tuple[Entry, ...]:
        """Remove everything that blockc has written into the folder, and return what is gone."""
        entries = self.entries() if self._is_safe() else ()
        gone = tuple(entry for entry in entries if _unlink(entry.path))
        with contextlib.suppress(OSError):
            os.rmdir(self.folder / FAILED)
        return gone

    def _path(self, kind: str, key: str) -> Path:
        name = f"{kind}-{key}"
        if not _ENTRY.fullmatch(name) or kind in (TEMPORARY, FAILED):
            raise ValueError(f"no kind and key of an entry: {name!r}")
        return self.folder / name

    def _problem(self) -> str:
        """Why the folder is not used although it is there; "" if it is safe or not there."""
        try:
            status = os.stat(self.folder)
        except OSError:
            return ""
        if not stat.S_ISDIR(status.st_mode):
            return "it is no folder"
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return "it belongs to someone else"
        if hasattr(os, "getuid") and status.st_mode & 0o077:
            return "others may enter it (chmod 700 makes it safe)"
        return ""

    def _is_safe(self) -> bool:
        """True if the folder may be used; else False, with a warning."""
        problem = self._problem()
        if problem:
            _warn(f"nothing is cached in {self.folder}: {problem}")
        return not problem

    def _is_made(self) -> bool:
        """True if the folder is there and safe; it is made if it is not there."""
        with contextlib.suppress(OSError):
            if not self.folder.exists():
                os.makedirs(self.folder.parent, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.folder, 0o700)
            return not self._problem()
        return False


def _warn(message: str) -> None:
    warnings.warn(visible(message), BlockcWarning, stacklevel=3)


def _header(kind: str, key: str, body: bytes) -> bytes:
    return f"blockc-cache {FORMAT} {kind} {key} {len(body)} {sha256(body).hexdigest()}\n".encode()


def _verified(content: bytes, kind: str, key: str) -> bytes | None:
    """The body in the content of an entry's file; None if anything is not as it was written."""
    header = _HEADER.match(content[:_LONGEST_HEADER])
    if header is None:
        return None
    body = content[header.end() :]
    return body if header[0] == _header(kind, key, body) else None


def _content(path: Path) -> bytes:
    """What is in a file; nothing if it is no plain file of our own, or too large."""
    flags = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        status = os.fstat(descriptor)
        owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        if not stat.S_ISREG(status.st_mode) or not owned or status.st_size > LARGEST_ENTRY + _LONGEST_HEADER:
            return b""
        pieces = []
        while piece := os.read(descriptor, 2**20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _replace(path: Path, pieces: Sequence[bytes]) -> bool:
    """True if a file has been written whole, in the place of what was there; else there is nothing new."""
    temporary = path.parent / f"tmp-{secrets.token_hex(16)}"
    flags = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        _unlink(temporary)
    return True


def _unlink(path: Path) -> bool:
    """True if the file is gone."""
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _kind(path: Path) -> str:
    """What a file in the folder is, by its name; "" for what blockc does not write."""
    if path.parent.name == FAILED and _REPRODUCTION.fullmatch(path.name):
        return FAILED
    if _TEMPORARY.fullmatch(path.name):
        return TEMPORARY
    entry = _ENTRY.fullmatch(path.name)
    return entry[1] if entry and path.parent.name != FAILED else ""


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return [Path(entry.path) for entry in found]
    return []
