#!/bin/sh
# Makes the file systems of one instance and becomes its systemd. Runs in the instance's own namespaces.
# Arguments: the instance's folder, the root folder below it, its name.
set -eu
folder=$1 root=$2 name=$3
new=$folder/merged

hostname "$name"
# volatile: nothing waits for the disk. What a crash leaves is thrown away.
mount -t overlay -o "volatile,lowerdir=$root,upperdir=$folder/upper,workdir=$folder/work" instance "$new"
mount -t proc proc "$new/proc"
# The kernel's settings are the machine's, but for those of the instance's own namespaces.
for path in sys sysrq-trigger irq bus; do
  [ ! -e "$new/proc/$path" ] || mount --bind "$new/proc/$path" "$new/proc/$path"
done
mount --bind "$new/proc/sys/net" "$new/proc/sys/net"
for name in ns_last_pid msg_next_id sem_next_id shm_next_id; do # CRIU wants them, and they are the namespaces' own
  [ ! -e "$new/proc/sys/kernel/$name" ] || mount --bind "$new/proc/sys/kernel/$name" "$new/proc/sys/kernel/$name"
done
for path in sys sysrq-trigger irq bus; do
  [ ! -e "$new/proc/$path" ] || mount -o remount,bind,ro "$new/proc/$path"
done
mount -t sysfs sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
mount -o remount,bind,ro "$new/sys" # so systemd-udevd leaves the machine's devices alone
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
mount -t tmpfs -o mode=755 tmpfs "$new/dev"
mkdir "$new/dev/pts" "$new/dev/shm" "$new/dev/net"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"
for device in null zero full random urandom tty net/tun; do
  [ -e "/dev/$device" ] || continue
  touch "$new/dev/$device"
  mount --bind "/dev/$device" "$new/dev/$device"
done

cd "$new"
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
exec env -i container=other VIRTFLEET_LAB_MARK="$VIRTFLEET_LAB_MARK" PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=vt220 \
  /lib/systemd/systemd --log-target=console --log-level=notice
