"""The reference pages of the collection: made from its plugins' own documentation, and checked to be current.

`python -m tests.checks.reference` fails when a page in docs/reference is not what the documentation says;
`python -m tests.checks.reference --write` makes the pages anew. Links and markup are linted by antsibull-docs.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.checks.homes import own_home
from tests.checks.runner import ROOT
from tests.checks.stamps import unless_well

COLLECTION = ROOT / "collections/ansible_collections/virtfleet/core"
PAGES = ROOT / "docs/reference"
NAME = "virtfleet.core"
KINDS = {"module": "Modules", "inventory": "Inventory plugins", "filter": "Filters"}
CODE = re.compile(r"\b(?:O|V|C|RV|E|M|P)\(((?:[^()\\]|\\.|\([^()]*\))*)\)")
LINK = re.compile(r"\bL\(([^,()]+),\s*([^()]+)\)")
URL = re.compile(r"\bU\(([^()]+)\)")
BOLD = re.compile(r"\bB\(((?:[^()]|\([^()]*\))*)\)")
ITALIC = re.compile(r"\bI\(((?:[^()]|\([^()]*\))*)\)")


def documented() -> dict[str, dict[str, Any]]:
    """Return kind → plugin → what `ansible-doc` says of it."""
    names = {
        "module": [path.stem for path in (COLLECTION / "plugins/modules").glob("*.py")],
        "inventory": [path.stem for path in (COLLECTION / "plugins/inventory").glob("*.py")],
        "filter": [path.stem for path in (COLLECTION / "plugins/filter").glob("*.yml")],
    }
    return {kind: _ansible_doc(kind, sorted(of_kind)) for kind, of_kind in names.items()}


def environment() -> dict[str, str]:
    """Return an environment in which Ansible knows this collection and nobody's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    home = own_home("reference-home")
    return clean | {"ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"), "ANSIBLE_HOME": str(home / ".ansible")}


