"""Hostile text in every field of every route: the API's own specification is walked, so that new fields come along."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from virtfleet import database, s1_files, settings
from virtfleet.app import PREFIX, create_app
from virtfleet.jobs import attempts
from virtfleet.models import Job, Vm, Volume
from virtfleet.s1_files import S1FileError
from virtfleet.services import auth
from werkzeug.test import TestResponse

from tests.api.fleet_rows import add_host, furnish
from tests.hostile import CANARY, LISTED, TEXTS

_numbers = itertools.count(1)
# A body that is taken, where the required fields alone are not enough: its fields are then made hostile one at a time.
BODIES: dict[str, Callable[[int], dict[str, Any]]] = {
    "VmIn": lambda number: {"name": f"vm{number}", "memory": "16MiB", "disk": "1MiB", "vcpus": 1},
    "HostIn": lambda number: {"uri": f"10.1.{number // 250}.{number % 250}"},
    "ZoneIn": lambda number: {"name": f"zone{number}"},
    "NetworkIn": lambda number: {"name": f"net{number}", "source": "br1", "cidr": "10.8.0.0/24"},
    "ImageIn": lambda number: {"source": str(settings.load().home.parent / "tiny.img"), "name": f"image{number}"},
    "FlavorIn": lambda number: {"name": f"flavor{number}", "vcpus": 1, "memory": "16MiB", "disk": "1MiB"},
    "VolumeIn": lambda number: {"name": f"volume{number}", "size": "1MiB", "host": "host1"},
    "VmAction": lambda _number: {"action": "start"},
}
REFERENCES = {"/hosts/": "host1", "/vms/": "standing", "/volumes/": "kept"}
"""What is there to ask about; elsewhere it is `tiny`, which images and flavors may be called."""
HEADERS = ("Authorization", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Accept", "Content-Type")
S1_PARAMETERS = ("name", "instance_type", "image_id", "vmid")


class Asker:
    """Asks as the administrator, and says of every answer what must hold of it."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {auth.token_file().read_text().strip()}"}

    def __call__(self, method: str, path: str, **more: Any) -> TestResponse:
        headers = {**self.headers, **more.pop("headers", {})}
        answer = self.client.open(path, method=method.upper(), headers=headers, **more)
        about = (method, path, more, answer.status_code, answer.data[:500])
        assert answer.status_code < 500, about
        if answer.status_code >= 400 and path.startswith(PREFIX):
            assert answer.mimetype == "application/problem+json", about
            told = json.loads(answer.data)
            assert told["code"] and told["detail"], about
            assert len(answer.data) < 20_000, about
        return answer


@pytest.fixture
def ask(fleet_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    """The API over a furnished fleet. Afterwards nothing was executed, and all of it can still be read."""
    monkeypatch.setenv("VIRTFLEET_S1_ENABLED", "1")
    monkeypatch.setenv("VIRTFLEET_S1_WAIT_SECONDS", "0.1")
    settings.load.cache_clear()
    auth.first_start()
    add_host(1, memory_bytes=2**44, cpus=4096)
    furnish(tmp_path / "tiny.img")
    asker = Asker(create_app().test_client())
    asker("post", f"{PREFIX}/vms", json={"name": "standing", "memory": "16MiB", "disk": "1MiB"})
    asker("post", f"{PREFIX}/volumes", json={"name": "kept", "size": "1MiB", "host": "host1"})
    with database.write() as session:
        session.query(Vm).one().state = "running"
        session.query(Volume).one().state = "ready"
        session.query(Job).where(Job.kind == "vm.create").one().state = "succeeded"
    yield asker
    assert not CANARY.exists()
    for path, operations in specification(asker)["paths"].items():
        if "get" in operations and "{" not in path and not path.endswith("z"):
            assert asker("get", path).status_code == 200, path
    with database.read() as session:
        for job in session.query(Job):
            # What a job would hand to Ansible can be written, whatever it is.
            assert attempts.dump(job.variables)


def specification(ask: Asker) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(ask("get", f"{PREFIX}/openapi.json").data)
    return spec


def body_of(schemas: dict[str, Any], schema: str | None) -> dict[str, Any]:
    """Return a body that is right but for what is going to be put into it."""
    if schema is None:
        return {}
    if schema in BODIES:
        return BODIES[schema](next(_numbers))
    described = schemas[schema]
    return {field: example(described["properties"][field]) for field in described.get("required", [])}


def example(about: dict[str, Any]) -> Any:
    """Return something that a field may be, as far as its type tells."""
    for known in ("enum", "examples"):
        if about.get(known):
            return about[known][0]
    plain = {"integer": about.get("minimum", 1), "number": 1.0, "boolean": False, "array": [], "object": {}}
    return about.get("const", plain.get(about.get("type", ""), "x"))


def filled(path: str, part: str | None = None) -> str:
    """Return a path with something in the place of its parameters."""
    there = next((ref for place, ref in REFERENCES.items() if place in path), "tiny")
    return re.sub(r"\{\w+\}", part if part is not None else there, path)


def operations(ask: Asker) -> Iterator[tuple[str, str, dict[str, Any], str | None]]:
    """Yield (method, path, operation, name of the body's schema) of all routes."""
    for path, methods in specification(ask)["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody")
            schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] if body else None
            yield method, path, operation, schema


