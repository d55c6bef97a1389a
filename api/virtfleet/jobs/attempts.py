"""What one attempt of a job is given: variables, an inventory, settings of Ansible; the same to replay it by hand.

What a person typed must stay text. ansible-core renders extra variables and inventory values as templates, so both are
files written by one dumper here that tags every string `!unsafe`; ansible-runner's own arguments for them lose that tag
and are never used.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.orm import Session

from virtfleet import settings
from virtfleet.jobs import kinds
from virtfleet.models import Host, Job

MOST_FORKS = 50
PROGRESS_FILE = "progress"
"""In the folder of an attempt: a line that tells how far the module at work is, if it says so."""
DIR = "{dir}"
"""Stands for the folder of the files in what `replay_files` returns."""
VARIABLES_FOR_HOSTS = frozenset({"ansible_host", "ansible_port", "ansible_user"})
"""Connection variables that a registered host may set; others could make Ansible run a program of their choice."""
SECRET_ID = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class CannotRun(Exception):
    """An attempt cannot begin; `code`, the message and `hint` become the job's error."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Target:
    """A host as the inventory gets it."""

    name: str
    zone: str | None
    uri: str | None
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """All that one attempt of a job needs; made from the rows, so that no session is open while it runs."""

    job_id: str
    number: int
    attempt_id: str
    playbook: Path
    timeout: float
    variables: Mapping[str, Any]
    targets: tuple[Target, ...]
    secrets: Mapping[str, bytes]

    @property
    def folder(self) -> Path:
        """Return the private folder of the attempt."""
        return settings.load().runs / self.job_id / self.attempt_id


class _UnsafeDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every string, keys too, as `!unsafe` text, and nothing but plain data."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    # Half a surrogate pair is not text and cannot be written as UTF-8.
    whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    # ansible-core asks anew what an `!unsafe` scalar may mean, even quoted: `yes` would come out as true, and some MACs
    # as numbers of base 60. Text that can mean something else cannot hold a template, and goes untagged.
    tag = _MEANINGS.resolve(yaml.ScalarNode, whole, (True, False))
    if tag != _TEXT and "{" not in whole:
        return dumper.represent_scalar(_TEXT, whole, style='"')
    return dumper.represent_scalar("!unsafe", whole, style='"')


_MEANINGS = yaml.SafeLoader("")
_TEXT = "tag:yaml.org,2002:str"
_UnsafeDumper.add_representer(str, _represent_text)
_UnsafeDumper.add_multi_representer(str, _represent_text)


def dump(data: Any) -> str:
    """Write plain data as YAML in which no string can be a template. Raises yaml.YAMLError for anything not plain."""
    return yaml.dump(data, Dumper=_UnsafeDumper, width=1 << 30, sort_keys=False, default_flow_style=False)


def prepare(session: Session, job: Job) -> Attempt:
    """Read what the job's present attempt needs. Raises CannotRun when something of it is gone."""
    kind = kinds.KINDS.get(job.kind)
    if kind is None:
        message = f"This worker does not know jobs of kind {job.kind!r}."
        raise CannotRun("unknown_kind", message, "It is older than the API: restart the workers, then ask again.")
    hosts = {host.id: host for host in (session.get(Host, host_id) for host_id in job.host_ids) if host}
    missing = [host_id for host_id in job.host_ids if host_id not in hosts]
    if missing:
        raise CannotRun("not_found", f"The host {', '.join(missing)} is not registered any more.", "Ask again.")
    secrets: dict[str, bytes] = {}
    for secret_id in secret_ids(job.variables):
        try:
            secrets[secret_id] = kinds.read_secret(session, secret_id)
        except LookupError as error:
            message = f"A secret that the job needs cannot be read: {error.args[0] if error.args else error}."
            raise CannotRun("secret_missing", message, "Submit the request again, with its secrets.") from error
    return Attempt(
        job_id=job.id,
        number=job.attempt,
        attempt_id=job.attempt_id or "",
        playbook=kind.path,
        timeout=job.timeout,
        variables=job.variables,
        targets=_targets([hosts[host_id] for host_id in job.host_ids]),
        secrets=secrets,
    )


def secret_ids(variables: Any) -> list[str]:
    """Return the references to secrets in a job's variables."""
    found: dict[str, None] = {}

    def note(secret_id: str) -> str:
        found[secret_id] = None
        return secret_id

    _resolve(variables, note)
    return list(found)


