"""What a host's child works out by itself."""

import subprocess
import sys
import threading
import xml.etree.ElementTree as ET

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import open_host, opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.observer import child
from virtfleet.observer.child import busy_percent


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, (10.0, 100.0), None),
        ((10.0, 100.0), (15.0, 110.0), 50.0),
        ((10.0, 100.0), (10.0, 110.0), 0.0),
        ((10.0, 100.0), (21.0, 110.0), 100.0),  # counters that are not read at the same instant
        ((10.0, 100.0), (9.0, 110.0), 0.0),
        ((10.0, 100.0), (1.0, 5.0), None),  # the host has started anew
        ((10.0, 100.0), (10.0, 100.0), None),
        ((10.0, 100.0), (None, None), None),
        ((None, None), (15.0, 110.0), None),
    ],
)
def test_the_load_is_what_was_busy_of_what_has_passed(before: object, after: object, expected: float | None) -> None:
    assert busy_percent(before, after) == expected  # type: ignore[arg-type]


def test_a_child_whose_parent_is_already_gone_ends_at_once() -> None:
    arguments = ["test:///default", "5", "1", "1"]
    command = [sys.executable, "-m", "virtfleet.observer.child", *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_a_child_is_small() -> None:
    code = "import sys, virtfleet.observer.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"sqlalchemy", "alembic", "pydantic", "flask", "ansible", "httpx", "asyncio"}
    assert not heavy & set(loaded)


def machine_xml(name: str) -> str:
    domain = ET.Element("domain", type="test")
    ET.SubElement(domain, "name").text = name
    ET.SubElement(domain, "memory").text = "1024"
    ET.SubElement(ET.SubElement(domain, "os"), "type").text = "hvm"
    return ET.tostring(domain, encoding="unicode")


class EnoughError(Exception):
    """The test has heard what it wanted, or will not hear it any more."""


def test_whole_reports_come_also_where_events_never_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    over = threading.Event()

    def never_leave_it_alone() -> None:
        # Within one process the test driver has one host, whoever opens it.
        with opened_host("test:///default", Deadline(30)) as host:
            machine = host.lookupByName("test")
            # So many that something happens during every look at them.
            others = [host.defineXML(machine_xml(f"other{number}")) for number in range(300)]
            while not over.wait(0.001):
                machine.suspend()
                machine.resume()
            for other in others:
                other.undefine()

    restless = threading.Thread(target=never_leave_it_alone)

    def hear(kind: str, **_values: object) -> None:
        told.append(kind)
        if told == ["reading", "reading", "report"]:
            restless.start()
        if told.count("report") == 3 or told.count("machines") == 200:
            raise EnoughError

    opened: list[libvirt.virConnect] = []

    def opening(uri: str, deadline: Deadline) -> libvirt.virConnect:
        opened.append(open_host(uri, deadline))
        return opened[0]

    monkeypatch.setattr(child, "open_host", opening)
    monkeypatch.setattr(child, "tell", hear)
    monkeypatch.setattr(child, "GATHER_SECONDS", 0.02)
    try:
        with pytest.raises(EnoughError):
            child.Watch("test:///default", 30.0, 0.5).run()
    finally:
        over.set()
        restless.join()
        # The child leaves that to its end. Here the host of the test driver would stay as it is for the tests to come.
        opened[0].unregisterCloseCallback()
        opened[0].close()
    assert told.count("report") == 3
    assert told.count("machines") > 3
