#!/bin/sh
# The first process of a nest: seals the namespaces that booted.py has made, proves that they are sealed, and becomes PROGRAM.
#
#     nest.sh OUTER TOKEN CHECKOUT PREFIX PACKAGES PROGRAM…
#
# OUTER: the mount namespace of the machine, which must not be this one. TOKEN: the name of the marker in the private
# /tmp. CHECKOUT: the code under test. PREFIX, PACKAGES: the interpreter, and what is installed for it.
# Nothing of the machine can be written to from here: what a booted system empties or sets is a copy in memory.
# Ends with 9 if that is not so. Only booted.py starts it.
set -eu
outer=$1 token=$2 checkout=$3 prefix=$4 packages=$5
shift 5

refuse() {
    echo "nest: refused: $1" >&2
    exit 9
}

read_only() { # FROM TO
    mkdir -p "$2"
    mount --bind "$1" "$2"
    mount -o remount,ro,bind "$2"
}

memory() { # PLACE [MODE]
    mount -t tmpfs -o "mode=${2:-755}" nest "$1"
}

# Before the first mount: the namespaces are ours, and no mount of ours reaches the machine.
[ $$ = 1 ] || refuse "it is not the first process of a pid namespace"
[ "$(readlink /proc/self/ns/mnt)" != "$outer" ] || refuse "it shares the machine's mount namespace"
[ -z "$(findmnt -rno PROPAGATION | grep -v '^private$')" ] || refuse "a mount here would reach the machine"

# Code and interpreter, while they can be seen. The unit names these places.
home=/opt/mmsup
site=$home/lib/$(basename "$(dirname "$packages")")/site-packages
memory /opt
mkdir -p $home/bin "$site" $home/code
for each in gateway ipc supervisor worker src systemd; do
    cp -a "$checkout/$each" $home/code/
done
read_only "$prefix" /opt/python
read_only "$packages" $home/packages
ln -s /opt/python/bin/python3 $home/bin/python
echo "home = /opt/python/bin" >$home/pyvenv.cfg
printf '%s\n' $home/code/src $home/packages >"$site/nest.pth"
printf '%s\n' "#!$home/bin/python" 'from mmsup.supervisor.cli.main import main' 'main()' >$home/bin/mmsup
chmod 755 $home/bin/mmsup

# The seal.
mount -o remount,ro,bind /
memory /tmp 1777
memory /run
memory /var
memory /root 700
mkdir -p /var/tmp /var/lib /var/log
mkdir /run/dev && memory /run/dev
for each in null zero full random urandom tty; do
    : >"/run/dev/$each"
    mount --bind "/dev/$each" "/run/dev/$each"
done
: >/run/dev/console && mount --bind /dev/null /run/dev/console
mkdir /run/dev/shm /run/dev/pts
memory /run/dev/shm 1777
mount -t devpts -o newinstance,ptmxmode=0666 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --move /run/dev /dev
rmdir /run/dev
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
memory /srv
mkdir -p /srv/mmsup/models
memory /srv/mmsup/models
mount -o remount,ro /srv

# The guard: the remount above covers one mount only, so each place is tried.
for each in / /etc /usr /srv /home /opt/python $home/packages "$checkout" "$prefix" /proc/sys/kernel /sys/kernel; do
    if touch "$each/.nest_$token" 2>/dev/null; then
        rm -f "$each/.nest_$token"
        refuse "$each can be written to"
    fi
done
[ -z "$(ls -A /tmp)" ] || refuse "/tmp is not empty"
echo "$token" >"/tmp/$token"

# What a system does at its start to the machine is no business of a nest's.
memory /etc/systemd/system
memory /usr/lib/systemd/system-generators
for each in systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-tmpfiles-clean systemd-sysctl systemd-sysusers \
    systemd-random-seed systemd-remount-fs systemd-modules-load systemd-udevd systemd-udev-trigger systemd-binfmt \
    systemd-update-utmp systemd-machine-id-commit systemd-hwdb-update systemd-journal-flush systemd-firstboot; do
    ln -s /dev/null "/etc/systemd/system/$each.service"
done
printf '[Unit]\nDescription=All that is started in a nest\nDefaultDependencies=no\nAllowIsolate=yes\n' \
    >/etc/systemd/system/nest.target
ip link set lo up
cd /
exec "$@"
