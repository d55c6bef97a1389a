"""The collection as Ansible Galaxy would import it: built, then read by Galaxy's own importer.

The importer lives in an environment of its own, as it pins versions that nothing else here wants. What it would have
looked at by ansible-lint and flake8 is looked at by the checks ansible-lint and ruff.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.checks.homes import own_home
from tests.checks.runner import ROOT
from tests.checks.stamps import FOLDER, unless_well

COLLECTION = "collections/ansible_collections/virtfleet/core"
LOCK = ROOT / "requirements/galaxy.txt"
PROGRAMS = FOLDER / "galaxy-importer"
SETTINGS = """[galaxy-importer]
LOG_LEVEL_MAIN = INFO
RUN_ANSIBLE_DOC = True
RUN_ANSIBLE_LINT = False
RUN_FLAKE8 = False
RUN_ANSIBLE_TEST = False
CHECK_REQUIRED_TAGS = True
CHECK_CHANGELOG = True
CHECK_RUNTIME_YAML = True
ANSIBLE_LOCAL_TMP = {folder}/ansible
"""
ALLOWED = "found ignore-2.19.txt with 0 statement(s)"
"""A list of ignored findings that is empty is what we want, and still a warning to the importer."""


def prepare() -> None:
    """Install the importer where it is not, or is another than the locked one."""
    stamp = PROGRAMS / "lock"
    if stamp.exists() and stamp.read_text() == LOCK.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PROGRAMS)], check=True)
    pip = [str(PROGRAMS / "bin/python"), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    install = [*pip, "--no-deps", "--require-hashes", "-r", str(LOCK)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Failed to install Galaxy's importer:\n{done.stdout}{done.stderr}")
    stamp.write_text(LOCK.read_text())


def check() -> int:
    """Build and import the collection; say what is wrong and return the exit status."""
    prepare()
    with tempfile.TemporaryDirectory(prefix="virtfleet-galaxy-") as name:
        folder = Path(name)
        (folder / "settings").write_text(SETTINGS.format(folder=folder))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")} | {
            "PATH": f"{PROGRAMS}/bin:{os.environ['PATH']}",
            "HOME": str(own_home("galaxy-home")),
            "GALAXY_IMPORTER_CONFIG": str(folder / "settings"),
        }
        build = ["ansible-galaxy", "collection", "build", "--output-path", name, str(ROOT / COLLECTION)]
        subprocess.run(build, env=environment, check=True, stdout=subprocess.DEVNULL)
        (built,) = folder.glob("*.tar.gz")
        command = [str(PROGRAMS / "bin/python"), "-m", "galaxy_importer.main", str(built)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        wrong = [line for line in said if line.startswith(("WARNING", "ERROR")) and ALLOWED not in line]
        result = folder / "importer_result.json"
        if done.returncode or wrong or not result.is_file():
            print("\n".join(wrong or said[-20:]))
            return 1
        print(f"imported with {len(json.loads(result.read_text())['contents'])} plugins")
        return 0


if __name__ == "__main__":
    sys.exit(unless_well("galaxy-importer", [COLLECTION, str(LOCK.relative_to(ROOT))], check))
