"""Results on the screen: a table for people, plain columns for pipes, JSON and YAML for programs, names for xargs."""

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class Output(StrEnum):
    """How results are written."""

    table = "table"
    json = "json"
    yaml = "yaml"
    name = "name"


Format = Annotated[Output, typer.Option("--output", "-o", help="table, json, yaml or name.")]
Column = tuple[str, Callable[[dict[str, Any]], Any]]


def say(line: str) -> None:
    """Tell people something that is not the result."""
    print(line, file=sys.stderr, flush=True)


def _clean(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def printable(text: str) -> str:
    """Return the text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def show_list(items: Sequence[dict[str, Any]], columns: Sequence[Column], output: Output, what: str) -> None:
    """Write a list. An empty one says so to people, and is an empty list to programs."""
    if _as_data(list(items), output):
        return
    if output is Output.name:
        for item in items:
            print(_clean(item.get("name") or item.get("id")))
        return
    if not items:
        say(f"There are no {what}.")
        return
    rows = [[_clean(value(item)) for _title, value in columns] for item in items]
    titles = [title for title, _value in columns]
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only for terminals
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in titles:
            table.add_column(title, no_wrap=title in ("ID", "NAME"))
        for row in rows:
            table.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles))]
    for row in [titles, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _colour(cell: str) -> str:
    if cell in ("up", "running", "succeeded", "ready"):
        return "green"
    if cell in ("down", "failed", "crashed", "missing"):
        return "red"
    return "yellow" if cell in ("building", "deleting", "queued", "unknown", "paused") else ""


def show_one(item: dict[str, Any], lines: Sequence[Column], output: Output) -> None:
    """Write one thing."""
    if _as_data(item, output):
        return
    if output is Output.name:
        print(_clean(item.get("name") or item.get("id")))
        return
    width = max(len(title) for title, _value in lines)
    for title, value in lines:
        print(f"{title.ljust(width)}  {_clean(value(item))}")


def _as_data(value: Any, output: Output) -> bool:
    if output is Output.json:
        print(json.dumps(value, indent=2))
    elif output is Output.yaml:
        import yaml  # noqa: PLC0415 - rarely needed

        print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="")
    else:
        return False
    return True


def field(name: str) -> Callable[[dict[str, Any]], Any]:
    """Return the function that takes a field out of an item."""
    return lambda item: item.get(name)


def plain(*names: str) -> list[Column]:
    """Return columns that show fields as they are."""
    return [(name.replace("_", " ").upper(), field(name)) for name in names]


def gib(size_bytes: int | None) -> str:
    """Return a size for a table."""
    return "-" if size_bytes is None else f"{size_bytes / 2**30:.1f} GiB"
