# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file system on a disk that has grown: made to follow by the agent inside the machine.

What the agent says is said by the machine, which may say anything: nothing of it is trusted further than to be shown.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from ansible_collections.virtfleet.core.plugins.module_utils.errors import VirtfleetError
from ansible_collections.virtfleet.core.plugins.module_utils.libvirt_objects import vm_addresses
from ansible_collections.virtfleet.core.plugins.module_utils.waiter import Deadline, wait_for

try:
    import libvirt
    import libvirt_qemu  # type: ignore[import-untyped]
    from libvirt import libvirtError
except ImportError:
    libvirtError = OSError

GUEST_SECONDS = 120.0
"""How long the machine may take for it."""
_AGENT_SECONDS = 5
_SHOWN = 200
_GREW = 10
_WOULD_GROW = 11
_AS_LARGE = 12

# Run inside the machine by any POSIX shell, busybox's too. It finds the disk by its serial number, lets the kernel see
# the new size, extends the last partition (growpart only ever does that) and the file system, or the one logical
# volume, on it. Nothing is formatted, made or moved. Its exit code says what came of it, the last line why.
SCRIPT = r"""
serial=$1 mode=$2 expected=$3
PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
say() { echo "$2"; exit "$1"; }
known() {
  found=
  [ -r "/sys/block/$1/serial" ] && read -r found <"/sys/block/$1/serial"
  [ "$found" = "$serial" ] && return 0
  [ -r "/sys/block/$1/device/vpd_pg80" ] && found=$(dd if="/sys/block/$1/device/vpd_pg80" bs=1 skip=4 2>/dev/null)
  [ "$found" = "$serial" ] && return 0
  above=$(readlink -f "/sys/block/$1/device") || return 1
  while [ -n "$above" ]; do
    [ -r "$above/serial" ] && read -r found <"$above/serial" && [ "$found" = "$serial" ] && return 0
    above=${above%/*}
  done
  return 1
}
disk=
for each in /sys/block/*; do
  each=${each##*/}
  case $each in loop*|ram*|dm-*|md*|zram*) continue ;; esac
  known "$each" && disk=$each && break
done
[ -n "$disk" ] || say 20 "the machine sees no disk with that serial number"
size_of() { read -r sectors <"/sys/class/block/$1/size"; echo $((sectors * 512)); }
waited=0
while [ "$(size_of "$disk")" -lt "$expected" ]; do
  [ -w "/sys/block/$disk/device/rescan" ] && echo 1 >"/sys/block/$disk/device/rescan"
  [ "$waited" -lt 20 ] || say 21 "the machine does not see the new size of the disk"
  waited=$((waited + 1))
  sleep 1
done
number() { dd if="/dev/$1" bs=1 skip="$2" count="$3" 2>/dev/null | od -An -tu1; }
little() { echo $(($1 + ($2 << 8) + ($3 << 16) + ($4 << 24))); }
big() { total=0; for byte; do total=$(((total << 8) + byte)); done; echo $total; }
filesystem_size() {
  case $2 in
    ext*) echo $(($(little $(number "$1" 1028 4)) * (1024 << $(little $(number "$1" 1048 4))))) ;;
    xfs) echo $(($(big $(number "$1" 4 4)) * $(big $(number "$1" 8 8)))) ;;
    *) stat -f -c '%b %S' "$3" | { read -r blocks bytes; echo $((blocks * bytes)); } ;;
  esac
}
mounted() {
  read -r wanted <"/sys/class/block/$1/dev"
  while read -r _ _ device _ place rest; do
    rest=${rest##* - }
    kind=${rest%% *}
    rest=${rest#* }
    [ "$device" = "$wanted" ] || [ "${rest%% *}" = "/dev/$1" ] || continue
    place=$(printf '%b' "$(echo "$place" | sed 's/\\/\\0/g')")
    return 0
  done </proc/self/mountinfo
  return 1
}
enlarge() {
  case $2 in
    ext*) resize2fs "/dev/$1" ;;
    xfs) xfs_growfs "$3" ;;
    btrfs) btrfs filesystem resize max "$3" ;;
    *) say 22 "file system $2 is not one that grows here" ;;
  esac >/dev/null 2>&1 || say 23 "the program that enlarges $2 is missing or failed"
}
worth=1048576
last=$disk end=0
for each in /sys/block/"$disk"/"$disk"*; do
  [ -r "$each/partition" ] || continue
  read -r start <"$each/start"
  [ "$start" -ge "$end" ] && end=$start && last=${each##*/}
done
slack=0
if [ "$last" != "$disk" ]; then
  read -r start <"/sys/class/block/$last/start"
  slack=$(($(size_of "$disk") - start * 512 - $(size_of "$last")))
fi
if [ "$slack" -gt "$worth" ]; then
  type growpart >/dev/null 2>&1 || say 24 "its partition must grow first, and growpart is missing"
  [ "$mode" = look ] && say 11 "its partition would grow"
  read -r position <"/sys/class/block/$last/partition"
  growpart "/dev/$disk" "$position" >/dev/null 2>&1 || say 25 "its partition could not be extended"
fi
if mounted "$last"; then
  before=$(filesystem_size "$last" "$kind" "$place")
  if [ $(($(size_of "$last") - before)) -lt "$worth" ] && [ "$kind" != btrfs ]; then
    [ "$slack" -gt "$worth" ] || say 12 "the file system is as large as the disk"
  fi
  [ "$mode" = look ] && say 11 "the file system would grow"
  enlarge "$last" "$kind" "$place"
  after=$(filesystem_size "$last" "$kind" "$place")
  [ "$after" -gt "$before" ] || say 12 "the file system is as large as the disk"
  say 10 "$place"
fi
holders=$(cd "/sys/class/block/$last/holders" 2>/dev/null && echo *)
case $holders in dm-*) ;; *) say 26 "no file system on it is mounted" ;; esac
case $holders in *" "*) say 27 "several volumes lie on it: enlarge the one that is meant" ;; esac
type pvresize lvextend >/dev/null 2>&1 || say 28 "the programs of LVM are missing"
read -r volume <"/sys/class/block/$holders/dm/name"
mounted "$holders" || say 26 "no file system on it is mounted"
free=$(pvs --noheadings --nosuffix --units b -o pv_free,dev_size,pv_size "/dev/$last" 2>/dev/null)
set -- $free
[ $((${1:-0} + ${2:-0} - ${3:-0})) -gt 8388608 ] || say 12 "the volume is as large as the disk"
[ "$mode" = look ] && say 11 "the volume would grow"
pvresize "/dev/$last" >/dev/null 2>&1 || say 29 "pvresize failed"
lvextend -r -l +100%FREE "/dev/mapper/$volume" >/dev/null 2>&1 || say 30 "lvextend failed"
say 10 "$place"
"""


