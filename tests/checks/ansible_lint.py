"""ansible-lint with its strictest profile, without the network. What was found well is not looked at again.

It takes half a minute of processor time; so when it has found nothing, a fingerprint of all that it read is kept in the
checkout's `.cache`, and as long as nothing of that has changed, the answer is the same. With `--changed` first, only
the files that are not as they were then are looked at: what a changed module means for them, the whole check tells.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.checks.homes import own_home
from tests.checks.runner import ROOT
from tests.checks.stamps import FOLDER, fingerprint, hashes

STAMP = FOLDER / "ansible-lint.json"
LINTED = (".yml", ".yaml")
ALSO_READ = (".ansible-lint", ".yamllint", ".config", "collections")
"""What the answer depends on beside the files that are linted: rules and modules."""


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the files with something to lint that are new or not as they were."""
    return [name for name, content in now.items() if name.endswith(LINTED) and before.get(name) != content]


def lint(paths: list[str]) -> int:
    """Run ansible-lint on paths; return its exit status."""
    environment = os.environ | {
        "HOME": str(own_home("ansible-lint-home")),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(own_home("ansible-lint-home") / ".ansible"),
    }
    command = ["ansible-lint", "--offline", "--strict", "--profile", "production", "--nocolor", "-q", *paths]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(words: list[str]) -> int:
    """Lint the paths; return the exit status."""
    only_changed, paths = words[:1] == ["--changed"], [word for word in words if word != "--changed"]
    known: dict[str, Any] = json.loads(STAMP.read_text()) if STAMP.exists() else {"whole": "", "files": {}}
    before, files = fingerprint([*paths, *ALSO_READ]), hashes(paths)
    if known["whole"] == before:
        print(f"nothing has changed since ansible-lint found all well ({STAMP.relative_to(ROOT)})")
        return 0
    those = changed(known["files"], files) if only_changed and known["files"] else paths
    code = lint(those) if those else 0
    if code == 0 and fingerprint([*paths, *ALSO_READ]) == before:
        FOLDER.mkdir(exist_ok=True)
        whole = "" if those != paths else before
        STAMP.write_text(json.dumps({"whole": whole, "files": files}))
        if those != paths:
            print(f"well: {len(those)} files that have changed; the whole check looks at all of them")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
