"""The cache under attack: processes that are killed while they write, and many on one folder. Nothing wrong is served.

    python tests/cache_campaign.py --kills 1000 --processes 32 --seconds 20

Prints what happened, and exits with 1 if a body was read that is not what was written under its key, or if a killed
process left a broken entry. A process of its own, since it forks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from blockc import cache
from blockc.cache import Store

KIND = "kernel"
KEYS = tuple(sha256(str(number).encode()).hexdigest() for number in range(40))
SIZE = 2_000_000  # bytes of the largest body: most of the time goes into writing
SMALL_STORE = 10_000_000  # bytes: the oldest entries are removed all the time


# What is written under each key.
BODIES = {key: sha256(key.encode()).digest() * (int(key[:8], 16) % (SIZE // 32)) for key in KEYS}


def read(store: Store, key: str) -> str:
    """What comes of reading a key: "right", "wrong" or "missing", or "broken" if it was found to be."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        body = store.read(KIND, key)
    return "broken" if caught else "missing" if body is None else "right" if body == BODIES[key] else "wrong"


def kills(store: Store, count: int, seed: int) -> Counter[str]:
    """Kill that many processes while they write, and read everything after each."""
    generator, found = random.Random(seed), Counter[str]()
    for _ in range(count):
        process = os.fork()
        if process == 0:
            while True:
                key = generator.choice(KEYS)
                store.write(KIND, key, BODIES[key])
        time.sleep(generator.uniform(0.0005, 0.01))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found.update(read(store, key) for key in KEYS)
        found["left over"] = sum(entry.kind == cache.TEMPORARY for entry in store.entries())
    return found


def crowd(store: Store, processes: int, seconds: float) -> Counter[str]:
    """Let processes write, read, break, prune and clear the same entries, and sum up what they read."""
    children = []
    for number in range(processes):
        reading, writing = os.pipe()
        if (process := os.fork()) == 0:
            found = Counter(works(store, number, seconds))
            os.write(writing, repr(sorted(found.items())).encode())
            os._exit(0)
        os.close(writing)
        children.append((process, reading))
    total = Counter[str]()
    for process, reading in children:
        os.waitpid(process, 0)
        text = os.read(reading, 4096).decode()
        os.close(reading)
        total.update({word: int(text.split(f"'{word}', ")[1].split(")")[0]) for word in WORDS if f"'{word}'" in text})
        total["died"] += not text
    return total


WORDS = ("right", "wrong", "missing", "broken", "written")


def works(store: Store, seed: int, seconds: float) -> Iterator[str]:
    """One process: yields what came of each step."""
    generator, end = random.Random(seed), time.perf_counter() + seconds
    while time.perf_counter() < end:
        key = generator.choice(KEYS)
        match generator.choices(("write", "read", "break", "prune", "clear"), (40, 50, 5, 5, 0.2))[0]:
            case "write":
                store.write(KIND, key, BODIES[key])
                yield "written"
            case "read":
                yield read(store, key)
            case "break":
                break_entry(store.folder / f"{KIND}-{key}", generator)
            case "prune":
                store.prune()
            case "clear":
                store.clear()


def break_entry(path: Path, generator: random.Random) -> None:
    """Change one byte of a file in place, or cut it off, as nobody should."""
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        position = generator.randrange(max(1, size))
        if generator.random() < 0.5:
            os.truncate(path, position)
        else:
            with path.open("r+b") as stream:
                stream.seek(position)
                old = stream.read(1)
                stream.seek(position)
                stream.write(bytes([(old[0] if old else 0) ^ 1]))


def main() -> int:
    parser = argparse.ArgumentParser(description="the cache under attack")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killed = kills(Store(Path(folder) / "killed"), options.kills, options.seed)
        cache.LARGEST_STORE = SMALL_STORE
        crowded = crowd(Store(Path(folder) / "crowded"), options.processes, options.seconds)
    print(f"{options.kills} kills: " + ", ".join(f"{killed[word]} {word}" for word in (*WORDS[:4], "left over")))
    print(f"{options.processes} processes: " + ", ".join(f"{crowded[word]} {word}" for word in (*WORDS, "died")))
    return int(killed["wrong"] + killed["broken"] + crowded["wrong"] + crowded["died"] > 0)


if __name__ == "__main__":
    sys.exit(main())
