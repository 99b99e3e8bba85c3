#!/bin/bash
# PID 1 of a node. Kill it, and the kernel kills every process of the node: power loss.
# usage: node-init.sh NODE CLUSTER_DIR [CGROUP_DIR]   (in fresh network, UTS, PID and mount namespaces)
node=$1 dir=$2 cgroup=$3
exec </dev/null
set -e
echo "$node" >/proc/sys/kernel/hostname
if [ -n "$cgroup" ]; then echo $$ >"$cgroup/cgroup.procs"; fi

# What a machine has for itself. Everything else is shared with the host, like a cluster's shared storage.
mount --make-rprivate /
keep=$(mktemp -d)
mount --rbind /sys/fs/cgroup "$keep"
mount -t sysfs sysfs /sys            # a fresh one shows this node's network devices
mount --move "$keep" /sys/fs/cgroup
rmdir "$keep"
mount --bind "$dir/hosts" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run

export SLURM_CONF=$dir/slurm.conf
mkdir -p "$dir/spool/$node"
slurmd -N "$node"                    # goes to the background; bash reaps it like every orphan
set +e
touch "$dir/run/$node.ready"
while :; do sleep 3600 & wait $!; done
