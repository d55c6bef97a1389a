#!/bin/sh
# Runs one instance until it powers off: a network namespace with two cables, a cgroup of its own, systemd as PID 1. A reboot inside
# starts all of it anew, network included.
# Arguments: the instance's folder, the root folder, its name, the network namespace, the interface prefix with its number,
# the two bridges, the two hardware addresses.
set -u
folder=$1 root=$2 name=$3 namespace=$4 prefix=$5 number=$6 management=$7 guests=$8 mac0=$9 mac1=${10}

plug() { # OUTSIDE INSIDE MAC BRIDGE
  ip link add "$1" type veth peer name "$2" address "$3" netns "$namespace" && ip link set "$1" master "$4" up
}

unplug() {
  ip link del "${prefix}m$number" 2>/dev/null
  ip link del "${prefix}g$number" 2>/dev/null
  ip netns del "$namespace" 2>/dev/null
}

cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroups" ] || { echo "this machine has no cgroup2 file system mounted"; exit 1; }
cgroup=$cgroups/$namespace

while :; do
  unplug
  ip netns add "$namespace" || exit 1
  plug "${prefix}m$number" eth0 "$mac0" "$management" || exit 1
  plug "${prefix}g$number" eth1 "$mac1" "$guests" || exit 1
  ip -n "$namespace" link set lo up
  mkdir -p "$cgroup"
  rm -rf "$folder/work"
  mkdir -p "$folder/work" "$folder/upper" "$folder/merged"
  sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$cgroup" \
    nsenter "--net=/run/netns/$namespace" \
    unshare --mount --uts --ipc --pid --cgroup --fork --kill-child --propagation private \
    sh "$(dirname "$0")/init.sh" "$folder" "$root" "$name"
  status=$?
  find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
  [ "$status" = 129 ] || break # SIGHUP is how the kernel tells of a reboot
done
unplug
