"""The modules for hosts, pools, volumes, networks and images on real libvirt hosts, with what goes wrong there."""

import contextlib
import gzip
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import volume as volumes
from ansible_collections.virtfleet.core.plugins.module_utils.module import Result
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline
from virtfleet.lab import Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2
# A call into a frozen daemon ends by keepalive after (3 + 1) x 3 s; the rest is for a busy machine.
FROZEN_SECONDS = 60.0


def call(module: str, uri: str, *, check: bool = False, **options: Any) -> Result:
    """Call `execute` of a module as Ansible would, without Ansible around it."""
    loaded = importlib.import_module(f"ansible_collections.virtfleet.core.plugins.modules.{module}")
    checked = ArgumentSpecValidator(loaded.SPEC, **loaded.RULES).validate({"uri": uri, **options})
    assert not checked.error_messages, checked.error_messages
    result: Result = loaded.execute(checked.validated_parameters, check, True)
    return result


def started(module: str, uri: str, **options: Any) -> subprocess.Popen[str]:
    """Start the same in a process of its own, which can be killed; it prints its error's code, or "changed: ..."."""
    program = (
        "import json, sys; from tests.lab.test_storage_modules import call, VirtfleetError\n"
        "try: print('changed:', call(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3])).changed)\n"
        "except VirtfleetError as error: print(error.code)"
    )
    command = [sys.executable, "-c", program, module, uri, json.dumps(options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def host(lab: Lab) -> Iterator[str]:
    """The URI of a host whose pools, networks and volumes are the same afterwards as before."""
    uri = lab.host("host1").uri
    before = inventory_of(uri)
    try:
        yield uri
    finally:
        lab.undo("host1")
        remove_volumes(uri, "default", "t-")
        remove_volumes(uri, "shared", "t-")
    assert inventory_of(uri) == before


def inventory_of(uri: str) -> dict[str, list[str]]:
    with opened_host(uri, Deadline(60)) as connection:
        pools = connection.listAllStoragePools()
        found = {f"pool {pool.name()}": sorted(v.name() for v in pool.listAllVolumes()) for pool in pools}
        found["networks"] = sorted(network.name() for network in connection.listAllNetworks())
        return found


def remove_volumes(uri: str, pool_name: str, prefix: str) -> None:
    with opened_host(uri, Deadline(60)) as connection:
        pool = connection.storagePoolLookupByName(pool_name)
        pool.refresh()
        for volume in pool.listAllVolumes():
            if volume.name().startswith(prefix):
                volume.delete()


def volumes_of(uri: str, pool_name: str) -> set[str]:
    with opened_host(uri, Deadline(60)) as connection:
        return {v.name() for v in connection.storagePoolLookupByName(pool_name).listAllVolumes()}


def wait_until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 64 MiB: 8 MiB that nothing compresses, a hole, and a boot sector's sign."""
    path = tmp_path / "t-disk.img"
    path.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom(8 * MIB))
    os.truncate(path, 64 * MIB)
    return path


def checksum_of(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_host_info_tells_what_the_host_has(lab: Lab) -> None:
    uri = lab.host("host1").uri
    host = call("host_info", uri, sample=0.2, shared_pools=["shared"]).values["host"]
    assert host["live"]
    assert host["name"] == "host1"
    kernel_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert host["memory"]["total_bytes"] >= kernel_kib * 1024 * 0.99
    assert 0 < host["memory"]["free_bytes"] <= host["memory"]["total_bytes"]
    assert 0 <= host["load"]["cpu_percent"] <= 100
    assert "qemu" in host["capabilities"]["domain_types"]
    pools = {pool["name"]: pool for pool in host["pools"]}
    assert (pools["default"]["shared"], pools["shared"]["shared"]) == (False, True)
    assert pools["default"]["capacity_bytes"] >= pools["default"]["available_bytes"] > 0


def test_host_info_of_two_hundred_machines_stays_cheap(lab: Lab) -> None:
    uri = lab.host("host2").uri
    document = (
        "<domain type='qemu'><name>t-{number}</name><memory unit='MiB'>64</memory><vcpu current='1'>2</vcpu>"
        "<metadata><v:vm xmlns:v='urn:virtfleet:vm:1'/></metadata><os><type>hvm</type></os></domain>"
    )
    with opened_host(uri, Deadline(60)) as connection:
        before = call("host_info", uri).values["host"]
        domains = [connection.defineXML(document.format(number=number)) for number in range(200)]
        try:
            began = time.monotonic()
            host = call("host_info", uri).values["host"]
            elapsed = time.monotonic() - began
        finally:
            for domain in domains:
                domain.undefine()
    assert host["vcpus"]["allocated"] - before["vcpus"]["allocated"] == 200
    assert host["memory"]["allocated_bytes"] - before["memory"]["allocated_bytes"] == 200 * 64 * MIB
    assert elapsed < 3  # 0.1 s on an idle machine


def test_a_pool_comes_and_goes(host: str) -> None:
    options: dict[str, Any] = {"name": "t-pool", "path": "/var/lib/libvirt/t-pool"}
    assert call("pool", host, check=True, **options).changed
    assert call("pool", host, **options).changed
    assert not call("pool", host, **options).changed
    moved: dict[str, Any] = {**options, "path": "/var/lib/libvirt/t-pool2"}
    with pytest.raises(VirtfleetError, match="restart: true"):
        call("pool", host, **moved)
    assert call("pool", host, restart=True, **moved).values["pool"]["path"] == moved["path"]
    # What cannot start leaves the pool as it was.
    with pytest.raises(VirtfleetError):
        call("pool", host, name="t-pool", path="/proc/nowhere", restart=True)
    assert not call("pool", host, **moved).changed
    call("volume", host, pool="t-pool", name="t-v", size="1MiB")
    with pytest.raises(VirtfleetError, match="it holds 1 volume"):
        call("pool", host, name="t-pool", state="absent")
    assert call("pool", host, name="t-pool", state="absent", delete_content=True).changed
    assert not call("pool", host, name="t-pool", state="absent").changed


def test_a_volume_grows_is_copied_and_never_shrinks(host: str) -> None:
    assert call("volume", host, pool="default", name="t-a", size="1GiB").changed
    assert (
        call("volume", host, pool="default", name="t-a", size="2GiB").values["volume"]["capacity_bytes"] == 2048 * MIB
    )
    assert not call("volume", host, pool="default", name="t-a", size="2GiB").changed
    with pytest.raises(VirtfleetError, match="never shrinks"):
        call("volume", host, pool="default", name="t-a", size="1GiB")
    copied = call("volume", host, pool="shared", name="t-b", copy_of={"pool": "default", "name": "t-a"}, size="3GiB")
    assert copied.values["volume"]["capacity_bytes"] == 3072 * MIB
    assert copied.values["volume"]["image"] is None
    over = call("volume", host, pool="default", name="t-c", image="t-a").values["volume"]
    assert over["image"].endswith("/t-a")
    with pytest.raises(VirtfleetError, match="lies over it"):
        call("volume", host, pool="default", name="t-a", state="absent")
    told = call("volume_info", host, pool="default").values["volumes"]
    assert [(each["name"], each["image"], each["users"]) for each in told if each["name"].startswith("t-")] == [
        ("t-a", None, []),
        ("t-c", over["path"].replace("t-c", "t-a"), []),
    ]
    everywhere = call("volume_info", host, name="t-b", users=False).values["volumes"]
    assert [(each["pool"], each["users"]) for each in everywhere] == [("shared", None)]


def test_a_file_is_uploaded_whole_and_its_holes_are_not(lab: Lab, host: str, disk: Path) -> None:
    made = call("volume", host, pool="shared", name="t-up", src=str(disk), size="80MiB").values["volume"]
    assert made["capacity_bytes"] == 80 * MIB
    assert made["allocation_bytes"] < 10 * MIB
    stored = lab.layout.shared / "t-up"
    with stored.open("rb") as file:
        assert file.read(64 * MIB) == disk.read_bytes()
    assert not call("volume", host, pool="shared", name="t-up", src=str(disk), size="80MiB").changed
    # Brought back, it is the same, holes and all; a file of another content is replaced, and only in earnest.
    down: dict[str, Any] = {
        "pool": "shared",
        "name": "t-up",
        "state": "downloaded",
        "dest": str(disk.with_name("down.img")),
    }
    told = call("volume", host, **down).values["file"]
    assert Path(down["dest"]).read_bytes() == stored.read_bytes()
    assert Path(down["dest"]).stat().st_blocks * 512 < 10 * MIB
    assert told["checksum"] == checksum_of(stored)
    Path(down["dest"]).write_bytes(b"another")
    assert call("volume", host, check=True, **down).changed
    assert Path(down["dest"]).read_bytes() == b"another"
    assert [call("volume", host, **down).changed for _ in range(2)] == [True, False]
    assert {each.name for each in disk.parent.iterdir()} == {disk.name, "down.img"}
    # What a killed upload has left is shorter than the file; it is made anew.
    os.truncate(stored, MIB)
    assert call("volume", host, pool="shared", name="t-up", src=str(disk)).changed
    assert stored.read_bytes() == disk.read_bytes()


def test_a_volume_of_another_host_is_copied_and_a_copy_that_is_half_is_made_anew(
    lab: Lab, host: str, disk: Path
) -> None:
    other = lab.host("host2").uri
    ask: dict[str, Any] = {"pool": "shared", "name": "t-near", "copy_of": {"uri": other, "pool": "default"}}
    ask["copy_of"]["name"] = "t-far"
    stored = lab.layout.shared / "t-near"
    try:
        call("volume", other, pool="default", name="t-far", src=str(disk), size="80MiB")
        predicted, done = call("volume", host, check=True, **ask), call("volume", host, **ask)
        assert (predicted.changed, predicted.after) == (done.changed, done.after)
        assert done.values["volume"]["capacity_bytes"] == 80 * MIB
        assert done.values["volume"]["allocation_bytes"] < 10 * MIB
        assert stored.read_bytes()[: 64 * MIB] == disk.read_bytes()
        # The original has grown since, and the copy has been written to: nothing is asked of it.
        call("volume", other, pool="default", name="t-far", size="96MiB")
        assert not call("volume", host, **ask).changed
        # What a killed copy leaves: a part, and the note that says so.
        os.truncate(stored, MIB)
        with opened_host(host, Deadline(60)) as connection:
            volumes.write_text(connection.storagePoolLookupByName("shared"), "t-near.copying", "of another host")
        assert call("volume", host, **ask).changed
        assert stored.read_bytes()[: 64 * MIB] == disk.read_bytes()
        assert volumes_of(host, "shared") & {"t-near", "t-near.copying"} == {"t-near"}
        with pytest.raises(VirtfleetError, match="keeps its format"):
            call("volume", host, **{**ask, "name": "t-other"}, format="qcow2")
        call("volume", other, pool="default", name="t-over", image="t-far")
        with pytest.raises(VirtfleetError, match="would stay behind"):
            call("volume", host, pool="shared", name="t-other", copy_of={**ask["copy_of"], "name": "t-over"})
        assert "t-other" not in volumes_of(host, "shared")
    finally:
        for name in ("t-over", "t-far"):
            call("volume", other, pool="default", name=name, state="absent")


def test_an_image_is_imported_once(host: str, disk: Path) -> None:
    options: dict[str, Any] = {"pool": "default", "name": "t-image", "src": str(disk)}
    predicted = call("image", host, check=True, **options)
    assert predicted.changed
    assert "t-image" not in volumes_of(host, "default")
    image = call("image", host, **options).values["image"]
    assert image["checksum"] == checksum_of(disk)
    assert (image["format"], image["virtual_size_bytes"], image["size_bytes"]) == ("raw", 64 * MIB, 64 * MIB)
    assert predicted.after == image
    assert not call("image", host, **options).changed
    # The checksum alone is enough to know it: the file is not even opened.
    assert not call("image", host, **{**options, "src": "/nonexistent", "checksum": image["checksum"]}).changed
    disk.write_bytes(b"another".ljust(510, b"\0") + b"\x55\xaa")
    with pytest.raises(VirtfleetError, match="another content"):
        call("image", host, **options)
    call("volume", host, pool="default", name="t-root", image="t-image", size="1GiB")
    with pytest.raises(VirtfleetError, match="lies over it"):
        call("image", host, pool="default", name="t-image", state="absent")
    call("volume", host, pool="default", name="t-root", state="absent")
    assert call("image", host, pool="default", name="t-image", state="absent").changed
    assert not call("image", host, pool="default", name="t-image", state="absent").changed
    assert not {name for name in volumes_of(host, "default") if name.startswith("t-")}


def test_the_small_guest_image_is_imported_as_qcow2(lab: Lab, host: str) -> None:
    path = lab.status()["image"]
    assert path
    image = call("image", host, pool="default", name="t-guest", src=path).values["image"]
    assert image["format"] == "qcow2"
    root = call("volume", host, pool="default", name="t-root", image="t-guest", size="1GiB").values["volume"]
    assert (root["format"], root["capacity_bytes"]) == ("qcow2", 1024 * MIB)


def test_an_image_that_refers_to_other_files_is_refused_before_anything_is_sent(host: str, tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(b"\0" * MIB)
    for name, extra in {
        "overlay": ["-b", str(tmp_path / "base.img"), "-F", "raw"],
        "external": ["-o", f"data_file={tmp_path / 'data.raw'},data_file_raw=on"],
    }.items():
        path = tmp_path / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *extra, str(path), "1M"], check=True)
        with pytest.raises(VirtfleetError) as caught:
            call("image", host, pool="default", name="t-image", src=str(path))
        assert caught.value.code == "refused"


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx"])
def test_an_image_of_another_kind_is_refused_with_the_way_to_convert_it(host: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"disk.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), "1M"], check=True)
    with pytest.raises(VirtfleetError, match=f"qemu-img convert -f {kind} -O qcow2"):
        call("image", host, pool="default", name="t-image", src=str(path))


def test_a_packed_image_is_imported_as_what_is_in_it(lab: Lab, host: str, disk: Path) -> None:
    packed = disk.with_suffix(".img.gz")
    packed.write_bytes(gzip.compress(disk.read_bytes(), compresslevel=1))
    options: dict[str, Any] = {"pool": "shared", "name": "t-image", "src": str(packed)}
    assert call("image", host, **options, checksum=checksum_of(packed)).values["image"]["format"] == "raw"
    assert (lab.layout.shared / "t-image").read_bytes() == disk.read_bytes()
    assert not call("image", host, **options).changed


def test_hosts_that_share_a_pool_import_an_image_once(lab: Lab, host: str, disk: Path) -> None:
    options: dict[str, Any] = {"pool": "shared", "name": "t-image", "src": str(disk)}
    uris = [one.uri for one in lab.hosts()]
    runs = [started("image", uri, **options) for uri in uris]
    # A run that begins late may find the image already there; none may fail.
    answers = {run.communicate(timeout=120)[0] for run in runs}
    assert "changed: True\n" in answers
    assert answers <= {"changed: True\n", "changed: False\n"}
    assert (lab.layout.shared / "t-image").read_bytes() == disk.read_bytes()
    assert {path.name for path in lab.layout.shared.glob("t-*")} == {"t-image", "t-image.ok"}
    for uri in uris:
        assert not call("image", uri, **options).changed
    call("image", uris[0], pool="shared", name="t-image", state="absent")
    for uri in uris[1:]:
        remove_volumes(uri, "shared", "t-")


@pytest.fixture
def slow_host(lab: Lab, host: str) -> str:
    """The host behind a link that takes about 4 MB/s, so that an upload can be met half-way."""
    lab.fault("slow-link", "host1", rate_kbit=32000)
    return host


def test_a_killed_import_is_not_taken_for_an_image_and_the_next_run_finishes_it(
    lab: Lab, slow_host: str, tmp_path: Path
) -> None:
    disk = tmp_path / "t-big.img"
    disk.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom(32 * MIB - 512))
    options: dict[str, Any] = {"pool": "shared", "name": "t-image", "src": str(disk)}
    run = started("image", slow_host, **options)
    stored = lab.layout.shared / "t-image"
    wait_until(lambda: stored.exists() and stored.stat().st_size > MIB)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert stored.stat().st_size < disk.stat().st_size
    with pytest.raises(VirtfleetError) as caught:
        call("volume", slow_host, pool="shared", name="t-root", image="t-image")
    assert caught.value.code == "image_missing"
    lab.undo("host1")
    assert call("image", slow_host, **options).values["image"]["checksum"] == checksum_of(disk)
    assert stored.read_bytes() == disk.read_bytes()


def test_an_upload_that_takes_too_long_ends_and_leaves_nothing(slow_host: str, tmp_path: Path) -> None:
    disk = tmp_path / "t-big.img"
    disk.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom(64 * MIB - 512))
    with pytest.raises(VirtfleetError) as caught:
        call("image", slow_host, pool="default", name="t-image", src=str(disk), timeout=4)
    assert caught.value.code == "timeout"
    with pytest.raises(VirtfleetError) as caught:
        call("volume", slow_host, pool="default", name="t-up", src=str(disk), timeout=4)
    assert caught.value.code == "timeout"
    assert not {name for name in volumes_of(slow_host, "default") if name.startswith("t-")}


