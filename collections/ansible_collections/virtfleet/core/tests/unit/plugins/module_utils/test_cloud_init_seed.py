# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NoCloud seed: an ISO image that other programs read, with YAML that means what was given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.virtfleet.core.plugins.module_utils import seed
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError

MAC = "52:54:00:AA:00:01"


def files(**more: object) -> dict[str, bytes]:
    given = {"instance_id": "i-1", "hostname": "web1", "ssh_keys": [], "user_data": None, "nics": []} | more
    return seed.files(**given)  # type: ignore[arg-type]


def extracted(image: bytes, folder: Path) -> dict[str, bytes]:
    """Read an image with a program that knows nothing of ours."""
    (folder / "seed.iso").write_bytes(image)
    out = folder / "out"
    command = ["xorriso", "-osirrox", "on", "-indev", str(folder / "seed.iso"), "-extract", "/", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_another_program_reads_every_file_as_it_was(tmp_path: Path) -> None:
    content = files(user_data="#cloud-config\n" + "x" * 100_000, nics=[seed.Nic(MAC)])
    image = seed.image(content)
    assert extracted(image, tmp_path) == content
    told = subprocess.run(["blkid", "-p", str(tmp_path / "seed.iso")], capture_output=True, text=True, check=True)
    assert 'LABEL="cidata"' in told.stdout


def test_an_image_is_large_enough_for_programs_that_look_for_labels() -> None:
    assert len(seed.image(files())) >= 0x11000


def test_equal_content_makes_an_equal_image() -> None:
    assert seed.image(files()) == seed.image(files())


def test_a_fixed_address_is_written_as_network_config_version_2() -> None:
    nic = seed.Nic(MAC, "10.0.0.5/24", "10.0.0.1", ("10.0.0.2",))
    read = yaml.safe_load(files(nics=[nic])["network-config"])
    assert read["version"] == 2
    assert read["ethernets"]["eth0"] == {
        "match": {"macaddress": MAC.lower()},
        "set-name": "eth0",
        "addresses": ["10.0.0.5/24"],
        "gateway4": "10.0.0.1",
        "nameservers": {"addresses": ["10.0.0.2"]},
    }


def test_without_an_address_it_is_dhcp() -> None:
    assert yaml.safe_load(files(nics=[seed.Nic(MAC)])["network-config"])["ethernets"]["eth0"]["dhcp4"] is True


@pytest.mark.parametrize("text", ["{{ 7*7 }}", 'a": b\n  c: "d', "é 😀", "x: [y", "# no comment", "'\\\"", "z" * 5000])
def test_hostile_text_is_the_same_text_in_yaml(text: str) -> None:
    read = yaml.safe_load(files(hostname=text, ssh_keys=[text, text])["meta-data"])
    assert read == {"instance-id": "i-1", "local-hostname": text, "public-keys": [text, text]}


def test_user_data_are_passed_on_byte_by_byte() -> None:
    text = "#!/bin/sh\necho {{ x }} \t é\n"
    assert files(user_data=text)["user-data"] == text.encode()


@pytest.mark.parametrize("address", ["10.0.0.5", "10.0.0.5/33", "x", '10.0.0.5/24"\nevil: true', ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(VirtfleetError) as refused:
        files(nics=[seed.Nic(MAC, address)])
    assert refused.value.code == "invalid"
