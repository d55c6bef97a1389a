"""`ansible-test sanity` over the collection, with an empty ignore list and nothing fetched from Ansible's servers.

ansible-test makes a virtual environment per test and fills it with pinned packages by pip. For pip itself it would
download a bootstrap script; a stand-in of ours takes its place, which uses the pip that every Python carries.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.checks.homes import own_home
from tests.checks.runner import ROOT
from tests.checks.stamps import unless_well

COLLECTION = ROOT / "collections/ansible_collections/virtfleet/core"
PYTHON = "3.11"
REAL_PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
PIP_CHATTER = re.compile(
    r"\s*(Looking in|Collecting|Downloading|Processing|Using cached|Installing|Successfully|WARNING: Location|━)"
)
BOOTSTRAP = '''"""Stands in for get-pip.py: the pip that Python carries, then the versions asked for."""
import subprocess
import sys

subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
wanted = [word for word in sys.argv[1:] if "==" in word]
if wanted:
    sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=False).returncode)
'''


def pip_version() -> str:
    """Return the version of pip that this ansible-test wants (it is part of the bootstrap script's name)."""
    package = importlib.util.find_spec("ansible_test")
    source = Path(str(package.origin)).parent / "_internal/python_requirements.py" if package else Path()
    found = re.search(r"pip='([\d.]+)'", source.read_text()) if source.is_file() else None
    if not found:
        raise SystemExit(
            "Failed to prepare ansible-test: it no longer says which pip it wants. Mend tests/checks/sanity.py."
        )
    return found[1]


def main() -> int:
    """Run the sanity tests over what has changed since they were well, or those that are named; return the status."""
    named = sys.argv[1:]
    return run(named) if named else unless_well("ansible-test-sanity", [str(COLLECTION.relative_to(ROOT))], run)


def run(named: Sequence[str] = ()) -> int:
    """Run all sanity tests, or what is named; return the exit status."""
    ignores = [path for path in (COLLECTION / "tests/sanity").glob("ignore*.txt") if path.read_text().strip()]
    if ignores:
        print(f"The list of ignored findings must stay empty: {', '.join(str(path) for path in ignores)}")
        return 1
    home = own_home("ansible-test-home")
    bootstrap = home / f".ansible/test/cache/get_pip_{pip_version().replace('.', '_')}.py"
    bootstrap.parent.mkdir(parents=True, exist_ok=True)
    bootstrap.write_text(BOOTSTRAP)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    environment |= {
        "HOME": str(home),
        # shellcheck and ansible-test itself lie beside this Python.
        "PATH": f"{Path(sys.executable).parent}:{REAL_PROGRAMS}:{os.environ['PATH']}",
    }
    command = ["ansible-test", "sanity", "--venv", "--python", PYTHON, "--color", "no", *named]
    try:
        with subprocess.Popen(
            command, cwd=COLLECTION, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                if not PIP_CHATTER.match(line):
                    print(line, end="", flush=True)
        return process.returncode
    finally:
        shutil.rmtree(COLLECTION / "tests/output", ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
