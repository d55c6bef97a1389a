"""Zones, networks, addresses, tokens and secrets, on a real SQLite database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from virtfleet import database
from virtfleet.errors import Problem
from virtfleet.ids import new_id
from virtfleet.models import Host, Vm
from virtfleet.services import addresses, auth, ledger, secrets, zones


@pytest.fixture
def session(fleet_home: Path) -> Iterator[Session]:
    auth.first_start()
    with database.write() as opened:
        yield opened


def machine(session: Session, who: auth.Principal, name: str) -> Vm:
    zone = zones.ensure(session, who, "default")
    host = session.query(Host).first()
    if host is None:
        host = Host(
            id=new_id("hst"),
            number=1,
            name="h1",
            uri="test:///default",
            zone_id=zone.id,
            vcpu_ratio=None,
            error=None,
            observed_at=None,
        )
        session.add(host)
        session.flush()
    vm = Vm(
        id=new_id("vm"),
        number=ledger.next_number(session, "vm"),
        uuid=name,
        name=name,
        libvirt_name=name,
        zone_id=zone.id,
        host_id=host.id,
        project_id=who.project_id,
        owner_id=who.user_id,
        vcpus=1,
        memory_bytes=1,
        disk_bytes=1,
        pool="default",
        policy="bin_packing",
    )
    session.add(vm)
    session.flush()
    return vm


def test_each_machine_gets_its_own_address_until_none_is_left(session: Session) -> None:
    who = auth.system(session)
    zones.create(session, who, "default")
    network = zones.add_network(
        session,
        who,
        name="guests",
        zone="default",
        kind="bridge",
        source="vmbr0",
        cidr="10.78.0.0/29",
        gateway="10.78.0.1",
        first="10.78.0.1",
        last="10.78.0.3",
    )
    given = [addresses.reserve(session, machine(session, who, f"vm{i}"), network) for i in range(2)]
    assert [row.address for row in given] == ["10.78.0.2", "10.78.0.3"]
    assert len({row.mac for row in given}) == 2
    with pytest.raises(Problem) as caught:
        addresses.reserve(session, machine(session, who, "one-too-many"), network)
    assert caught.value.code == "no_capacity"


def test_a_network_whose_gateway_lies_outside_is_refused(session: Session) -> None:
    who = auth.system(session)
    zones.create(session, who, "default")
    with pytest.raises(Problem) as caught:
        zones.add_network(
            session,
            who,
            name="n",
            zone="default",
            kind="bridge",
            source="vmbr0",
            cidr="10.78.0.0/24",
            gateway="10.9.0.1",
        )
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "{{ 1 }}", "a\0b", "x" * 5000, "<a/>", "-x"])
def test_a_hostile_zone_name_is_refused(session: Session, name: str) -> None:
    with pytest.raises(Problem) as caught:
        zones.create(session, auth.system(session), name)
    assert caught.value.code == "invalid"


def test_numbers_are_never_given_twice(session: Session) -> None:
    assert [ledger.next_number(session, "image") for _ in range(2)] == [100, 101]
    assert ledger.next_number(session, "image", wanted=200) == 200
    assert ledger.next_number(session, "image") == 201


def test_the_first_token_works_and_another_does_not(session: Session) -> None:
    token = auth.token_file().read_text().strip()
    assert auth.token_file().stat().st_mode & 0o777 == 0o600
    assert auth.authenticate(session, token).admin
    with pytest.raises(Problem) as caught:
        auth.authenticate(session, token + "x")
    assert caught.value.code == "unauthorized"


def test_a_secret_is_unreadable_in_the_database(session: Session, fleet_home: Path) -> None:
    reference = secrets.keep(session, auth.system(session), "user data", "MARKER-42")
    session.flush()
    assert secrets.reveal(session, reference) == b"MARKER-42"
    files = [path for path in fleet_home.iterdir() if path.is_file()]
    assert not any(b"MARKER-42" in path.read_bytes() for path in files)


def test_an_answer_is_given_again_for_the_same_key_only(session: Session) -> None:
    who = auth.system(session)
    ledger.remember(session, who, "k", "POST /vms", {"a": 1}, answer=ledger.Answer(202, {"job": 1}))
    session.flush()
    again = ledger.recall(session, who, "k", "POST /vms", {"a": 1})
    assert again is not None and again.status == 202
    with pytest.raises(Problem) as caught:
        ledger.recall(session, who, "k", "POST /vms", {"a": 2})
    assert caught.value.code == "idempotency_mismatch"
