"""The playbooks that make hosts of plain Debian machines, keep them and undo it, run by hand on instances."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.full.by_hand import ByHand, counts
from tests.instances.group import Group

# Packages are installed and instances rebooted, one after the other.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

ANSWER_SECONDS = 60.0
REBOOT = {"virtfleet_reboot": "always", "virtfleet_upgrade": False}  # no registry is reached from an instance


class Site:
    """Two plain machines, and a person with `ansible-playbook`."""

    def __init__(self, instances: list[dict[str, Any]], folder: Path) -> None:
        self.addresses = {each["instance"]: each["address"] for each in instances}
        self._groups = folder / "groups.yml"
        self.by_hand = ByHand([instances[0]["inventory"], self._groups])
        self._pki = folder / "pki"
        self.describe()

    def describe(self, **of_the_first: Any) -> None:
        """Write what the inventory says about all of them, and about the first one alone."""
        hosts: dict[str, dict[str, Any]] = {name: {} for name in self.addresses}
        hosts["host-a"] = of_the_first
        # The kernel under the instances has no AppArmor.
        variables = {"hypervisor_pki": str(self._pki), "hypervisor_security_driver": "none"}
        self._groups.write_text(yaml.safe_dump({"hypervisors": {"hosts": hosts, "vars": variables}}))

    def play(self, playbook: str, *words: str, code: int = 0) -> str:
        """Run a playbook about hosts; return what it printed."""
        return self.by_hand.play(f"host/{playbook}", *words, code=code)

    def uuid(self, name: str) -> str:
        """Return the host's UUID, read over TLS with the site's certificate. Raises VirtfleetError."""
        uri = f"qemu+tls://{self.addresses[name]}/system?pkipath={self._pki}"
        with opened_host(uri, Deadline(ANSWER_SECONDS)) as connection:
            found = re.search(r"<uuid>([^<]+)</uuid>", connection.getCapabilities())
        assert found
        return found[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    group = Group("host-playbooks")
    with group.alone():
        try:
            yield Site(group.up(["host-a", "host-b"]), tmp_path_factory.mktemp("site"))
        finally:
            group.down()


def test_hosts_are_made_kept_and_undone_one_at_a_time(site: Site) -> None:
    # A host that cannot be one stops it all before the next is touched.
    site.describe(hypervisor_reserved_vcpus=4096)
    said = site.play("prepare", code=2)
    assert "Failed to make host-a a host" in said
    assert counts(said, "host-a")["changed"] == 0
    assert not counts(said, "host-b")

    # Corrected, the same command goes on.
    site.describe()
    said = site.play("prepare")
    assert counts(said, "host-a")["changed"] > 0
    assert counts(said, "host-b")["changed"] > 0
    assert site.uuid("host-a") != site.uuid("host-b")

    # Nothing is left to do, and check mode says the same.
    said = site.play("prepare", "--check")
    assert [counts(said, name)["changed"] for name in site.addresses] == [0, 0]

    # Maintenance: off and on again, and a guest starts.
    said = site.play("maintenance", "-e", "virtfleet_targets=host-a", "-e", json.dumps(REBOOT))
    assert counts(said, "host-a")["failed"] == 0
    assert site.uuid("host-a")

    # Nobody is removed who was not named; who was named is no host any more, and the other one still is.
    assert "none was named" in site.play("remove", code=2)
    site.play("remove", "-e", "virtfleet_targets=host-b")
    with pytest.raises(VirtfleetError):
        site.uuid("host-b")
    assert site.uuid("host-a")