def test_a_libvirtd_that_freezes_during_an_upload_ends_it_in_bounded_time(
    lab: Lab, slow_host: str, tmp_path: Path
) -> None:
    disk = tmp_path / "t-big.img"
    disk.write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom(32 * MIB - 512))
    run = started("image", slow_host, pool="shared", name="t-image", src=str(disk))
    stored = lab.layout.shared / "t-image"
    wait_until(lambda: stored.exists() and stored.stat().st_size > MIB)
    lab.fault("freeze-libvirtd", "host1")
    began = time.monotonic()
    assert run.communicate(timeout=2 * FROZEN_SECONDS)[0] == "host_frozen\n"
    assert time.monotonic() - began < FROZEN_SECONDS
    lab.undo("host1")
    assert call("image", slow_host, pool="shared", name="t-image", src=str(disk)).changed


def test_a_call_into_a_libvirtd_that_has_frozen_ends_and_other_hosts_go_on(lab: Lab, host: str) -> None:
    failed = threading.Event()

    def ask(connection: libvirt.virConnect) -> None:
        try:
            connection.listAllDomains()
        except libvirt.libvirtError:
            failed.set()

    def wait(connection: libvirt.virConnect) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            connection.listAllDomains()

    with opened_host(host, Deadline(60)) as connection:
        patient = libvirt.open(host)  # without keepalive: its call lasts until the daemon goes on
        asking = threading.Thread(target=ask, args=(connection,), daemon=True)
        waiting = threading.Thread(target=wait, args=(patient,), daemon=True)
        lab.fault("freeze-libvirtd", "host1")
        try:
            asking.start()
            waiting.start()
            assert call("host_info", lab.host("host2").uri).values["host"]["live"]
            with pytest.raises(VirtfleetError) as caught:
                call("host_info", host, connect_timeout=2)
            assert caught.value.code == "host_frozen"
            assert host in str(caught.value)
            assert failed.wait(FROZEN_SECONDS)
            assert waiting.is_alive()  # others went on although this call was open all the while
        finally:
            lab.undo("host1")
            waiting.join(FROZEN_SECONDS)
            with contextlib.suppress(libvirt.libvirtError):
                patient.close()


