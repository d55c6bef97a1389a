"""What may name a host: addresses and libvirt URIs, and nothing that makes libvirt run or read something else."""

import pytest
from virtfleet import host_uris
from virtfleet.errors import Problem


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("10.0.0.5", "qemu+ssh://10.0.0.5/system"),
        ("root@10.0.0.5", "qemu+ssh://root@10.0.0.5/system"),
        ("h1.example", "qemu+ssh://h1.example/system"),
        ("10.0.0.5:2222", "qemu+ssh://10.0.0.5:2222/system"),
        ("fd00::1", "qemu+ssh://[fd00::1]/system"),
        ("root@fd00::1", "qemu+ssh://root@[fd00::1]/system"),
        ("qemu+tcp://10.0.0.5/system", "qemu+tcp://10.0.0.5/system"),
        ("qemu+tls://[fd00::1]:16514/system", "qemu+tls://[fd00::1]:16514/system"),
        ("qemu+ssh://root@h1/system?keyfile=/etc/keys/id", "qemu+ssh://root@h1/system?keyfile=/etc/keys/id"),
        ("qemu:///system", "qemu:///system"),
        ("test:///default", "test:///default"),
    ],
)
def test_what_is_taken(given: str, uri: str) -> None:
    assert host_uris.check(given) == uri


@pytest.mark.parametrize(
    "given",
    [
        *("", " ", "a b", "h1\n", "h1\0", "😀", "x" * 5000, "-oProxyCommand=touch", "root@-oProxyCommand=x"),
        *("qemu+ext:///system?command=/bin/sh", "qemu+ssh://h/system?command=/bin/sh", "qemu+ssh://h/system?netcat=x"),
        *("qemu+ssh://h/system?socket=/x", "qemu+ssh://h/system?keyfile=-x", "qemu+ssh://h/system?keyfile=a%20b"),
        *("esx://h/", "lxc:///", "qemu+ssh:///system", "qemu://h/system", "qemu+ssh://u:secret@h/system"),
        *("qemu+ssh://h/../x", "qemu+ssh://h/system#x", "qemu+ssh://h:99999/system", "{{ 7*7 }}", "$(id)", "h;id"),
    ],
)
def test_what_is_refused(given: str) -> None:
    with pytest.raises(Problem) as refused:
        host_uris.check(given)
    assert refused.value.code == "invalid"
    assert len(str(refused.value)) < 400


def test_a_host_without_a_name_is_called_as_its_uri_says() -> None:
    assert host_uris.name_from("qemu+ssh://root@10.0.0.5/system") == "10.0.0.5"
    assert host_uris.name_from("qemu:///system") == "localhost"