def _ansible_doc(kind: str, names: list[str]) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("ansible-doc")), "-t", kind, "-j", *(f"{NAME}.{n}" for n in names)]
    said = subprocess.run(command, env=environment(), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(said)
    missing = [name for name in names if f"{NAME}.{name}" not in found]
    if missing:
        raise SystemExit(f"ansible-doc does not know the documentation of {', '.join(missing)}.")
    return {name: found[f"{NAME}.{name}"] for name in names}


def pages(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return file name → text of every page."""
    made = {"README.md": _index(found)}
    for kind, plugins in found.items():
        for name, said in plugins.items():
            made[_file(kind, name)] = _page(kind, name, said)
    return made


def _file(kind: str, name: str) -> str:
    return f"{name}.md" if kind == "module" else f"{kind}-{name}.md"


def _index(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["# Reference of the collection virtfleet.core", "", "Made from the plugins' own documentation.", ""]
    for kind, plugins in found.items():
        lines += [f"## {KINDS[kind]}", "", "| name | for |", "|---|---|"]
        lines += [
            f"| [{name}]({_file(kind, name)}) | {_cell(said['doc']['short_description'])} |"
            for name, said in plugins.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _page(kind: str, name: str, said: Mapping[str, Any]) -> str:
    doc = said["doc"]
    lines = [f"# {NAME}.{name}", "", _sentence(doc["short_description"]), ""]
    lines += [f"- {_text(each)}" for each in _listed(doc["description"])]
    options = list(_options(doc.get("options") or {}))
    if options:
        lines += ["", "## Options", "", "| option | type | default | meaning |", "|---|---|---|---|", *options]
    notes = [*_listed(doc.get("notes")), *(f"Needs {each}." for each in _listed(doc.get("requirements")))]
    if notes:
        lines += ["", "## Notes", "", *(f"- {_text(each)}" for each in notes)]
    if kind == "module":
        lines += ["", "## Attributes", "", "| attribute | support | details |", "|---|---|---|"]
        lines += [
            f"| `{attribute}` | {of['support']} | {_cell(of.get('details') or of['description'])} |"
            for attribute, of in doc.get("attributes", {}).items()
        ]
    if said.get("examples"):
        lines += ["", "## Examples", "", "```yaml", said["examples"].strip("\n"), "```"]
    values = list(_values(said.get("return") or {}))
    if values:
        lines += ["", "## Returned", "", "| value | type | returned | meaning |", "|---|---|---|---|", *values]
    return "\n".join([*lines, ""])


def _listed(given: Any) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else [str(each) for each in given]


def _options(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
        default = "" if option.get("default") is None else f"`{_plain(option['default'])}`"
        if option.get("required"):
            default = "**required**"
        meaning = " ".join(_listed(option["description"]))
        if option.get("choices"):
            meaning += f" One of {', '.join(f'V({_plain(each)})' for each in option['choices'])}."
        aliases = "".join(f", `{alias}`" for alias in option.get("aliases") or ())
        yield f"| `{prefix}{name}`{aliases} | {kind} | {default} | {_cell(meaning)} |"
        yield from _options(option.get("suboptions") or {}, f"{prefix}{name}.")


def _values(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        kind = value.get("type", "") + (f" of {value['elements']}" if value.get("elements") else "")
        meaning = " ".join(_listed(value["description"]))
        if value.get("sample") is not None and not isinstance(value["sample"], dict | list):
            meaning += f" Such as V({_plain(value['sample'])})."
        yield f"| `{prefix}{name}` | {kind} | {_cell(str(value.get('returned', '')))} | {_cell(meaning)} |"
        yield from _values(value.get("contains") or {}, f"{prefix}{name}.")


def _plain(value: Any) -> str:
    text = value if value and isinstance(value, str) else json.dumps(value)
    return text.strip().replace("\n", " ").replace("|", "\\|")


def _sentence(text: str) -> str:
    return _text(text).rstrip(".") + "."


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Return Ansible's markup as Markdown."""
    text = " ".join(str(text).split())
    text = CODE.sub(lambda found: "`" + found[1].replace("\\", "").split("#", maxsplit=1)[0] + "`", text)
    text = URL.sub(r"<\1>", LINK.sub(r"[\1](\2)", text))
    return ITALIC.sub(r"*\1*", BOLD.sub(r"**\1**", text))


def outdated(wanted: Mapping[str, str]) -> list[str]:
    """Return the names of pages that are missing, differ, or are of nothing any more."""
    there = {path.name: path.read_text() for path in PAGES.glob("*.md")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def undocumented() -> list[str]:
    """Return the modules that the collection's own README does not name."""
    text = (COLLECTION / "README.md").read_text()
    group = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]["all"]
    return [name for name in group if f"`{name}`" not in text]


def main() -> int:
    """Check the pages, or write them; return the exit status."""
    if "--write" not in sys.argv[1:]:
        read = [str(each.relative_to(ROOT)) for each in (COLLECTION, PAGES)]
        return unless_well("reference", read, check)
    wanted = pages(documented())
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in outdated(wanted):
        if name in wanted:
            (PAGES / name).write_text(wanted[name])
        else:
            (PAGES / name).unlink()
    print(f"{len(wanted)} pages are in {PAGES.relative_to(ROOT)}")
    return 0


def check() -> int:
    """Say what is wrong with the pages and with the documentation itself; return the exit status."""
    wanted = pages(documented())
    for name in undocumented():
        print(f"{COLLECTION.relative_to(ROOT)}/README.md does not name the module `{name}`.")
    for name in outdated(wanted):
        print(f"{PAGES.relative_to(ROOT)}/{name} is not what the documentation says.")
    lint = [
        str(Path(sys.executable).with_name("antsibull-docs")),
        *("lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "self", str(COLLECTION)),
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    linted = subprocess.run(lint, env=environment() | {"PATH": path}, cwd=ROOT, check=False).returncode
    if outdated(wanted):
        print("Make them anew: .venv/bin/python -m tests.checks.reference --write")
    return 1 if linted or undocumented() or outdated(wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