@pytest.mark.parametrize(
    ("fault", "code"), [("kill-libvirtd", "host_unreachable"), ("cut-link", "host_unreachable"), ("power-off", None)]
)
def test_a_host_that_does_not_answer_is_named(lab: Lab, host: str, fault: str, code: str | None) -> None:
    lab.fault(fault, "host1")
    began = time.monotonic()
    with pytest.raises(VirtfleetError) as caught:
        call("host_info", host, connect_timeout=2)
    assert caught.value.code == (code or "host_unreachable")
    assert host in str(caught.value)
    assert caught.value.hint
    assert time.monotonic() - began < FROZEN_SECONDS


def test_a_full_pool_is_named_and_nothing_is_left(lab: Lab, host: str, disk: Path) -> None:
    before = volumes_of(host, "default")
    lab.fault("fill-pool", "host1")
    full = volumes_of(host, "default")
    for module in ("image", "volume"):
        with pytest.raises(VirtfleetError, match="the pool default is full") as caught:
            call(module, host, pool="default", name="t-full", src=str(disk))
        assert caught.value.code == "pool_full"
    assert volumes_of(host, "default") == full
    lab.undo("host1")
    assert volumes_of(host, "default") == before


def test_a_network_is_changed_while_it_runs_where_that_can_be(host: str) -> None:
    dhcp: dict[str, Any] = {"start": "192.168.77.10", "end": "192.168.77.20", "hosts": []}
    options: dict[str, Any] = {"name": "t-net", "mode": "nat", "address": "192.168.77.1/24", "dhcp": dhcp}
    try:
        assert call("network", host, check=True, **options).changed
        made = call("network", host, **options).values["network"]
        assert made["active"]
        assert not call("network", host, **options).changed
        dhcp["hosts"] = [{"mac": "52:54:00:00:00:01", "address": "192.168.77.3", "name": "db1"}]
        changed = call("network", host, **options)
        assert [change["effect"] for change in changed.values["plan"]] == ["live"]
        assert not call("network", host, **options).changed
        with opened_host(host, Deadline(60)) as connection:
            assert "192.168.77.3" in connection.networkLookupByName("t-net").XMLDesc(0)
        dhcp["end"] = "192.168.77.30"
        with pytest.raises(VirtfleetError, match="restart: true"):
            call("network", host, **options)
        assert call("network", host, restart=True, **options).changed
        assert not call("network", host, **options).changed
        # What cannot start leaves the network as it was: the address is the host's own already.
        address = host.partition("//")[2].partition("/")[0].partition(":")[0]
        with pytest.raises(VirtfleetError):
            call("network", host, name="t-net", mode="nat", address=f"{address}/24", restart=True)
        assert not call("network", host, **options).changed
    finally:
        call("network", host, name="t-net", state="absent")
    assert not call("network", host, name="t-net", state="absent").changed


