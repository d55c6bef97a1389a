"""Who may know whom: the import rules of the architecture, read from the source itself."""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = "ansible_collections.virtfleet.core.plugins"
PURE = (
    f"{CORE}.plugin_utils.placement",
    f"{CORE}.module_utils.domain_xml",
    f"{CORE}.module_utils.units",
    f"{CORE}.module_utils.plan",
    "virtfleet.control",
)
# What pure rooms may use beside each other and the standard library: the one class of errors.
PURE_ENOUGH = (*PURE, f"{CORE}.module_utils.errors")
# What a pure room may not use of the standard library: the world outside, and clocks.
IMPURE = {
    *("asyncio", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select"),
    *("shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib"),
}
WEB_FRAMEWORKS = {"flask", "apiflask", "werkzeug", "gunicorn"}
# Rooms of the control plane that a room may not import: what lies above it, or beside it behind another door.
FORBIDDEN = {
    "models": {
        *(
            "app",
            "routes",
            "schemas",
            "services",
            "jobs",
            "observer",
            "control",
            "compat",
            "console",
            "cli",
            "web",
            "lab",
        ),
    },
    "schemas": {"app", "routes", "services", "jobs", "observer", "control", "compat", "console", "cli", "web", "lab"},
    "jobs": {"app", "routes", "services", "observer", "control", "compat", "console", "cli", "web", "lab"},
    "services": {"app", "routes", "observer", "control", "compat", "console", "cli", "web", "lab"},
    "observer": {"app", "routes", "control", "compat", "console", "cli", "web", "lab"},
    "control": {
        *(
            "app",
            "routes",
            "schemas",
            "models",
            "jobs",
            "observer",
            "compat",
            "console",
            "cli",
            "web",
            "lab",
            "database",
        ),
    },
    "routes": {"app", "observer", "control", "compat", "cli", "web", "lab"},
    "compat": {"app", "observer", "control", "cli", "web", "lab"},
    "web": {"app", "models", "services", "jobs", "observer", "control", "compat", "database", "cli", "lab"},
    "cli": {
        *("app", "routes", "schemas", "models", "services", "jobs", "observer", "control", "compat", "console", "web"),
        "database",
    },
    "lab": {
        "app",
        "routes",
        "schemas",
        "models",
        "services",
        "jobs",
        "observer",
        "control",
        "compat",
        "console",
        "web",
    },
}


@dataclass(frozen=True)
class Import:
    """One name that a file imports when it runs (imports for type checkers alone don't count)."""

    file: Path
    line: int
    name: str
    guarded: bool  # inside try … except ImportError

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"

    def of(self, *packages: str) -> bool:
        """Tell whether this is one of the packages or lies inside one."""
        return any(self.name == package or self.name.startswith(package + ".") for package in packages)


def sources() -> Iterator[Path]:
    """Yield the Python files of the product."""
    for tree in ("api/virtfleet", "collections/ansible_collections/virtfleet/core/plugins"):
        yield from sorted((ROOT / tree).rglob("*.py"))


def module_of(file: Path) -> str:
    """Return the dotted name under which a file is imported."""
    inside = file.relative_to(ROOT / ("api" if "api" in file.relative_to(ROOT).parts[:1] else "collections"))
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")


def parsed(file: Path) -> ast.Module:
    """Return the file's syntax tree."""
    return ast.parse(file.read_text(), str(file))


def imports_of(file: Path) -> list[Import]:
    """Return all that a file imports, wherever in it."""
    found: list[Import] = []
    here = module_of(file).split(".")
    package = here if file.name == "__init__.py" else here[:-1]

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for otherwise in node.orelse:
                visit(otherwise, guarded)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            origin = base if node.level else str(node.module)
            found.extend(Import(file, node.lineno, f"{origin}.{alias.name}", guarded) for alias in node.names)
        inner = guarded
        if isinstance(node, ast.Try):
            inner = guarded or any("ImportError" in ast.dump(handler) for handler in node.handlers)
        elif isinstance(node, ast.With):
            inner = guarded or any("ImportError" in ast.dump(item) for item in node.items)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(parsed(file), guarded=False)
    return found


ALL = [each for file in sources() for each in imports_of(file)]


def room(file: Path) -> str:
    """Return the room of the control plane that a file belongs to: `routes` for api/virtfleet/routes/vms.py."""
    parts = file.relative_to(ROOT).parts
    return parts[2].removesuffix(".py") if parts[:2] == ("api", "virtfleet") else ""


def offenders(test: Callable[[Import], bool]) -> list[str]:
    """Return the imports for which the test holds, as sentences."""
    return [str(each) for each in ALL if test(each)]


def require_none(found: list[str], rule: str) -> None:
    """Fail with the rule and every offender, a line each."""
    if found:
        pytest.fail("\n  ".join([rule, *found]), pytrace=False)


def test_pure_rooms_import_only_the_harmless_part_of_the_standard_library_and_each_other() -> None:
    def forbidden(each: Import) -> bool:
        if not Import(each.file, 0, module_of(each.file), False).of(*PURE):
            return False
        top = each.name.split(".")[0]
        if each.name == "random.Random":  # a generator given its seed is a value, unlike the module's shared one
            return False
        return (
            not each.of(*PURE_ENOUGH) and (top not in sys.stdlib_module_names or top in IMPURE) and top != "__future__"
        )

    require_none(offenders(forbidden), "pure rooms do no I/O and know no clock: pass them what they need")


def test_nobody_but_connection_py_opens_libvirt() -> None:
    opening = [
        f"{file.relative_to(ROOT)}:{node.lineno} uses libvirt.{node.attr}"
        for file in sources()
        if module_of(file) != f"{CORE}.module_utils.connection"
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("open")
        and isinstance(node.value, ast.Name)
        and node.value.id == "libvirt"
    ]
    named = offenders(
        lambda each: each.name.startswith("libvirt.open") and module_of(each.file) != f"{CORE}.module_utils.connection"
    )
    require_none(
        opening + named, "open hosts by module_utils/connection.open_host, which can be abandoned when one hangs"
    )


def test_the_collection_imports_libvirt_guarded() -> None:
    def unguarded(each: Import) -> bool:
        return not room(each.file) and each.of("libvirt", "libvirt_qemu") and not each.guarded

    require_none(
        offenders(unguarded),
        "Ansible must be able to load every plugin without libvirt: try … except ImportError",
    )


def test_the_api_never_touches_libvirt() -> None:
    rooms = {"app", "routes", "schemas", "services", "compat", "jobs", "models", "web", "cli"}

    def touches(each: Import) -> bool:
        doors = ("libvirt", "libvirt_qemu", f"{CORE}.module_utils.connection", f"{CORE}.module_utils.libvirt_objects")
        return room(each.file) in rooms and each.of(*doors)

    require_none(offenders(touches), "a hung host must not hang a request: read what the observer recorded")


def test_only_the_runner_and_its_supervisor_start_ansible() -> None:
    allowed = {ROOT / "api/virtfleet/jobs/runner.py", ROOT / "api/virtfleet/jobs/supervisor.py"}
    told = allowed | {ROOT / "api/virtfleet/jobs/attempts.py"}  # what the runner starts, and what people may repeat
    programs = {"ansible-playbook", "ansible-runner", "ansible"}
    mentions = [
        f"{file.relative_to(ROOT)}:{node.lineno} names the program {node.value}"
        for file in sources()
        if room(file) and file not in told
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Constant) and node.value in programs
    ]
    imported = offenders(
        lambda each: bool(room(each.file)) and each.file not in allowed and each.of("ansible", "ansible_runner")
    )
    require_none(mentions + imported, "a change to a host is a job: submit one")


