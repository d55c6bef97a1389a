#!/bin/sh
# Boots one light host. Runs as a child of the host's init (tini), in fresh network, PID, mount and UTS namespaces.
# Arguments: the host's folder, the lab's shared folder, the lab's hosts file, the host's name, whether KVM may be used (yes or no).
set -eu
folder=$1 shared=$2 hosts=$3 name=$4 kvm=$5

hostname "$name"
mount -t sysfs sysfs /sys # the interfaces under /sys/class/net are those of whoever mounted it

mkdir -p /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$folder/etc" /etc/libvirt
mount --bind "$folder/ssh" /etc/ssh
mount --bind "$folder/lib" /var/lib/libvirt
mount --bind "$folder/cache" /var/cache/libvirt
mount --bind "$folder/log" /var/log/libvirt
mount --bind "$hosts" /etc/hosts
mount --bind "$shared" /var/lib/libvirt/shared
# The private disk: a file system of its own, so that it has a size and can be filled. It goes with the mount namespace.
mount -o loop,discard "$folder/disk.img" /var/lib/libvirt/images ||
    echo "no loop device here: the pool default is a plain folder of the machine" >&2
# A read-only empty file in its place: opening it for writing fails, so QEMU and libvirt see a machine without KVM.
if [ "$kvm" = no ] && [ -e /dev/kvm ]; then mount --bind -o ro "$folder/no-kvm" /dev/kvm; fi

mount -t tmpfs -o mode=755,size=64m tmpfs /run # last: what is bound above may lie under /run
mkdir -p /run/lock /run/libvirt /run/sshd

# Every answer below comes after the daemon listens.
"$(command -v sshd)"
virtlogd -d
libvirtd --listen -d
exec sleep infinity
