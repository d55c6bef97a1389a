"""Prints as JSON what an instance is like: packages, units, files and addresses, each with what tells a change.

Runs on the instance, with nothing but Debian's Python.
"""

import hashlib
import json
import os
import re
import subprocess

TREES = ("/etc", "/lib/systemd", "/opt", "/root", "/srv", "/usr/local", "/var/lib")
# What changes by itself, or because packages came and went, and means nothing.
CHANGING = re.compile(
    r"/etc/(ld\.so\.cache|machine-id|resolv\.conf|(passwd|group|shadow|gshadow|subuid|subgid)-)"
    r"|/root/\.ansible.*|/etc/\.pwd\.lock"
    r"|/var/lib/(apt|dpkg|systemd|ucf|dbus|private|pam|polkit-1|logrotate|misc|AccountsService)(/.*)?"
    r"|/var/lib/(python|vim|update-rc|man|initramfs)[^/]*(/.*)?|/etc/rc[0-9S]\.d(/.*)?|/etc/alternatives/README"
    r"|/etc/ssl/certs(/.*)?"
    r"|/var/lib/nfs/nfsdcld/main[.]sqlite"  # which clients the server knows
    r"|/etc/libvirt/storage(/autostart)?"  # libvirt makes it for the first pool of its life
)


def output(*argv: str) -> list[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


def files() -> dict[str, str]:
    found = {}
    for tree in TREES:
        for folder, _, names in os.walk(tree):
            for path in [folder, *(os.path.join(folder, name) for name in names)]:
                if CHANGING.fullmatch(path):
                    continue
                status = os.lstat(path)
                if os.path.islink(path):
                    content = os.readlink(path)
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        content = hashlib.sha256(file.read()).hexdigest()[:16]
                else:
                    content = ""
                found[f"file {path}"] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"
    return found


def wanted_at_boot(unit: str) -> bool:
    """Tell whether a unit can be enabled. Others run when something asks for them.

    What is enabled shows in the links below /etc. systemctl's own list of it takes half a minute under User Mode Linux.
    """
    template = re.sub("@.*[.]", "@.", unit)
    for folder in ("/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/lib/systemd/system"):
        for name in (unit, template):
            try:
                with open(os.path.join(folder, name)) as file:
                    return "[Install]" in file.read()
            except OSError:
                continue
    return True


def main() -> None:
    look = files()
    for line in output("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"):
        name, status = line.split()
        if status != "not-installed":
            look[f"package {name}"] = status
    units = {}
    for line in output(
        "systemctl", "list-units", "--no-legend", "--no-pager", "--plain", "--type=service,socket,timer"
    ):
        name, _, state = line.split()[:3]
        units[name] = state
    for name, state in units.items():
        # Such as libvirtd, which ends when nobody needs it: its socket starts it again.
        asked_for = units.get(name.replace(".service", ".socket")) == "active" and name.endswith(".service")
        of_a_login = re.match(r"(user@|user-runtime-dir@|session-)", name)
        if state == "failed" or not (asked_for or of_a_login or not wanted_at_boot(name)):
            look[f"unit {name}"] = state
    for link in json.loads("".join(output("ip", "-j", "address", "show"))):
        addresses = sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global")
        look[f"interface {link['ifname']}"] = " ".join([link.get("master", ""), *addresses]).strip()
    for route in json.loads("".join(output("ip", "-j", "route", "show"))):
        look[f"route {route['dst']}"] = f"{route.get('gateway', '')} {route['dev']}"
    print(json.dumps(look))


main()