def test_only_claim_py_holds_the_sql_of_claims_and_locks() -> None:
    # lifecycle.py writes, at submission, which locks a job will ask for; taking and giving them back is claim.py's.
    allowed = {ROOT / "api/virtfleet/jobs" / name for name in ("claim.py", "lifecycle.py")}
    using = [
        f"{file.relative_to(ROOT)}:{node.lineno} mentions job locks"
        for file in sources()
        if room(file) and room(file) not in {"models", "migrations"} and file not in allowed
        for node in ast.walk(parsed(file))
        if (isinstance(node, ast.Name | ast.alias) and getattr(node, "id", getattr(node, "name", "")) == "JobLock")
        or (isinstance(node, ast.Attribute) and node.attr == "JobLock")
    ]
    require_none(using, "claim and release jobs and their locks by the functions of jobs/claim.py")


def test_only_front_doors_know_the_web_framework() -> None:
    rooms = {"services", "jobs", "models", "observer", "control", "schemas", "cli", "lab"}

    def knows(each: Import) -> bool:
        if room(each.file) == "schemas" and each.name.startswith("apiflask"):
            return False  # validators of uploaded files
        return room(each.file) in rooms and each.name.split(".")[0] in WEB_FRAMEWORKS

    require_none(offenders(knows), "services say what the product does; HTTP stays in routes, compat, web and errors")


