"""Processes that compile Triton kernels, beside one another: importing Triton takes seconds, so each compiles several.

A kernel that ends its compiler's process is the only one that is lost: the next one gets a new process. A process that
nobody needs for a minute ends by itself.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any

from blockc.errors import LimitError, Problem

SECONDS = 120  # that one compilation may take
MOST = 8  # processes
COMMAND = (sys.executable, "-W", "ignore", "-m", "blockc.codegen.triton_compile")

Job = Mapping[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Process:
    running: subprocess.Popen[str]
    said: IO[bytes]  # what it writes to stderr

    def answer(self, job: Job) -> Result | None:
        """The answer to a job; None if the process has ended."""
        assert self.running.stdin is not None and self.running.stdout is not None
        late = threading.Timer(SECONDS, self.running.kill)
        late.start()
        try:
            self.running.stdin.write(json.dumps(job) + "\n")
            self.running.stdin.flush()
            line = self.running.stdout.readline()
        except OSError:
            line = ""
        finally:
            late.cancel()
        return json.loads(line) if line.endswith("\n") else None

    def last_words(self) -> str:
        """Why a process has ended."""
        code = self.running.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else f"the compiler ended with {code}"

    def end(self) -> None:
        """End it, and wait until it has."""
        self.running.kill()
        self.running.wait()
        for stream in (self.running.stdin, self.running.stdout, self.said):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


def _started() -> _Process:
    said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    running = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
    return _Process(running, said)


@dataclass(slots=True)
class Compilers:
    """Processes that wait for jobs, started as they are needed."""

    idle: queue.SimpleQueue[_Process] = field(default_factory=queue.SimpleQueue)

    def results(self, jobs: Iterable[Job]) -> list[Result]:
        """What became of each job, in order. LimitError if triton is not installed."""
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST)) as pool:
            return list(pool.map(self._result, jobs))

    def _result(self, job: Job) -> Result:
        try:
            process = self.idle.get_nowait()
            result = process.answer(job)
            if result is None:  # it may have ended before
                process.end()
        except queue.Empty:
            result = None
        if result is None:
            process = _started()
            result = process.answer(job)
        if result is not None:
            self.idle.put(process)
            return result
        why = process.last_words()
        process.end()
        if "No module named 'triton'" in why:
            hint = "pip install torch triton"
            raise LimitError((Problem("E0295", "triton is not installed, which compiles kernels", None, hint),))
        return {"error": why}

    def close(self) -> None:
        """End those that wait."""
        with suppress(queue.Empty):
            while True:
                self.idle.get_nowait().end()


@cache
def shared() -> Compilers:
    """The compilers of this process, which end with it."""
    made = Compilers()
    atexit.register(made.close)
    return made
