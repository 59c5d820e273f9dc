"""The command `cache`: what blockc keeps on disk between runs, and how to be rid of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from blockc.errors import visible
from blockc.printing import print_json

if TYPE_CHECKING:
    from blockc.cache import Entry

_JSON = click.option("--json", "form", flag_value="json", default="text", help="Print one JSON object.")


@click.group()
def cache() -> None:
    """Show or remove what blockc keeps on disk: kernels that have passed their self-check, and what reproduces failed
    ones.

    The folder is that of the environment variable BLOCKC_CACHE, else the usual one for caches.
    """


@cache.command()
@_JSON
def info(form: str) -> None:
    """Show where the cache is and what is in it."""
    from blockc.cache import usual_store

    store = usual_store()
    entries = tuple(store.entries())
    kinds = {kind: [entry for entry in entries if entry.kind == kind] for kind in sorted({e.kind for e in entries})}
    if form == "json":
        listed = {kind: {"entries": len(found), "bytes": size_of(found)} for kind, found in kinds.items()}
        total = {"entries": len(entries), "bytes": size_of(entries)}
        print_json({"folder": str(store.folder), **total, "kinds": listed})
    else:
        click.echo(f"folder   {visible(str(store.folder))}\nentries  {counted(entries)}")
        for kind, found in kinds.items():
            click.echo(f"  {kind:9}  {counted(found)}")


@cache.command()
@_JSON
def clear(form: str) -> None:
    """Remove what is in the cache, and nothing that blockc has not written."""
    from blockc.cache import usual_store

    store = usual_store()
    gone = store.clear()
    if form == "json":
        print_json({"folder": str(store.folder), "removed": len(gone), "bytes": size_of(gone)})
    else:
        click.echo(f"folder   {visible(str(store.folder))}\nremoved  {counted(gone)}")


def size_of(entries: Iterable[Entry]) -> int:
    """The bytes of all entries."""
    return sum(entry.size for entry in entries)


def counted(entries: Iterable[Entry]) -> str:
    """How many entries there are, and how large they are."""
    found = tuple(entries)
    return f"{len(found):,} of {size_of(found):,} bytes"
