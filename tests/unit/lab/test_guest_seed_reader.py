"""The guest's reader of NoCloud files, against a real YAML parser (here with this machine's awk, there busybox's)."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from virtfleet.lab.guest_image import build

READER = Path(build.__file__).parent / "rootfs/usr/lib/tiny/flatten.awk"

NETWORK = {
    "version": 2,
    "ethernets": {
        "net0": {
            "match": {"macaddress": "52:54:00:aa:bb:cc"},
            "addresses": ["10.78.0.5/24", "fd00::5/64"],
            "routes": [{"to": "0.0.0.0/0", "via": "10.78.0.1"}],
            "nameservers": {"addresses": ["1.1.1.1"], "search": []},
            "dhcp4": False,
        }
    },
}
CLOUD_CONFIG = """#cloud-config
hostname: "web-1"   # a comment
ssh_authorized_keys:
  - ssh-ed25519 AAAA someone@somewhere
  - 'it''s "quoted" # and no comment'
users:
- name: a
  keys: [ssh-ed25519 CC x, "ssh-rsa D\\"D"]
- default
write_files:
- path: /etc/a
  content: |
    line 1: x
      - indented
    # no comment

    last\\n
  permissions: '0644'
- {path: /b, content: "a\\nb", nested: {deep: [1, [2, 3]]}}
folded: >-
  one
  two
runcmd:
 - [ sh, -c, "echo 'a b' > /y" ]
 - - ls
   - -l
empty:
last: yes it is
"""


def flattened(folder: Path, text: str) -> dict[str, str]:
    file = folder / "data"
    file.write_text(text)
    done = subprocess.run(["awk", "-f", str(READER), str(file)], capture_output=True, text=True, check=True, timeout=10)
    pairs = (line.split("\t", 1) for line in done.stdout.splitlines())
    return {
        path.removeprefix("data/"): value.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
        for path, value in pairs
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in inside:
            yield from leaves(child, f"{path}/{key}" if path else str(key))
    elif value is not None:
        yield path, str(value)


@pytest.mark.parametrize(
    "text",
    [
        CLOUD_CONFIG,
        CLOUD_CONFIG.replace("\n", "\r\n"),
        json.dumps(NETWORK),
        json.dumps(NETWORK, indent=2),
        yaml.safe_dump(NETWORK),
        yaml.safe_dump(NETWORK, default_flow_style=True, width=40),
    ],
    ids=["cloud-config", "line-ends-of-dos", "json", "json-indented", "yaml", "yaml-flow"],
)
def test_it_reads_what_a_yaml_parser_reads(tmp_path: Path, text: str) -> None:
    wanted = dict(leaves(yaml.load(text, yaml.BaseLoader)))
    wanted.pop("empty", None)
    assert flattened(tmp_path, text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "{",
        "[a}b]",
        "{a]b}",
        "{,:}",
        '["',
        "{'",
        "a: [b: c, ]]",
        "- - -",
        ": :",
        "a: |",
        "\t- x",
        "{{{{[[[[",
        "]}",
        "[,,]",
        "",
    ],
)
def test_broken_input_comes_to_an_end(tmp_path: Path, text: str) -> None:
    flattened(tmp_path, text)
