"""The wheel holds all that an installation outside the checkout needs, and each thing once."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = "ansible_collections/virtfleet/core"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = target.glob("virtfleet-*.whl")
    return set(zipfile.ZipFile(file).namelist())


def files(folder: str) -> set[str]:
    """Return what git knows, or would take, in a folder of the checkout; relative to it."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {str(Path(name).relative_to(folder)) for name in found if (ROOT / name).is_file()}


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        ("api/virtfleet", "virtfleet"),
        (f"collections/{CORE}", CORE),
        ("playbooks", "virtfleet/_share/playbooks"),
        ("roles", "virtfleet/_share/roles"),
        ("inventories/example", "virtfleet/_share/inventories/example"),
        ("requirements", "virtfleet/_share/requirements"),
    ],
)
def test_every_file_of_the_product_is_in_the_wheel(wheel: set[str], folder: str, inside: str) -> None:
    present = files(folder)
    assert present, f"{folder} is empty"
    missing = {f"{inside}/{name}" for name in present} - wheel
    assert not missing, f"not in the wheel: {sorted(missing)}"


@pytest.mark.parametrize(
    "name",
    [
        "virtfleet/migrations/env.py",
        "virtfleet/lab/packages.txt",
        "virtfleet/lab/guest_image/packages.txt",
        "virtfleet/lab/guest_image/rootfs/etc/inittab",
        "virtfleet/lab/guest_image/initramfs/init",
        f"{CORE}/meta/runtime.yml",
        f"{CORE}/galaxy.yml",
    ],
)
def test_what_is_not_python_is_in_the_wheel_too(wheel: set[str], name: str) -> None:
    assert name in wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"virtfleet", "ansible_collections"}
    assert not [name for name in wheel if "__pycache__" in name or "/tests/output/" in name]
