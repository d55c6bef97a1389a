#!/usr/bin/python
# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module haproxy_servers: the servers of a backend of an HAProxy that runs."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: haproxy_servers
short_description: The servers of a backend of an HAProxy that runs
description:
  - Makes a backend have exactly these servers, through the runtime API of HAProxy 2.6 or newer. Nothing is reloaded.
  - A server that goes gets no new connections first, and goes when its last one has ended.
  - Nothing is written to a file; whoever wants the servers to outlive a restart writes them there too.
options:
  socket:
    description: The socket of the runtime API, with the level C(admin).
    type: path
    required: true
  backend:
    description: The name of the backend.
    type: str
    required: true
  servers:
    description: The servers, each with C(name), C(address), C(port) and C(weight).
    type: list
    elements: dict
    required: true
  check_seconds:
    description: How often a server that is added is checked.
    type: int
    default: 2
  drain_seconds:
    description: How long a server that goes may take to end its connections. Then they are ended.
    type: int
    default: 60
author:
  - virtfleet contributors (@virtfleet)
"""

RETURN = r"""
added:
  description: Names of servers that were added.
  returned: always
  type: list
  elements: str
changed_servers:
  description: Names of servers whose address or weight was changed.
  returned: always
  type: list
  elements: str
removed:
  description: Names of servers that were removed.
  returned: always
  type: list
  elements: str
cut:
  description: Connections that were ended because they had not ended by themselves in time.
  returned: always
  type: int
"""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)
ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.25


class Refused(Exception):
    """HAProxy did not do what it was told; the message says what it answered."""


@dataclass(frozen=True)
class Server:
    """A server as it is wanted, or as it is."""

    name: str
    address: str
    port: int
    weight: int
    ready: bool = True
    """False for one that is drained or under maintenance, as one is whose removal was broken off."""

    @classmethod
    def wanted(cls, given: dict[str, Any]) -> Server:
        """Return the server that was asked for. Raises Refused: all of it ends in a command line of HAProxy."""
        name, address = str(given["name"]), str(given["address"])
        port, weight = int(given["port"]), int(given["weight"])
        if not NAME.fullmatch(name) or not ADDRESS.fullmatch(address):
            raise Refused(f"{name[:70]!r} at {address[:50]!r} is no server: give a name and an IPv4 address")
        if not 0 < port < 2**16 or not 0 <= weight <= 256:
            raise Refused(f"{name} has port {port} and weight {weight}: give 1 to 65535, and 0 to 256")
        return cls(name, address, port, weight)


class Runtime:
    """The runtime API. Each command is a connection of its own, as HAProxy has it."""

    def __init__(self, path: str, backend: str) -> None:
        self._path = path
        self._backend = backend

    def tell(self, command: str, good: str = "") -> str:
        """Give a command and return the answer. Raises Refused when it is not the good one."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(self._path)
            connection.sendall(f"{command}\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()
        if answer and not (good and good in answer):
            raise Refused(f"HAProxy answered {command!r} with {answer!r}")
        return answer

    def servers(self) -> dict[str, Server]:
        """Return the servers of the backend."""
        lines = self.tell(f"show servers state {self._backend}", good="be_name").splitlines()
        columns = next(line for line in lines if line.startswith("#"))[1:].split()
        rows = [dict(zip(columns, line.split(), strict=False)) for line in lines if re.match(r"\d+ ", line)]
        return {
            row["srv_name"]: Server(
                row["srv_name"],
                row["srv_addr"],
                int(row["srv_port"]),
                int(row["srv_uweight"]),
                ready=row["srv_admin_state"] == "0",
            )
            for row in rows
        }

    def connections(self, name: str) -> int:
        """Return how many connections a server has, and how many wait for it."""
        lines = self.tell("show stat", good="pxname").splitlines()
        columns = lines[0].lstrip("# ").split(",")
        for line in lines[1:]:
            row = dict(zip(columns, line.split(","), strict=False))
            if (row["pxname"], row["svname"]) == (self._backend, name):
                return int(row["scur"] or 0) + int(row["qcur"] or 0)
        return 0

    def add(self, server: Server, check_seconds: int) -> None:
        """Add a server and have it checked; it gets connections when it is healthy."""
        where = f"{self._backend}/{server.name}"
        checked = f"check inter {check_seconds}s fall 3 rise 2 weight {server.weight}"
        self.tell(f"add server {where} {server.address}:{server.port} {checked}", good="registered")
        self.tell(f"enable health {where}")
        self.tell(f"enable server {where}")

    def change(self, before: Server, server: Server) -> None:
        """Give a server another address or weight, and have it take connections. Connections that it has go on."""
        where = f"{self._backend}/{server.name}"
        if (before.address, before.port) != (server.address, server.port):
            self.tell(f"set server {where} addr {server.address} port {server.port}", good="changed")
        if before.weight != server.weight:
            self.tell(f"set server {where} weight {server.weight}")
        if not before.ready:
            self.tell(f"set server {where} state ready")

    def remove(self, name: str, drain_seconds: int) -> int:
        """Drain a server and remove it; return how many connections had to be ended. Raises Refused."""
        where = f"{self._backend}/{name}"
        self.tell(f"set server {where} state drain")
        deadline = time.monotonic() + drain_seconds
        while (left := self.connections(name)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.tell(f"set server {where} state maint")
        if left:
            self.tell(f"shutdown sessions server {where}")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:  # connections that are kept open for later ones end a moment later
            try:
                self.tell(f"del server {where}", good="deleted")
                return left
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "backend": {"type": "str", "required": True},
            "servers": {"type": "list", "elements": "dict", "required": True},
            "check_seconds": {"type": "int", "default": 2},
            "drain_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    runtime = Runtime(given["socket"], given["backend"])
    cut = 0
    try:
        wanted = {server.name: server for server in map(Server.wanted, given["servers"])}
        found = runtime.servers()
        added = sorted(set(wanted) - set(found))
        removed = sorted(set(found) - set(wanted))
        changed = sorted(name for name in set(wanted) & set(found) if wanted[name] != found[name])
        if not module.check_mode:
            # What comes is there before what goes.
            for name in added:
                runtime.add(wanted[name], given["check_seconds"])
            for name in changed:
                runtime.change(found[name], wanted[name])
            for name in removed:
                cut += runtime.remove(name, given["drain_seconds"])
    except (Refused, OSError, StopIteration, LookupError, TypeError, ValueError) as error:
        module.fail_json(
            msg=f"Failed to set the servers of {given['backend']}: {error or type(error).__name__}."
            f" Does HAProxy run, 2.6 or newer, with its socket {given['socket']}?"
        )
    module.exit_json(
        changed=bool(added or changed or removed), added=added, changed_servers=changed, removed=removed, cut=cut
    )


if __name__ == "__main__":
    main()
