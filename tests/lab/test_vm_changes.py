"""Machines changed through REST and the CLI: resized, given disks and cards; refused where it does not fit."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import libvirt
import pytest
from ansible_collections.virtfleet.core.plugins.module_utils.connection import opened_host
from ansible_collections.virtfleet.core.plugins.module_utils.domain_xml import settings
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline

from tests.lab.fleet import Fleet, wait_until
from tests.lab.test_storage_modules import call, remove_volumes

pytestmark = pytest.mark.lab

MIB = 2**20


def changed(fleet: Fleet, path: str, body: dict[str, Any], state: str = "succeeded") -> dict[str, Any]:
    """Ask for a change and wait for its job."""
    answer = fleet.http.patch(path, json=body)
    assert answer.status_code == 202, answer.text
    job = fleet.ended(answer.json()["job"], 240)
    assert job["state"] == state, job["error"]
    return job


def item(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the run said of the machine."""
    found: dict[str, Any] = next(result for result in job["result"].values() if result.get("vms"))["vms"][0]
    return found


def live(fleet: Fleet, vm: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that libvirt says a machine runs with."""
    import xml.etree.ElementTree as ET

    with opened_host(fleet.lab.host(vm["host"]).uri, Deadline(60)) as connection:
        return settings.read(ET.fromstring(connection.lookupByUUIDString(vm["uuid"]).XMLDesc(0)))


def cli(fleet: Fleet, *words: str, code: int = 0, text: str | None = None) -> str:
    program = [sys.executable, "-c", "from virtfleet.cli.main import main; main()", *words]
    environment = {"VIRTFLEET_URL": fleet.url, "VIRTFLEET_TOKEN": (fleet.home / "admin.token").read_text().strip()}
    done = subprocess.run(
        program,
        env={**os.environ, **environment},
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_running_machine_is_resized_up_to_its_maxima_and_beyond_them_with_a_power_cycle(
    fleet: Fleet, tmp_path: Path
) -> None:
    vm = fleet.create("web1", max_vcpus=2, max_memory="192MiB", wait_for="agent")
    assert (vm["max_vcpus"], vm["max_memory"]) == (2, "192MiB")
    job = changed(fleet, "/vms/web1", {"vcpus": 2, "memory": "192MiB", "autostart": True, "io": {"iops": 4000}})
    assert not item(job)["needs_power_cycle"]
    now = fleet.get("/vms/web1")
    assert (now["vcpus"], now["memory"], now["autostart"], now["io"]) == (2, "192MiB", True, {"iops": 4000})
    found = live(fleet, vm)
    assert (found["vcpus"], found["memory"], found["io"]["iops"]) == (2, 192 * MIB, 4000)

    _the_file_system_follows_or_the_job_says_why_not(fleet)
    # The root partition of this guest grows only when it boots: the disk grew, the file system did not, and it is said.
    grown = changed(fleet, "/vms/web1", {"grow_disk_by": "256MiB"})
    assert fleet.get("/vms/web1")["disk"] == "1.25GiB"
    told = [event["text"] for event in fleet.get(f"/jobs/{grown['id']}/events")["items"] if event["kind"] == "message"]
    assert any("file system" in text for text in told), told

    for too_much in ({"grow_disk_by": "11GiB"}, {"disk": "12GiB"}):
        refused = fleet.http.patch("/vms/web1", json=too_much)
        assert (refused.status_code, "10GiB is the most" in refused.json()["detail"]) == (422, True)

    beyond = changed(fleet, "/vms/web1", {"vcpus": 3, "memory": "256MiB"})
    assert item(beyond)["needs_power_cycle"]
    found = live(fleet, vm)
    assert (found["max_vcpus"], found["memory"], found["max_memory"]) == (2, 192 * MIB, 192 * MIB)
    body = {"vcpus": 3, "memory": "256MiB", "allow_power_cycle": True, "grace": 60}
    cycled = changed(fleet, "/vms/web1", body)
    assert item(cycled)["power_cycled"]
    found = live(fleet, vm)
    assert (found["vcpus"], found["memory"]) == (3, 256 * MIB)
    assert fleet.get("/vms/web1")["state"] == "running"

    replay = cli(fleet, "job", "replay", cycled["id"], "--dir", str(tmp_path / "replay"))
    ran = subprocess.run(shlex.split(replay), check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "changed=0" in ran.stdout


def _the_file_system_follows_or_the_job_says_why_not(fleet: Fleet) -> None:
    """A disk grows "by" a size with the file system on it, then while the machine cannot be reached, then again."""
    attached = fleet.ended(fleet.post("/vms/web1/disks", {"serial": "data", "size": "32MiB"})["job"])
    assert attached["state"] == "succeeded", attached["error"]
    script = "for n in 1 2 3 4 5 6 7 8 9; do [ -b /dev/vdc ] && break; sleep 1; done; mke2fs -b 4096 /dev/vdc"
    run = {"argv": ["sh", "-c", f"{script} && mkdir -p /mnt/data && mount /dev/vdc /mnt/data"]}
    made = fleet.ended(fleet.post("/vms/web1/exec", run)["job"])
    assert made["state"] == "succeeded", made["error"]
    grown = changed(fleet, "/vms/web1/disks/data", {"grow_by": "32MiB"})
    assert filesystem(grown) == {"grown": True, "reason": None, "mounted_at": "/mnt/data"}
    for action, grows in (("pause", False), ("resume", True)):
        assert fleet.ended(fleet.post("/vms/web1/actions", {"action": action})["job"])["state"] == "succeeded"
        job = changed(fleet, "/vms/web1/disks/data", {"size": "96MiB"})
        assert fleet.get("/vms/web1/disks")["items"][1]["size"] == "96MiB"
        assert filesystem(job)["grown"] is grows
        told = [event["text"] for event in fleet.get(f"/jobs/{job['id']}/events")["items"]]
        assert any("does not fill it" in text and "agent" in text for text in told) is not grows
    unmount = fleet.post("/vms/web1/exec", {"argv": ["umount", "/mnt/data"]})
    assert fleet.ended(unmount["job"])["state"] == "succeeded"
    assert fleet.ended(fleet.http.delete("/vms/web1/disks/data").json()["job"])["state"] == "succeeded"
    with opened_host(fleet.lab.host(fleet.get("/vms/web1")["host"]).uri, Deadline(60)) as connection:
        pool = connection.storagePoolLookupByName("default")
        for name in [each for each in pool.listVolumes() if each.endswith("-data-data")]:
            pool.storageVolLookupByName(name).delete(0)


def filesystem(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the run said of the file system on the one disk that it dealt with."""
    found: dict[str, Any] = next(result for result in job["result"].values() if result.get("disks"))["disks"][0]
    return dict(found["filesystem"])


def test_what_does_not_fit_or_cannot_be_is_refused_at_once(fleet: Fleet) -> None:
    fleet.create("web1", start=False)
    before = fleet.get("/vms/web1")
    answer = fleet.http.patch("/vms/web1", json={"memory": "512TiB"})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_capacity")
    reasons = {each["host"]: each["reasons"] for each in answer.json()["hosts"]}
    assert any("memory" in reason for reason in reasons[before["host"]]), reasons
    for body, status in (
        ({"disk": "512MiB"}, 422),
        ({}, 422),
        ({"vcpus": 0}, 422),
        ({"memory": "1"}, 422),
        ({"io": {"iops": 1, "read_iops": 1}}, 422),
        ({"nonsense": 1}, 422),
    ):
        assert fleet.http.patch("/vms/web1", json=body).status_code == status, body
    stale = fleet.http.patch("/vms/web1", json={"vcpus": 2}, headers={"If-Match": '"999"'})
    assert stale.status_code == 412
    assert fleet.get("/vms/web1")["generation"] == before["generation"]
    assert fleet.http.patch("/vms/web1", json={"vcpus": 6, "topology": {"threads": 4}}).status_code == 422
    tag = fleet.http.get("/vms/web1").headers["ETag"]
    taken = fleet.http.patch("/vms/web1", json={"vcpus": 8, "topology": {"threads": 8}}, headers={"If-Match": tag})
    assert taken.status_code == 202
    assert fleet.ended(taken.json()["job"])["state"] == "succeeded"
    assert live(fleet, before)["topology"] == {"sockets": 1, "cores": 1, "threads": 8}
    _settings_names_and_saved_memory(fleet, before)


def _settings_names_and_saved_memory(fleet: Fleet, vm: dict[str, Any]) -> None:
    cli(fleet, "vm", "set", "web1", "--boot", "network,hd", "--watchdog", "reset", "--no-rng")
    found = live(fleet, vm)
    assert (found["boot"], found["watchdog"], found["rng"]) == (["network", "hd"], "reset", False)
    assert fleet.get("/vms/web1")["settings"] == {"boot": ["network", "hd"], "watchdog": "reset", "rng": False}
    steps = [{"path": "devices/memballoon", "attribute": "model", "value": "none"}]
    changed(fleet, "/vms/web1", {"xml_patch": steps})
    refused = changed(fleet, "/vms/web1", {"xml_patch": [{"path": "uuid", "value": "x"}]}, "failed")
    assert refused["error"]["code"] == "refused"

    cli(fleet, "vm", "rename", "web1", "web9")
    assert fleet.domains(vm["host"])["web9"][0] == vm["uuid"]
    with opened_host(fleet.lab.host(vm["host"]).uri, Deadline(60)) as connection:
        document = connection.lookupByUUIDString(vm["uuid"]).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert '<memballoon model="none"' in document.replace("'", '"')
    renamed = fleet.get("/vms/web9")
    assert (renamed["id"], renamed["address"]) == (vm["id"], vm["address"])
    assert fleet.http.get("/vms/web1").status_code == 404
    cli(fleet, "vm", "start", "web9")
    running = fleet.http.patch("/vms/web9", json={"name": "web1"})
    assert (running.status_code, running.json()["code"]) == (409, "conflict")
    cli(fleet, "vm", "reset", "web9")
    cli(fleet, "vm", "save", "web9")
    assert fleet.get("/vms/web9")["state"] == "stopped"
    late = changed(fleet, "/vms/web9", {"video": "vga"}, "failed")
    assert "its memory is saved" in late["error"]["message"]
    cli(fleet, "vm", "start", "web9")
    assert fleet.get("/vms/web9")["state"] == "running"


def test_what_the_host_refuses_is_given_back(fleet: Fleet) -> None:
    """The domain is undefined behind the fleet's back: the job fails, and nothing stays reserved."""
    vm = fleet.create("web1", start=False)
    with opened_host(fleet.lab.host(vm["host"]).uri, Deadline(60)) as connection:
        domain = connection.lookupByName("web1")
        document = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        domain.undefine()
        try:
            failed = changed(fleet, "/vms/web1", {"vcpus": 2, "memory": "256MiB", "disk": "2GiB"}, "failed")
            assert "web1" in failed["error"]["message"]
        finally:
            connection.defineXML(document)
    now = fleet.get("/vms/web1")
    assert (now["vcpus"], now["memory"], now["disk"]) == (1, "128MiB", "1GiB")
    assert now["error"]["message"] == failed["error"]["message"]


def test_disks_and_cards_are_attached_changed_and_detached(fleet: Fleet) -> None:
    vm = fleet.create("web1", start=False)
    uri = fleet.lab.host(vm["host"]).uri
    volume = f"web1-{vm['uuid'][:8]}-data-data"
    try:
        attached = fleet.ended(fleet.post("/vms/web1/disks", {"serial": "data", "size": "16MiB", "bus": "scsi"})["job"])
        assert attached["state"] == "succeeded", attached["error"]
        changed(fleet, "/vms/web1/disks/data", {"size": "32MiB", "io": {"iops": 10}})
        root, data = fleet.get("/vms/web1/disks")["items"]
        assert (root["serial"], root["size"]) == ("root", "1GiB")
        assert (data["volume"], data["size"], data["bus"], data["io"]) == (volume, "32MiB", "scsi", {"iops": 10})
        assert fleet.http.post("/vms/web1/disks", json={"serial": "data", "size": "1MiB"}).status_code == 409
        assert fleet.http.patch("/vms/web1/disks/data", json={"size": "16MiB"}).status_code == 422
        assert fleet.http.patch("/vms/web1/disks/none", json={"size": "16MiB"}).status_code == 404
        assert fleet.http.delete("/vms/web1/disks/root").status_code == 409
        assert fleet.http.post("/vms/web1/disks", json={"serial": "</x>", "size": "1MiB"}).status_code == 422

        # It moves to another machine of the same host, with what is on it.
        other = fleet.create("web2", start=False, host=vm["host"])
        refused = fleet.ended(fleet.post("/vms/web2/disks", {"serial": "data", "volume": volume})["job"])
        assert (refused["state"], "web1" in refused["error"]["message"]) == ("failed", True), refused
        assert [disk["serial"] for disk in fleet.get("/vms/web2/disks")["items"]] == ["root"]
        assert fleet.ended(fleet.http.delete("/vms/web1/disks/data").json()["job"])["state"] == "succeeded"
        assert [disk["serial"] for disk in fleet.get("/vms/web1/disks")["items"]] == ["root"]
        cli(fleet, "vm", "disk", "attach", "web2", "moved", "--volume", volume, "--bus", "usb")
        assert "32MiB" in cli(fleet, "vm", "disk", "list", "web2")
        cli(fleet, "vm", "disk", "change", "web2", "moved", "--grow-by", "32MiB")
        with opened_host(uri, Deadline(60)) as connection:
            domain = connection.lookupByUUIDString(other["uuid"])
            assert volume in domain.XMLDesc(0)
        cli(fleet, "vm", "disk", "detach", "web2", "moved")
        with opened_host(uri, Deadline(60)) as connection:
            pool = connection.storagePoolLookupByName("default")
            assert pool.storageVolLookupByName(volume).info()[1] == 64 * MIB

        answer = fleet.post("/vms/web1/nics", {})
        assert fleet.ended(answer["job"])["state"] == "succeeded"
        mac = answer["nic"]["mac"]
        changed(fleet, f"/vms/web1/nics/{mac}", {"link": "down"})
        assert [nic["link"] for nic in fleet.get("/vms/web1/nics")["items"]] == ["up", "down"]
        assert mac in cli(fleet, "vm", "nic", "list", "web1")
        cli(fleet, "vm", "nic", "detach", "web1", mac)
        assert len(fleet.get("/vms/web1")["networks"]) == 1
        cli(fleet, "vm", "resize", "web1", "--vcpus", "2", "--disk", "2GiB")
        assert (fleet.get("/vms/web1")["vcpus"], fleet.get("/vms/web1")["disk"]) == (2, "2GiB")
        assert "shrinks" in cli(fleet, "vm", "resize", "web1", "--disk", "1GiB", code=2)
    finally:
        fleet.delete_all()
        wait_until(lambda: not fleet.get("/vms")["items"], 180, "the machines to go")
        remove_volumes(uri, "default", volume)


def seen_by(marker: str, ended: threading.Event, seen: list[str]) -> None:
    """Note every command line and environment in which a text turns up, until it is told to stop."""
    while not ended.wait(0.02):
        for name in ("cmdline", "environ"):
            for file in Path("/proc").glob(f"[0-9]*/{name}"):
                with contextlib.suppress(OSError):
                    if marker.encode() in file.read_bytes():
                        seen.append(str(file))


def done(fleet: Fleet, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask for something; its job must succeed."""
    answer = fleet.http.request(method, path, json=body)
    assert answer.status_code == 202, answer.text
    job = fleet.ended(answer.json()["job"])
    assert job["state"] == "succeeded", job["error"]
    return job


def test_what_a_host_keeps_and_what_guards_and_marks_a_machine_go_through_rest_and_the_command_line(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Networks, filters, secrets and checkpoints: each once through REST and once through the command line."""
    uri, of_host = fleet.lab.host("host1").uri, "/hosts/host1"

    def says(look_up: str, name: str) -> str:
        with opened_host(uri, Deadline(60)) as connection:
            return str(getattr(connection, look_up)(name).XMLDesc(0))

    inside: dict[str, Any] = {"mode": "isolated", "address": "192.168.177.1/24"}
    inside["dhcp"] = {"start": "192.168.177.9", "end": "192.168.177.99"}
    rules = tmp_path / "rules.yml"
    rules.write_text("- {action: drop, direction: in, protocol: tcp, match: {dstportstart: 7}}\n")
    marker, secret = f"a-word-nobody-may-see-{tmp_path.name}", ("ceph", "client.of-the-walk")
    try:
        # A network: its names and reserved addresses change while it is active.
        made = done(fleet, "PUT", f"{of_host}/networks/walk", inside)
        assert fleet.get(f"/jobs/{made['id']}/replay")["playbook"] == "network/define.yml"
        words = ("--mode", "isolated", "--address", "192.168.177.1/24", "--dhcp", "192.168.177.9-192.168.177.99")
        live = ("--dhcp-host", "52:54:00:aa:bb:77=192.168.177.7=db1", "--dns", "192.168.177.7=db1,db")
        assert "as wanted" in cli(fleet, "host", "network", "define", "host1", "walk", *words, *live)
        assert "<hostname>db</hostname>" in says("networkLookupByName", "walk")
        found = fleet.get(f"{of_host}/networks/walk")
        assert (found["active"], found["dns"][0]["names"], found["leases"]) == (True, ["db", "db1"], [])
        assert found["dhcp"]["hosts"][0]["name"] == "db1"
        assert "192.168.177.7=db,db1" in cli(fleet, "host", "network", "list", "host1")

        # A filter: on a card from its first moment, taken off, put back.
        cli(fleet, "host", "nwfilter", "define", "host1", "walk", str(rules))
        told = done(fleet, "PUT", f"{of_host}/nwfilters/walk", {})["result"]["host1"]["nwfilter"]
        assert told["rules"][0]["match"] == {"dstportstart": "7"}
        fleet.create("web1", host="host1", filter="walk", wait_for="running")
        assert "filter='walk'" in says("lookupByName", "web1")
        mac = fleet.get("/vms/web1/nics")["items"][0]["mac"]
        changed(fleet, f"/vms/web1/nics/{mac}", {"filter": "none"})
        assert "filterref" not in says("lookupByName", "web1")
        cli(fleet, "vm", "nic", "change", "web1", mac, "--filter", "walk")
        assert fleet.get("/vms/web1/nics")["items"][0]["filter"] == "walk"
        assert "filter='walk'" in says("lookupByName", "web1")

        # A checkpoint of the running machine.
        done(fleet, "POST", "/vms/web1/checkpoints", {"name": "monday", "description": "for others"})
        (listed,) = fleet.get("/vms/web1/checkpoints")["items"]
        assert (listed["name"], listed["disks"]) == ("monday", ["vda"])
        assert "for others" in cli(fleet, "vm", "checkpoint", "list", "web1")
        cli(fleet, "vm", "checkpoint", "delete", "web1", "monday")
        assert fleet.get("/vms/web1/checkpoints")["items"] == []
        with opened_host(uri, Deadline(60)) as connection:
            assert connection.lookupByName("web1").listAllCheckpoints() == []

        # A secret: its value reaches libvirt, and nothing else that is kept or that others can read.
        ended, seen = threading.Event(), list[str]()
        watcher = threading.Thread(target=seen_by, args=(marker, ended, seen))
        watcher.start()
        try:
            said = cli(fleet, "host", "secret", "set", "host1", *secret, text=f"{marker}\n")
        finally:
            ended.set()
            watcher.join()
        assert seen == []
        with opened_host(uri, Deadline(60)) as connection:
            assert connection.secretLookupByUsage(2, secret[1]).value() == marker.encode()
        for file in fleet.home.rglob("*"):
            if file.is_file():
                assert marker.encode() not in file.read_bytes(), file
        (job,) = fleet.get("/jobs", kind="secret.define")["items"]
        events = fleet.get(f"/jobs/{job['id']}/events")
        assert marker not in said + json.dumps([job, events, fleet.get("/changes", limit=1000)])
        (kept,) = fleet.get(f"{of_host}/secrets")["items"]
        assert (kept["usage"], kept["usage_id"]) == secret
        done(fleet, "DELETE", f"{of_host}/secrets/{kept['uuid']}")
        assert "keeps no secret" in cli(fleet, "host", "secret", "remove", "host1", *secret, code=3)

        fleet.delete_all()
        done(fleet, "DELETE", f"{of_host}/nwfilters/walk")
        cli(fleet, "host", "network", "remove", "host1", "walk")
        assert "walk" not in json.dumps(fleet.get(f"{of_host}/networks") | fleet.get(f"{of_host}/nwfilters"))
    finally:
        for module, options in (
            ("network", {"name": "walk", "force": True}),
            ("secret", {"usage": secret[0], "usage_id": secret[1]}),
        ):
            call(module, uri, **options, state="absent")
