#!/bin/sh
# Process 1 of one rented host of the rig: a Docker engine and an SSH server in namespaces of their own.
# Started by host.py under unshare(1), which has already made the mount, pid and hostname namespaces.
# When this process ends the kernel ends every process of the host, containers included, and drops its mounts.
#
# Usage: boot.sh RUN_DIR HOST_DIR NAME CGROUP
set -eu
run=$1 host=$2 name=$3 cgroup=$4

hostname "$name"
mount --bind "$host/passwd" /etc/passwd    # root's home directory is the host's own
mount --bind "$host/shadow" /etc/shadow    # root may log in with a key, whatever the machine says
mkdir -p /run/containerd /run/sshd
mount -t tmpfs tmpfs /run/containerd       # never the machine's containerd, nor the other host's

# The host's user namespace, network and files are the machine's: containers run with --network host.
dockerd --config-file "$host/daemon.json" --data-root "$host/docker" --exec-root "$run/exec" \
    --pidfile "$run/docker.pid" --host "unix://$run/docker.sock" --cgroup-parent "$cgroup" \
    --exec-opt native.cgroupdriver=cgroupfs --bridge=none --iptables=false --ip6tables=false \
    --ip-forward=false --ip-masq=false --userland-proxy=false --shutdown-timeout 5 \
    > "$host/dockerd.log" 2>&1 &
engine=$!
/usr/sbin/sshd -D -e -f "$host/sshd_config" 2> "$host/sshd.log" &

trap 'kill -TERM "$engine"; wait "$engine" || true; exit 0' TERM
while :; do wait; sleep 1; done
