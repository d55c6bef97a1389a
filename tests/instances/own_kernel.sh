#!/bin/sh
# First program of an instance that has a kernel of its own: writes at the first boot what makes the instance itself, and becomes
# systemd. Those files lie in a folder of the machine, which the kernel's argument instance= names.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
if [ ! -e /.prepared ]; then
  read -r arguments </proc/cmdline
  for word in $arguments; do
    case $word in instance=*) folder=${word#instance=} ;; esac
  done
  mount -t hostfs -o "$folder" none /mnt && cp -a /mnt/. / && umount /mnt && touch /.prepared
fi
exec /lib/systemd/systemd