def shapes(text: str) -> list[Any]:
    """Return a text as it is, and inside of what a field may take."""
    return [text, [text], {text: text}, {"name": text}, {"name": "linear", "requirement": text, "weights": {text: 1}}]


def kinds(schema: dict[str, Any]) -> set[str]:
    return {each.get("type", "") for each in schema.get("anyOf", [schema])}


def test_every_field_of_every_body(ask: Asker) -> None:
    schemas = specification(ask)["components"]["schemas"]
    taking = [(method, path, schema) for method, path, _operation, schema in operations(ask) if schema is not None]
    for text, (method, path, schema) in itertools.product(TEXTS.values(), taking):
        for field, about in schemas[schema]["properties"].items():
            for value in shapes(text) if kinds(about) & {"array", "object", ""} else [text]:
                ask(method, filled(path), json={**body_of(schemas, schema), field: value})
        # A field that there is not, too.
        assert ask(method, filled(path), json={**body_of(schemas, schema), text: text}).status_code >= 400


def test_values_of_other_kinds_in_every_field(ask: Asker) -> None:
    schemas = specification(ask)["components"]["schemas"]
    taking = [(method, path, schema) for method, path, _operation, schema in operations(ask) if schema is not None]
    for value, (method, path, schema) in itertools.product(LISTED, taking):
        for field in schemas[schema]["properties"]:
            ask(method, filled(path), json={**body_of(schemas, schema), field: value})
        ask(method, filled(path), json=value)


def test_every_path_query_and_header(ask: Asker) -> None:
    schemas = specification(ask)["components"]["schemas"]
    # Nothing is ready here, and readyz says so.
    asked = [each for each in operations(ask) if not each[1].endswith("/readyz")]
    for text, (method, path, operation, schema) in itertools.product(TEXTS.values(), asked):
        part = quote(text.encode("utf-8", "surrogatepass"), safe="")
        body = {"json": body_of(schemas, schema)} if schema else {}
        if "{" in path:
            ask(method, filled(path, part), **body)
        if method == "get":
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    ask(method, filled(path) + f"?{parameter['name']}={part}")
            ask(method, filled(path) + f"?{part}={part}")
    for text, header in itertools.product(TEXTS.values(), HEADERS):
        sendable = "".join(c for c in text if c.isprintable() and ord(c) < 256)
        ask("post", f"{PREFIX}/zones", json={"name": f"zone{next(_numbers)}"}, headers={header: sendable})
        ask("get", f"{PREFIX}/hosts/host1", headers={header: sendable})


def test_every_parameter_of_s1(ask: Asker) -> None:
    """HTTP 200 with 0 for each, as its contract says."""
    rules = [rule for rule in ask.client.application.url_map.iter_rules() if rule.endpoint.startswith("s1.")]
    assert len(rules) == 5
    for given, rule in itertools.product(TEXTS.values(), rules):
        text = quote(given.encode("utf-8", "surrogatepass"), safe="")
        for hostile in S1_PARAMETERS:
            good = {"name": "a b" if hostile != "name" else "", "instance_type": "1", "image_id": "100", "vmid": "1"}
            query = "&".join(f"{key}={text if key == hostile else quote(value)}" for key, value in good.items())
            answer = ask("get", f"{rule.rule}?{query}")
            assert answer.status_code == 200
            told = json.loads(answer.data)
            assert told.get("vmid", 0) == 0
            assert told.get("status", 0) == 0


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_of_the_three_files_of_s1(tmp_path: Path, name: str) -> None:
    """A line that cannot be used is named, and nothing else happens."""
    text = TEXTS[name].encode("utf-8", "surrogatepass")
    image = tmp_path / "tiny.img"
    image.write_bytes(b"\0" * 510 + b"\x55\xaa")
    kind = b'{"tid": 1, "cpu": 1, "ram": 512, "disk": 1}'
    good = {"pm": b"10.0.0.1\n", "images": str(image).encode() + b"\n", "types": b'{"types": [' + kind + b"]}"}
    encoded = json.dumps(TEXTS[name]).encode()
    bad = [
        *({"pm": good["pm"] + line} for line in (text, b"root@" + text, b"qemu+ssh://" + text + b"/system")),
        *({"images": good["images"] + line} for line in (text, b"/" + text, str(tmp_path).encode() + b"/" + text)),
        *({"types": line} for line in (text, b'{"types": ' + encoded + b"}", b'{"types": [{' + encoded + b": 1}]}")),
        *({"types": good["types"].replace(b'"tid": 1', b'"tid": ' + value)} for value in (encoded, b"1" * 5000)),
        {"types": b"[" * 100_000},
    ]
    for files in bad:
        paths = []
        for which, content in {**good, **files}.items():
            (tmp_path / which).write_bytes(content)
            paths.append(tmp_path / which)
        try:
            read = s1_files.read(*paths)
        except S1FileError as error:
            assert str(tmp_path) in str(error)
            assert len(str(error)) < 2000
        else:
            # Only what says nothing more than the good lines, or is one by chance.
            assert set(read.hosts) <= {"10.0.0.1", "yes", "root@yes", "1e999", "root@1e999"} | {
                f"qemu+ssh://{word}/system" for word in ("yes", "1e999")
            }
            assert [each.path for each in read.images] == [str(image)]
    assert not CANARY.exists()
