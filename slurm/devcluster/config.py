"""Renders Slurm's configuration files, as text, from a layout."""

from .layout import Layout

CLUSTER_NAME = "dev"
CPUS_PER_NODE = 8
"""More than the machine may have: `config_overrides` makes slurmd believe it."""
MEMORY_PER_NODE_MB = 8000


def slurm_conf(layout: Layout) -> str:
    """slurm.conf: as a site would have it, but with failures noticed in seconds instead of minutes."""
    folder, settings = layout.dir, layout.settings
    return f"""# Written by slurm/dev. Development cluster in {folder}.
ClusterName={CLUSTER_NAME}
SlurmctldHost=ctl({layout.address("ctl")})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire+1 is the wait before every requeued start (default 121 s); Slurm takes no less than 5.
AuthInfo=socket={layout.munge_socket},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={layout.logs}/slurmctld.log
SlurmdLogFile={layout.logs}/slurmd-%n.log
SlurmctldDebug=debug
SlurmdDebug=debug

# Processes are found by parentage: works whatever cgroup version the machine has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides

# Failures: noticed fast, jobs requeued, a node that is back serves again by itself.
SlurmdTimeout={settings.slurmd_timeout}
MessageTimeout=3
TCPTimeout=1
KillWait=5
# A step whose end a silent controller has not heard of waits for it for up to 107 s (seen); with the default of 60 its healthy
# node is drained ("Kill task failed").
UnkillableStepTimeout=180
InactiveLimit=0
ReturnToService=2
JobRequeue=1
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,nohold_on_prolog_fail
# Finished jobs stay visible to scontrol for a day.
MinJobAge=86400

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={layout.address("ctl")}
AccountingStoragePass={layout.munge_socket}

# A job in `urgent` preempts one in `main`: the job gets its signal, then GraceTime seconds, then is requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{_gpu_lines(layout)}{_node_lines(layout)}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def _gpu_lines(layout: Layout) -> str:
    return "GresTypes=gpu\n" if layout.settings.gpus else ""


def _node_lines(layout: Layout) -> str:
    gres = f" Gres=gpu:{layout.settings.gpus}" if layout.settings.gpus else ""
    return "\n".join(
        f"NodeName={node} NodeAddr={layout.address(node)} CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MB}{gres}"
        for node in layout.nodes
    )


def gres_conf(layout: Layout) -> str:
    """gres.conf: the fake GPUs' device files; empty text without GPUs."""
    last = layout.settings.gpus - 1
    if last < 0:
        return ""
    files = f"{layout.dir}/gpu/nvidia0" if last == 0 else f"{layout.dir}/gpu/nvidia[0-{last}]"
    return f"AutoDetect=off\nName=gpu File={files}\n"


def slurmdbd_conf(layout: Layout) -> str:
    """slurmdbd.conf: accounting in the cluster's own MariaDB. Must have mode 0600."""
    return f"""DbdHost=ctl
DbdAddr={layout.address("ctl")}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
LogFile={layout.logs}/slurmdbd.log
PidFile={layout.dir}/run/slurmdbd.pid
DebugLevel=info
"""


def cgroup_conf() -> str:
    """cgroup.conf: nothing is constrained; the nodes' own cgroups are made by the cluster, not by Slurm."""
    return "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"


def hosts(layout: Layout) -> str:
    """/etc/hosts inside the nodes: this machine as `host`, the controller, and all nodes."""
    lines = [f"{layout.address(name)} {name}" for name in ("host", *layout.members)]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost ip6-localhost", *lines]) + "\n"


def write(layout: Layout) -> None:
    """Write all configuration files into the cluster's folder."""
    files = {
        "slurm.conf": slurm_conf(layout),
        "slurmdbd.conf": slurmdbd_conf(layout),
        "gres.conf": gres_conf(layout),
        "cgroup.conf": cgroup_conf(),
        "hosts": hosts(layout),
    }
    for name, text in files.items():
        path = layout.dir / name
        path.touch(mode=0o600 if name == "slurmdbd.conf" else 0o644)
        path.write_text(text)
