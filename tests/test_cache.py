"""The cache: nothing wrong is ever served, and what cannot be cached is no error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockc import cache
from blockc.cache import Store, key_of
from blockc.errors import BlockcWarning

HERE = Path(__file__).parent
BODY = b"a body\nof an entry\n" * 100


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "blockc")


def entry_file(store: Store, kind: str, key: str) -> Path:
    """The file of an entry that there is."""
    (path,) = (entry.path for entry in store.entries() if entry.kind == kind and entry.path.name.endswith(key))
    return path


def test_an_entry_is_read_as_it_was_written(store: Store) -> None:
    key, other = key_of({"a": 1}), key_of({"a": 2})
    assert store.read("kernel", key) is None
    for body in (BODY, b"", bytes(range(256))):
        store.write("kernel", key, body)
        assert store.read("kernel", key) == body
        assert store.read("kernel", other) is None
        assert store.read("lint", key) is None


def test_keys_do_not_depend_on_order() -> None:
    assert key_of({"a": 1, "b": [1, {"c": None}]}) == key_of({"b": [1, {"c": None}], "a": 1})
    assert len({key_of({"a": value}) for value in (1, 2, "1", None, [1], {"1": 1}, True)}) == 7


_version: Callable[[str], str | None] = cache._version
ENVIRONMENT: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the format": lambda patch: patch.setattr(cache, "FORMAT", 2),
    "blockc's version": lambda patch: patch.setattr(cache, "__version__", "0.0.0"),
    "blockc's source": lambda patch: patch.setattr(cache, "own_source", lambda: "another"),
    "Python": lambda patch: patch.setattr(sys, "version", "3.99"),
    **{
        name: lambda patch, changed=name: patch.setattr(  # type: ignore[misc]
            cache, "_version", lambda asked: "0" if asked == changed else _version(asked)
        )
        for name in ("ml_dtypes", "networkx", "numpy", "sympy", "torch", "triton")
    },
}


@pytest.mark.parametrize("ingredient", ENVIRONMENT)
def test_keys_depend_on_the_environment(ingredient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of({"a": 1})
    cache.environment.cache_clear()
    assert key_of({"a": 1}) == before
    cache.environment.cache_clear()
    ENVIRONMENT[ingredient](monkeypatch)
    after = key_of({"a": 1})
    cache.environment.cache_clear()
    assert after != before


def test_every_file_of_blockc_is_in_its_hash(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    hashes = {cache.own_source(tmp_path)}
    for name in ("a.py", "inner/a.py", "grammar.lark", "prelude.blk", "cpu.toml"):
        (tmp_path / name).write_text("1")
        hashes.add(cache.own_source(tmp_path))
        (tmp_path / name).write_text("2")
        hashes.add(cache.own_source(tmp_path))
    assert len(hashes) == 11
    assert cache.own_source() == cache.own_source()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


BROKEN: dict[str, Callable[[bytes, bytes], bytes]] = {  # of the content, and of that of another entry
    "empty": lambda content, other: b"",
    "cut in the header": lambda content, other: content[:50],
    "cut in the body": lambda content, other: content[:-1],
    "longer": lambda content, other: content + b"x",
    "a bit of the body": lambda content, other: flipped(content, len(content) - 7),
    "a bit of the hash": lambda content, other: flipped(content, content.index(b"\n") - 7),
    "a bit of the key": lambda content, other: flipped(content, 30),
    "a bit of the length": lambda content, other: flipped(content, content.index(b" 1900 ") + 1),
    "another format": lambda content, other: content.replace(b"blockc-cache 1", b"blockc-cache 2", 1),
    "another kind": lambda content, other: content.replace(b" kernel ", b" kernal ", 1),
    "another entry": lambda content, other: other,
    "something else": lambda content, other: b"\x00" * 5000,
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_entry_is_removed_and_made_again(how: str, store: Store) -> None:
    key, other = key_of({"a": 1}), key_of({"a": 2})
    store.write("kernel", key, BODY)
    store.write("kernel", other, BODY)
    path = entry_file(store, "kernel", key)
    content = path.read_bytes()
    path.write_bytes(BROKEN[how](content, entry_file(store, "kernel", other).read_bytes()))
    assert path.read_bytes() != content
    with pytest.warns(BlockcWarning, match="removed a broken entry") as caught:
        assert store.read("kernel", key) is None
    assert len(caught) == 1
    assert not path.exists()
    assert store.read("kernel", key) is None
    store.write("kernel", key, BODY)
    assert (store.read("kernel", key), store.read("kernel", other)) == (BODY, BODY)


def test_what_is_no_file_is_not_followed(store: Store, tmp_path: Path) -> None:
    key = key_of({"a": 1})
    store.write("kernel", key, BODY)
    path = entry_file(store, "kernel", key)
    kept = path.rename(tmp_path / "elsewhere")
    path.symlink_to(kept)
    with pytest.warns(BlockcWarning, match="removed a broken entry"):
        assert store.read("kernel", key) is None
    assert kept.exists() and not path.is_symlink()
    os.mkfifo(path)
    with pytest.warns(BlockcWarning, match="removed a broken entry"):
        assert store.read("kernel", key) is None
    path.mkdir()
    store.write("kernel", key, BODY)
    with pytest.warns(BlockcWarning, match="removed a broken entry"):
        assert store.read("kernel", key) is None
    assert path.is_dir()


@pytest.mark.parametrize("name", ["", "../../x", "Kernel", "failed", "temporary", "kernel "])
def test_kinds_and_keys_are_checked(store: Store, name: str) -> None:
    for kind, key in ((name, key_of({})), ("kernel", name)):
        with pytest.raises(ValueError, match="no kind and key"):
            store.write(kind, key, BODY)


def test_the_folder_is_for_the_user_only(store: Store) -> None:
    old = os.umask(0)
    try:
        store.write("kernel", key_of({}), BODY)
        failure = store.keep_failure("program")
    finally:
        os.umask(old)
    assert failure is not None and failure.read_text() == "program"
    assert [path.stat().st_mode & 0o777 for path in (store.folder, failure.parent)] == [0o700, 0o700]
    assert [entry.path.stat().st_mode & 0o777 for entry in store.entries()] == [0o600, 0o600]


def unusable(store: Store, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match how:
        case "others may enter it":
            store.folder.chmod(0o750)
        case "it belongs to someone else":
            monkeypatch.setattr(os, "getuid", lambda: 12345)
        case "it is no folder":
            store.clear()
            store.folder.rmdir()
            store.folder.write_text("mine")


@pytest.mark.parametrize("how", ["others may enter it", "it belongs to someone else", "it is no folder"])
def test_a_folder_that_is_not_safe_is_not_used(how: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of({})
    store.write("kernel", key, BODY)
    unusable(store, how, monkeypatch)
    before = [(entry.path, entry.written) for entry in store.entries()]
    with pytest.warns(BlockcWarning, match=how):
        assert store.read("kernel", key) is None
    store.write("kernel", key_of({"another": 1}), BODY)  # the reader has been told
    assert store.keep_failure("program") is None
    with pytest.warns(BlockcWarning, match=how):
        assert store.clear() == ()
    assert [(entry.path, entry.written) for entry in store.entries()] == before


def test_the_oldest_entries_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of({"number": number}) for number in range(40)]
    failure = store.keep_failure("program")
    for age, key in enumerate(keys):
        store.write("kernel", key, BODY)
        path = entry_file(store, "kernel", key)
        os.utime(path, (1e9 + age, 1e9 + age))
    size = path.stat().st_size
    for age, name in ((cache.STALE + 60, "tmp-" + "0" * 32), (0, "tmp-" + "1" * 32)):
        (store.folder / name).write_bytes(b"")
        os.utime(store.folder / name, (time.time() - age,) * 2)
    (store.folder / "mine.txt").write_text("mine")
    monkeypatch.setattr(cache, "LARGEST_STORE", 20 * size)
    last = next(key for key in (key_of({"number": number}) for number in range(40, 400)) if key.startswith("0"))
    store.write("kernel", last, BODY)
    left = [key for key in (*keys, last) if store.read("kernel", key) is not None]
    assert left == [*keys[-14:], last]
    assert [entry.path.name for entry in store.entries() if entry.kind == cache.TEMPORARY] == ["tmp-" + "1" * 32]
    assert failure is not None and failure.exists() and (store.folder / "mine.txt").exists()


def test_what_is_too_large_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGEST_ENTRY", len(BODY))
    store.write("kernel", key_of({}), BODY + b"x")
    assert store.read("kernel", key_of({})) is None
    store.write("kernel", key_of({}), BODY)
    assert store.read("kernel", key_of({})) == BODY
    monkeypatch.setattr(cache, "MOST_FAILED", 2)
    assert [store.keep_failure(text) is not None for text in "abc"] == [True, True, False]


def test_clear_removes_what_blockc_wrote_and_nothing_else(store: Store) -> None:
    store.write("kernel", key_of({}), BODY)
    store.write("lint", key_of({}), BODY)
    store.keep_failure("program")
    mine = ["mine.txt", "kernel-0", "kernel-" + "0" * 64 + ".bak", "failed/mine.blk"]
    for name in mine:
        (store.folder / name).write_text("mine")
    assert sorted(entry.kind for entry in store.clear()) == ["failed", "kernel", "lint"]
    assert all((store.folder / name).read_text() == "mine" for name in mine)
    assert store.clear() == tuple(store.entries()) == ()


OPERATIONS = (
    "open",
    "read",
    "write",
    "close",
    "fstat",
    "stat",
    "lstat",
    "replace",
    "unlink",
    "mkdir",
    "scandir",
    "rmdir",
)


KIND, KEYS = "kernel", ("1" * 64, "0" * 64)


def scenario(store: Store) -> Iterator[bytes | None]:
    """Everything a store does; yields what was read."""
    for key in KEYS:
        yield store.read(KIND, key)
        store.write(KIND, key, BODY)
        yield store.read(KIND, key)
    store.write(KIND, KEYS[0], BODY)
    for entry in store.entries():
        entry.path.write_bytes(b"broken")
    yield store.read(KIND, KEYS[0])
    store.keep_failure("program")
    store.prune()
    store.clear()
    yield store.read(KIND, KEYS[1])


ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ELOOP)


def test_any_file_operation_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = {name: getattr(os, name) for name in OPERATIONS}
    done, failing = 0, 0

    def counted(name: str) -> Callable[..., Any]:
        def operation(*given: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done == failing:
                if name == "close":
                    true["close"](*given)
                number = ERRORS[failing % len(ERRORS)]
                raise OSError(number, os.strerror(number))
            return true[name](*given, **named)

        return operation

    while failing <= done:
        done, failing = 0, failing + 1
        store = Store(tmp_path / str(failing) / "blockc")
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            warnings.simplefilter("ignore")
            for name in OPERATIONS:
                patch.setattr(os, name, counted(name))
            assert all(body in (None, BODY) for body in scenario(store))
            count = done
            patch.undo()
            assert all(store.read(KIND, key) in (None, BODY) for key in KEYS)
            store.write(KIND, KEYS[0], BODY)
            assert store.read(KIND, KEYS[0]) == BODY
        done = count
    assert failing > 50


def test_processes_that_are_killed_and_many_on_one_folder() -> None:
    command = [sys.executable, str(HERE / "cache_campaign.py"), "--kills", "20", "--processes", "4", "--seconds", "0.4"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" 0 wrong") == 2