def test_nobody_but_the_app_imports_the_old_contracts() -> None:
    def imports_compat(each: Import) -> bool:
        return each.of("virtfleet.compat") and room(each.file) not in {"compat", "app"}

    require_none(offenders(imports_compat), "compat/ is a front door: nothing leans on it")


def test_the_collection_knows_nothing_of_the_control_plane() -> None:
    require_none(
        offenders(lambda each: not room(each.file) and each.of("virtfleet")),
        "the collection works without the control plane; share what both need in the collection",
    )


def test_module_utils_import_only_the_standard_library_ansibles_own_and_libvirt() -> None:
    inside = ROOT / "collections/ansible_collections/virtfleet/core/plugins/module_utils"

    def foreign(each: Import) -> bool:
        if not each.file.is_relative_to(inside) or each.of(
            "ansible.module_utils", "libvirt", "libvirt_qemu", f"{CORE}.module_utils"
        ):
            return False
        return each.name.split(".")[0] not in sys.stdlib_module_names

    require_none(offenders(foreign), "module_utils travel to where a module runs: nothing else is there")


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_imports_point_down(name: str) -> None:
    if not ((ROOT / "api/virtfleet" / name).exists() or (ROOT / f"api/virtfleet/{name}.py").exists()):
        return  # a room not built yet

    def points_up(each: Import) -> bool:
        inside = each.name.split(".")[1] if each.of("virtfleet") and "." in each.name else ""
        return room(each.file) == name and inside in FORBIDDEN[name]

    require_none(offenders(points_up), f"{name} may not know {', '.join(sorted(FORBIDDEN[name]))}")


def test_the_rules_see_what_they_are_meant_to_see(tmp_path: Path) -> None:
    """The reader itself: plain, from, relative, guarded, inside functions; type checking left out."""
    file = ROOT / "api/virtfleet/routes/vms.py"
    text = (
        "import os.path\nfrom typing import TYPE_CHECKING\nfrom . import hosts\nfrom ..services.vms import create\n"
        "if TYPE_CHECKING:\n    import libvirt\n"
        "try:\n    import libvirt as l\nexcept ImportError:\n    pass\n"
        "def f():\n    from virtfleet import jobs\n"
    )

    class Fake(type(file)):  # type: ignore[misc] # a path of the tree with a text of ours
        def read_text(self, *_: object, **__: object) -> str:
            return text

    found = {(each.name, each.guarded) for each in imports_of(Fake(file))}
    assert found == {
        ("os.path", False),
        ("typing.TYPE_CHECKING", False),
        ("virtfleet.routes.hosts", False),
        ("virtfleet.services.vms.create", False),
        ("libvirt", True),
        ("virtfleet.jobs", False),
    }