@dataclass(frozen=True)
class Found:
    """What became of the file system. `changes` is whether it grew, or in check mode would."""

    grown: bool
    changes: bool
    reason: str | None = None
    mounted_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the value `filesystem` of a module's result."""
        return {"grown": self.grown, "reason": self.reason, "mounted_at": self.mounted_at}


def grow(domain: libvirt.virDomain, serial: str, size_bytes: int, *, check: bool, deadline: Deadline) -> Found:
    """Let the file system on a disk fill it, once the machine sees `size_bytes`; in check mode only look.

    Never raises: the disk has grown, and what stands in the way of the rest is in `reason`.
    """
    if not vm_addresses.agent_answers(domain):
        return Found(False, False, "the agent of the machine does not answer: try again once it runs")
    mode = "look" if check else "grow"
    try:
        code, said = _run(domain, [SCRIPT, "sh", serial, mode, str(size_bytes)], deadline.at_most(GUEST_SECONDS))
    except (VirtfleetError, libvirtError) as error:
        text = error.obstacle if isinstance(error, VirtfleetError) else "it may not run programs"
        return Found(False, False, f"the agent of the machine did not do it: {text}")
    if code == _GREW:
        return Found(True, True, None, said)
    if code in (_WOULD_GROW, _AS_LARGE):
        return Found(False, code == _WOULD_GROW, said)
    return Found(False, False, said or f"it ended with code {code}")


def _run(domain: libvirt.virDomain, arguments: list[str], deadline: Deadline) -> tuple[int, str]:
    """Run the shell inside the machine; return its exit code and the last line it said."""
    begun = _ask(domain, "guest-exec", {"path": "/bin/sh", "arg": ["-c", *arguments], "capture-output": True})

    def ended() -> dict[str, Any]:
        status = _ask(domain, "guest-exec-status", {"pid": begun.get("pid")})
        return status if status.get("exited") else {}

    status = wait_for(ended, deadline, "what runs in the machine", poll=0.3)
    output = ""
    with contextlib.suppress(ValueError, TypeError):
        output = base64.b64decode(status.get("out-data") or "").decode("utf-8", "replace")
    lines = [line for line in output.splitlines() if line.strip()]
    shown = "".join(each for each in (lines[-1] if lines else "") if each.isprintable())[:_SHOWN]
    code = status.get("exitcode")
    return code if isinstance(code, int) else -1, shown


def _ask(domain: libvirt.virDomain, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    document = json.dumps({"execute": command, "arguments": arguments})
    try:
        said = json.loads(libvirt_qemu.qemuAgentCommand(domain, document, _AGENT_SECONDS, 0))
    except ValueError:
        said = None
    answer = said.get("return") if isinstance(said, dict) else None
    if not isinstance(answer, dict):
        raise VirtfleetError("ask the agent of a machine", "its answer makes no sense", "", "internal")
    return answer
