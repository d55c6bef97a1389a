"""The README of each role, made from its argument specs and meta/main.yml. `--write` brings them up to date."""

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.checks.runner import ROOT

ROLES = ROOT / "roles"
NOTES = "README.notes"  # beside meta/main.yml: Markdown for below the options, what no specification can say


def readme(role: Path) -> str:
    """Return what the README of the role must read."""
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    about = yaml.safe_load((role / "meta/main.yml").read_text())["galaxy_info"]
    platforms = [f"{each['name']} ({', '.join(each['versions'])})" for each in about["platforms"]]
    parts = [
        f"# Role `{role.name}`",
        "<!-- Made by `python -m tests.checks.role_readmes --write` from meta/; edit those. -->",
        about["description"] + ".",
        *("\n".join(f"- {_plain(line)}" for line in _lines(spec["description"])),),
        f"For {', '.join(platforms)}.",
        "## Options",
        "\n".join(_option(name, option) for name, option in spec["options"].items()),
        (role / "meta" / NOTES).read_text().strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _lines(description: str | list[str]) -> list[str]:
    return [description] if isinstance(description, str) else description


def _plain(text: str) -> str:
    """Return Ansible's markup as Markdown."""
    for mark, word in (("C(", "`"), ("V(", "`"), ("O(", "`"), ("B(", "**")):
        while mark in text:
            before, _, rest = text.partition(mark)
            inside, _, after = rest.partition(")")
            text = f"{before}{word}{inside}{word}{after}"
    return text


def _option(name: str, option: dict[str, Any], depth: int = 0) -> str:
    kind = f"{option['type']} of {option['elements']}" if "elements" in option else option["type"]
    facts = [kind]
    if "choices" in option:
        facts.append("one of " + ", ".join(f"`{choice}`" for choice in option["choices"]))
    if option.get("required"):
        facts.append("required")
    if "default" in option and "options" not in option:
        facts.append(f"default {_value(option['default'])}")
    text = " ".join(_plain(line) for line in _lines(option["description"]))
    line = f"{'  ' * depth}- `{name}` ({'; '.join(facts)}): {text}"
    inner = [_option(each, about, depth + 1) for each, about in option.get("options", {}).items()]
    return "\n".join([line, *inner])


def _value(default: Any) -> str:
    return "empty" if default in ("", [], {}) else f"`{str(default).lower() if default in (True, False) else default}`"


def roles() -> list[Path]:
    """Return the folders of the roles."""
    return sorted(file.parents[1] for file in ROLES.glob("*/meta/argument_specs.yml"))


def main(write: bool) -> int:
    """Compare, or write; return the exit status."""
    stale = [role for role in roles() if not _is_current(role)]
    for role in stale:
        if write:
            (role / "README.md").write_text(readme(role))
        else:
            print(f"roles/{role.name}/README.md is not what its specs say: python -m tests.checks.role_readmes --write")
    print(f"{len(roles())} roles")
    return 1 if stale and not write else 0


def _is_current(role: Path) -> bool:
    page = role / "README.md"
    return page.is_file() and page.read_text() == readme(role)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