def _resolve(value: Any, path_of: Callable[[str], str], attempt: int = 0, progress: str = "") -> Any:
    """Return a copy of `value`: every `{"$secret": id}` is the path of its file now, ATTEMPT and PROGRESS are those."""
    if value == kinds.ATTEMPT:
        return attempt
    if value == kinds.PROGRESS:
        return progress
    if isinstance(value, Mapping):
        if set(value) == {"$secret"}:
            secret_id = value["$secret"]
            if not isinstance(secret_id, str) or not SECRET_ID.fullmatch(secret_id):
                raise CannotRun("invalid", "A reference to a secret is not an id.", "Submit the request again.")
            return path_of(secret_id)
        return {key: _resolve(each, path_of, attempt, progress) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(each, path_of, attempt, progress) for each in value]
    return value


def _targets(hosts: Iterable[Host]) -> tuple[Target, ...]:
    return tuple(Target(host.name, host.zone.name, host.uri, host.variables) for host in hosts)


def inventory(targets: Sequence[Target]) -> dict[str, Any]:
    """Return the inventory of just these hosts, grouped by zone; without hosts it is this machine."""
    hosts: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for target in targets or [Target("localhost", None, None)]:
        values = {
            name: value
            for name, value in target.variables.items()
            if name.isidentifier() and (not name.startswith("ansible_") or name in VARIABLES_FOR_HOSTS)
        }
        if target.uri is not None:
            values["virtfleet_uri"] = target.uri
        if target.zone is not None:
            values["virtfleet_zone"] = target.zone
            if target.zone not in {"all", "ungrouped"}:
                groups.setdefault(target.zone, {"hosts": {}})["hosts"][target.name] = {}
        # Last, so that nothing a host brings along can change where and by what its modules run.
        values["ansible_connection"] = "local"
        values["ansible_python_interpreter"] = sys.executable
        hosts[target.name] = values
    return {"all": {"hosts": hosts, "children": groups} if groups else {"hosts": hosts}}


def command(folder: str, playbook: Path) -> list[str]:
    """Return the `ansible-playbook` command for the files in `folder`."""
    program = Path(sys.executable).with_name("ansible-playbook")
    return [
        *([str(program)] if program.exists() else [sys.executable, "-m", "ansible", "playbook"]),
        "-i",
        f"{folder}/inventory/hosts.yml",
        "-e",
        f"@{folder}/variables.yml",
        str(playbook),
    ]


def environment(folder: str, hosts: int) -> dict[str, str]:
    """Return every setting of Ansible that a run depends on, so that nobody's own configuration leaks into it."""
    share = settings.share()
    # An installed package lies beside `ansible_collections`, a checkout has it in `collections`.
    checkout = settings.checkout()
    collections = checkout / "collections" if checkout else Path(settings.__file__).resolve().parents[1]
    return {
        "ANSIBLE_CONFIG": f"{folder}/ansible.cfg",
        "ANSIBLE_HOME": f"{folder}/ansible",
        "ANSIBLE_LOCAL_TEMP": f"{folder}/ansible/tmp",
        "ANSIBLE_REMOTE_TEMP": f"{folder}/ansible/tmp",
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_ROLES_PATH": str(share / "roles"),
        "ANSIBLE_INVENTORY_ENABLED": "ansible.builtin.yaml",
        "ANSIBLE_TRANSFORM_INVALID_GROUP_CHARS": "ignore",
        "ANSIBLE_FORKS": str(max(5, min(hosts, MOST_FORKS))),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "LC_ALL": "C.UTF-8",
    }


def files(
    folder: str, targets: Sequence[Target], variables: Mapping[str, Any], attempt: int, path_of: Callable[[str], str]
) -> dict[str, str]:
    """Return name → text of the files of a run in `folder`; `path_of` tells where the file of a secret lies."""
    return {
        "ansible.cfg": "",
        "inventory/hosts.yml": dump(inventory(targets)),
        "variables.yml": dump(_resolve(variables, path_of, attempt, f"{folder}/{PROGRESS_FILE}")),
    }


def replay_files(job: Job, hosts: Sequence[Host], secrets: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what makes the same run by hand (GET /jobs/{id}/replay).

    Paths begin with `{dir}`, the folder the files are put into; where a person's text holds `{dir}`, it is written
    `\\x7Bdir}`, so that replacing `{dir}` in the files is safe. `secrets` (id → content) is None for those who may not
    read them; then the files name the secrets without their content.
    """
    here = "@dir@" + os.urandom(16).hex()
    folder_of_secrets = f"{here}/secrets"
    texts = files(
        here, _targets(hosts), job.variables, max(job.attempt, 1), lambda secret_id: f"{folder_of_secrets}/{secret_id}"
    )
    return {
        "playbook": kinds.KINDS[job.kind].playbook,
        "argv": command(DIR, kinds.KINDS[job.kind].path),
        "environment": environment(DIR, len(hosts)),
        "files": {name: text.replace(DIR, r"\x7Bdir}").replace(here, DIR) for name, text in texts.items()},
        "secrets": {} if secrets is None else {f"secrets/{name}": content for name, content in secrets.items()},
    }
