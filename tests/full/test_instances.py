"""The instances on which roles are tested: up, reached, robust against crashes, gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from virtfleet.lab import links, processes
from virtfleet.lab.errors import LabError
from virtfleet.lab.layout import identity

from tests.checks.runner import ROOT
from tests.instances.group import Group, groups

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]  # the root folder may have to be built first


@pytest.fixture
def pair() -> Iterator[tuple[Group, Group]]:
    found = Group("trial-one"), Group("trial-two")
    with found[0].alone(), found[1].alone():
        yield found
        for group in found:
            group.down()


def inside(instance: dict[str, Any], *words: str) -> str:
    options = [
        "-i",
        instance["identity_file"],
        "-o",
        f"UserKnownHostsFile={instance['known_hosts']}",
        "-o",
        "BatchMode=yes",
    ]
    argv = ["ssh", *options, f"{instance['user']}@{instance['address']}", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def left(group: Group) -> list[str]:
    lab_id = identity(group.folder)
    running = [f"{name}: {pids}" for name, pids in processes.marked(lab_id).items()]
    return [*running, *links.interfaces(f"vf{lab_id}"), *links.namespaces(f"vf{lab_id}")]


def test_two_groups_live_side_by_side(pair: tuple[Group, Group]) -> None:
    one, two = (group.up(["plain"])[0] for group in pair)
    assert one["address"] != two["address"]
    for instance in (one, two):
        assert inside(instance, "cat", "/proc/1/comm") == "systemd"
        assert inside(instance, "hostname") == "plain"
    assert pair[0].down()
    assert left(pair[0]) == []
    assert inside(two, "systemctl", "is-system-running") in ("running", "degraded")


def test_what_a_crash_left_is_in_nobodys_way(pair: tuple[Group, Group]) -> None:
    group = pair[0]
    group.up(["plain"])
    for pids in processes.marked(identity(group.folder)).values():
        for pid in pids:
            if processes.arguments(pid)[:1] == ["sh"]:  # boot.sh, which would have cleaned up
                os.kill(pid, signal.SIGKILL)
    again = group.up(["plain"])[0]
    assert inside(again, "hostname") == "plain"
    assert group.down()
    assert not group.down()
    assert left(group) == []
    assert group.name not in groups()


def test_an_instance_may_have_a_kernel_of_its_own(pair: tuple[Group, Group]) -> None:
    instance = pair[0].up(["plain"], machines=True)[0]
    assert inside(instance, "cat", "/proc/1/comm") == "systemd"
    assert inside(instance, "hostname") == "plain"
    assert inside(instance, "uname", "-r") != os.uname().release
    inside(instance, "modprobe", "-a", "nfsd", "nfsv4")
    assert pair[0].down()
    assert left(pair[0]) == []


def test_runs_of_one_checkout_wait_for_each_other() -> None:
    lines = (
        "from tests.instances.group import Group",
        "print('asking', flush=True)",
        "with Group('trial-three').alone(): pass",
    )
    argv = [sys.executable, "-c", "\n".join(lines)]
    with Group("trial-three").alone():
        other = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asking\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=2)
    assert other.wait(timeout=60) == 0


@pytest.mark.parametrize("names", [[], ["same", "same"], ["../etc"], ["UPPER"]])
def test_names_that_cannot_be_are_refused(names: list[str]) -> None:
    with pytest.raises(LabError):
        Group("trial-one").up(names)


def test_a_group_needs_a_name() -> None:
    with pytest.raises(LabError):
        Group("../../etc")