class Unsafe(str):
    """A string that Ansible must not take for a template."""


yaml.SafeDumper.add_representer(Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


def run_playbook(lab: Lab, tmp_path: Path, playbook: str, **variables: Any) -> tuple[int, dict[str, Any], str]:
    """Run a playbook over the lab's hosts; return its exit status, its results by host, and its output."""
    inventory = {"all": {"hosts": {host.name: {"virtfleet_uri": host.uri} for host in lab.hosts()}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "variables.yml").write_text(yaml.safe_dump(variables))
    environment = os.environ | {
        "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(tmp_path / "inventory.yml")]
    command += ["-e", f"@{tmp_path / 'variables.yml'}", str(ROOT / "playbooks" / playbook)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    # The default output shows what set_stats handed over in one line a host.
    shown = done.stdout.partition("CUSTOM STATS:")[2]
    stats = dict(line.strip().split(": ", 1) for line in shown.splitlines() if line.startswith("\t"))
    results = {host: json.loads(text)["virtfleet"] for host, text in stats.items()}
    return done.returncode, results, done.stdout + done.stderr


def test_discover_tells_of_every_host_also_of_one_that_is_frozen(lab: Lab, host: str, tmp_path: Path) -> None:
    lab.fault("freeze-libvirtd", "host1")
    status, results, output = run_playbook(lab, tmp_path, "host/discover.yml", virtfleet_connect_timeout=2)
    assert status == 2, output
    assert {name: result["host"]["live"] for name, result in results.items()} == {
        one.name: one.name != "host1" for one in lab.hosts()
    }
    assert results["host1"]["host"]["error"]["code"] == "host_frozen"
    assert host in results["host1"]["host"]["msg"]
    assert results["host2"]["host"]["pools"]


def test_discover_of_healthy_hosts_succeeds_and_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    options: dict[str, Any] = {"virtfleet_sample": 0.2, "virtfleet_shared_pools": ["shared"], "virtfleet_refresh": True}
    status, results, output = run_playbook(lab, tmp_path, "host/discover.yml", **options)
    assert status == 0, output
    assert {result["host"]["uri"] for result in results.values()} == {one.uri for one in lab.hosts()}


def test_the_import_playbook_imports_on_every_host(lab: Lab, host: str, disk: Path, tmp_path: Path) -> None:
    image = {"name": "t-image", "pool": "default", "src": str(disk), "checksum": checksum_of(disk)}
    try:
        for _attempt in range(2):
            status, results, output = run_playbook(lab, tmp_path, "image/import.yml", virtfleet_image=image)
            assert status == 0, output
            assert {one["image"]["checksum"] for one in results.values()} == {image["checksum"]}
        assert "changed=1" not in output
    finally:
        for one in lab.hosts():
            remove_volumes(one.uri, "default", "t-")


def test_hostile_text_in_the_import_playbook_is_refused_and_never_run(lab: Lab, host: str, tmp_path: Path) -> None:
    witness = tmp_path / "run-by-a-template"
    template = Unsafe(f"{{{{ lookup('pipe', 'touch {witness}') }}}}")
    for field in ("name", "pool", "src", "url", "checksum", "format"):
        image = {"name": "t-image", "pool": "default", field: template}
        if field != "url":
            image.setdefault("src", "/nonexistent")
        status, results, output = run_playbook(lab, tmp_path, "image/import.yml", virtfleet_image=image)
        assert status == 2, output
        assert {one["image"]["complete"] for one in results.values()} == {False}
        assert all(one["image"]["msg"] for one in results.values())
    assert not witness.exists()


def test_names_and_reserved_addresses_change_in_a_network_that_runs_on(host: str) -> None:
    nat: dict[str, Any] = {"name": "t-net", "mode": "nat", "address": "192.168.179.1/24"}
    nat["dhcp"] = {"start": "192.168.179.10", "end": "192.168.179.20"}
    try:
        call("network", host, **nat)
        with opened_host(host, Deadline(20)) as connection:
            network = connection.networkLookupByName("t-net")
            names = [{"address": "192.168.179.5", "names": ["db.example"]}]
            hosts = [{"mac": "52:54:00:00:00:0a", "address": "192.168.179.6"}]
            done = call("network", host, **{**nat, "dns": names, "dhcp": {**nat["dhcp"], "hosts": hosts}})
            assert {entry["effect"] for entry in done.values["plan"]} == {"live"}
            assert done.values["leases"] == []
            for document in (network.XMLDesc(0), network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)):
                assert "db.example" in document
                assert "192.168.179.6" in document
            call("network", host, **nat)
            assert "db.example" not in network.XMLDesc(0)
    finally:
        call("network", host, name="t-net", state="absent")


def test_a_file_system_on_a_device_is_mounted_as_a_pool_and_never_made(host: str, tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.touch()
    os.truncate(file, 16 * MIB)
    subprocess.run(["mke2fs", "-q", str(file)], check=True)
    made = subprocess.run(["losetup", "-f", "--show", str(file)], check=True, capture_output=True, text=True)
    options: dict[str, Any] = {"name": "t-fs", "type": "fs", "path": "/var/lib/libvirt/t-fs"}
    options["source"] = {"device": made.stdout.strip()}
    try:
        predicted, done = (call("pool", host, check=check, **options) for check in (True, False))
        assert predicted.after == done.after
        assert 8 * MIB < done.values["pool"]["capacity_bytes"] < 16 * MIB
        assert not call("pool", host, **options).changed
        call("volume", host, pool="t-fs", name="t-v", size="1MiB")
        with pytest.raises(VirtfleetError, match=r"it holds 1 volume \(t-v"):
            call("pool", host, name="t-fs", state="absent")
        call("volume", host, pool="t-fs", name="t-v", state="absent")
    finally:
        call("pool", host, name="t-fs", state="absent", delete_content=True)
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
