"""Documentation: Markdown is tidy (pymarkdown), and its relative links and anchors lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from tests.checks.runner import ROOT

FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.M | re.S)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def pages() -> list[Path]:
    """Return the Markdown files of the project."""
    trees = [ROOT / name for name in ("docs", "collections", "playbooks", "roles", "inventories/example")]
    found = [path for tree in trees for path in tree.rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *found])


def anchors(text: str) -> set[str]:
    """Return the anchors that its headings make on the usual code hosts."""
    titles = [re.sub(r"[`*_]|\[|\]\([^)]*\)", "", title) for title in HEADING.findall(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return a sentence for each relative link of the page that leads nowhere."""
    problems = []
    text = page.read_text()
    for link in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            problems.append(f"{page.relative_to(ROOT)}: the link {link} leads to a file that does not exist")
        elif anchor and target.suffix == ".md" and anchor.lower() not in anchors(target.read_text()):
            problems.append(f"{page.relative_to(ROOT)}: the link {link} leads to a heading that does not exist")
    return problems


def main() -> int:
    """Check every page; return the exit status."""
    found = pages()
    problems = [problem for page in found for problem in broken_links(page)]
    for problem in problems:
        print(problem)
    tidy = subprocess.run(
        ["pymarkdown", "scan", *(str(page.relative_to(ROOT)) for page in found)], cwd=ROOT, check=False
    )
    print(f"{len(found)} pages")
    return 1 if problems or tidy.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
