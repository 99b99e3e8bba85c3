#!/bin/bash
# Node health check for slurm.conf's HealthCheckProgram: drains the node, with the reason, when it is unfit to train.
#
#   healthcheck.sh [--dry-run] [--config FILE]
#
# --dry-run  only say what is wrong; needs no root and no Slurm
# --config   thresholds (default: healthcheck.conf beside this script; see there for the keys)
#
# It never undrains a node and never touches the reason of one that is drained already.
# Exit code: 0 healthy, 1 unhealthy, 2 wrong usage or config.
# Slurm kills the program after 60 s, so every command that may hang has its own limit.
set -u
# slurmd starts it with an empty environment but for SLURMD_NODENAME.
export PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C

GPUS=auto
GPU_UNCORRECTED_ECC_MAX=0
XID_FATAL="48 62 64 74 79 95 119 120 140 143"
XID_MAX_AGE_S=3600
SCRATCH=
SCRATCH_FREE_GB=100
MEMORY_TOTAL_GB=0
MEMORY_FREE_GB=2
CLOCK_MAX_OFFSET_S=0.5

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
node=${SLURMD_NODENAME:-$(uname -n | cut -d. -f1)}
problems=()

ok() { echo "ok    $*"; }
skip() { echo "skip  $*"; }
bad() { echo "BAD   $*"; problems+=("$*"); }
usage() { echo "healthcheck.sh: $*; usage: healthcheck.sh [--dry-run] [--config FILE]" >&2; exit 2; }
config_error() { echo "healthcheck.sh: $*" >&2; exit 2; }

read_arguments() {
    dry_run=
    config=$here/healthcheck.conf
    config_named=
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) dry_run=1 ;;
            --config) [ $# -gt 1 ] || usage "--config needs a file"; config=$2 config_named=1; shift ;;
            *) usage "unknown argument $1" ;;
        esac
        shift
    done
}

read_config() {
    if [ ! -r "$config" ]; then
        [ -z "$config_named" ] || config_error "--config $config: no such file, or not readable"
        return
    fi
    # shellcheck disable=SC1090
    . "$config" || config_error "$config: not a file of KEY=value lines"
    [ -z "${SLURM_CONF:-}" ] || export SLURM_CONF
    local key
    for key in GPU_UNCORRECTED_ECC_MAX XID_MAX_AGE_S SCRATCH_FREE_GB MEMORY_TOTAL_GB MEMORY_FREE_GB; do
        [[ ${!key} =~ ^[0-9]+$ ]] || config_error "$config: $key=${!key} must be a whole number, 0 or more"
    done
    [[ $GPUS =~ ^(auto|[0-9]+)$ ]] || config_error "$config: GPUS=$GPUS must be auto or a number"
    [[ $XID_FATAL =~ ^[0-9\ ]*$ ]] || config_error "$config: XID_FATAL=$XID_FATAL must be numbers with blanks between"
    [[ $CLOCK_MAX_OFFSET_S =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
        config_error "$config: CLOCK_MAX_OFFSET_S=$CLOCK_MAX_OFFSET_S must be seconds"
    [[ -z $SCRATCH || $SCRATCH == /* ]] || config_error "$config: SCRATCH=$SCRATCH must be an absolute path"
}

# KILL, not TERM: a process that waits for a dead NFS or FUSE mount dies of nothing less.
limited() { timeout --signal=KILL "$@"; }

slurm_node() { limited 10 scontrol --oneliner show node "$node" 2>/dev/null; }

expected_gpus() {  # how many GPUs Slurm believes the node has; empty when Slurm does not say
    slurm_node | grep -o ' Gres=[^ ]*' | grep -oE 'gpu[^,( ]*' |
        awk -F: '{ n += ($NF ~ /^[0-9]+$/) ? $NF : 1 } END { print n + 0 }'
}

check_gpus() {
    local expected=$GPUS listing found code
    [ "$expected" != auto ] || expected=$(slurm_node >/dev/null && expected_gpus)
    if ! command -v nvidia-smi >/dev/null; then
        if [ "${expected:-0}" -gt 0 ]; then bad "gpus: $expected expected, nvidia-smi is absent"; else skip "gpus: no nvidia-smi, none expected"; fi
        return
    fi
    listing=$(limited 20 nvidia-smi --query-gpu=index,ecc.errors.uncorrected.volatile.total \
        --format=csv,noheader,nounits 2>&1)
    code=$?
    if [ $code -eq 137 ]; then bad "gpus: nvidia-smi did not answer in 20 s"; return; fi
    if [ $code -ne 0 ]; then bad "gpus: nvidia-smi failed with $code: $(head -n 1 <<<"$listing")"; return; fi
    found=$(grep -cE '^[0-9]+,' <<<"$listing")
    if [ -z "$expected" ]; then
        skip "gpus: $found found, but Slurm does not say how many there should be (set GPUS)"
    elif [ "$found" -lt "$expected" ]; then
        bad "gpus: $found of $expected answer"
    else
        ok "gpus: $found answer, $expected expected"
    fi
    check_gpu_memory "$listing"
}

check_gpu_memory() {
    local worn failed
    worn=$(awk -F', *' -v max="$GPU_UNCORRECTED_ECC_MAX" \
        '$2 ~ /^[0-9]+$/ && $2 + 0 > max { printf "%sGPU %s: %s", sep, $1, $2; sep = ", " }' <<<"$1")
    if [ -n "$worn" ]; then bad "gpu memory: uncorrected ECC errors ($worn)"; else ok "gpu memory: no uncorrected ECC errors"; fi
    # Answers only on GPUs that can remap rows.
    failed=$(limited 20 nvidia-smi --query-remapped-rows=gpu_bus_id,remapped_rows.failure \
        --format=csv,noheader,nounits 2>/dev/null | awk -F', *' '$2 == 1 || $2 == "Yes" { printf "%s ", $1 }')
    [ -z "$failed" ] || bad "gpu memory: row remapping failed on ${failed% }"
}

check_xid() {
    local log found
    if ! log=$(limited 10 dmesg 2>/dev/null); then
        skip "xid: the kernel log is not readable for $(id -un)"
        return
    fi
    found=$(awk -v now="$(cut -d' ' -f1 /proc/uptime)" -v age="$XID_MAX_AGE_S" -v fatal=" $XID_FATAL " '
        match($0, /NVRM: Xid \([^)]*\): [0-9]+/) {
            stamp = $0; sub(/^\[ */, "", stamp); sub(/\].*/, "", stamp)
            entry = substr($0, RSTART, RLENGTH); code = entry; sub(/.*: /, "", code)
            bus = entry; sub(/.*\(/, "", bus); sub(/\).*/, "", bus)
            if (now - stamp <= age && index(fatal, " " code " ")) seen[code " on " bus] = 1
        }
        END { for (one in seen) { printf "%s%s", sep, one; sep = ", " } }' <<<"$log")
    if [ -n "$found" ]; then bad "xid: $found"; else ok "xid: none that is fatal in the last $XID_MAX_AGE_S s"; fi
}

check_scratch() {
    if [ -z "$SCRATCH" ]; then skip "scratch: SCRATCH is not set"; return; fi
    # A dead mount hangs whoever touches it: every look has a limit.
    if ! limited 10 mountpoint -q "$SCRATCH"; then bad "scratch: $SCRATCH is not mounted (or does not answer)"; return; fi
    local free probe
    free=$(limited 10 df --output=avail -B1G "$SCRATCH" | tail -n 1 | tr -d ' ')
    if [[ ! $free =~ ^[0-9]+$ ]]; then bad "scratch: df $SCRATCH did not answer in 10 s"; return; fi
    if [ "$free" -lt "$SCRATCH_FREE_GB" ]; then
        bad "scratch: $free GiB free on $SCRATCH, $SCRATCH_FREE_GB needed"
        return
    fi
    if [ ! -w "$SCRATCH" ] && [ "$(id -u)" -ne 0 ]; then
        ok "scratch: $free GiB free on $SCRATCH (writing not tried: not allowed to $(id -un))"
        return
    fi
    if probe=$(limited 10 mktemp "$SCRATCH/.healthcheck.XXXXXX") && limited 10 dd if=/dev/zero of="$probe" bs=4096 count=1 \
        conv=fsync status=none; then
        ok "scratch: $free GiB free on $SCRATCH"
    else
        bad "scratch: cannot write to $SCRATCH"
    fi
    [ -z "${probe:-}" ] || limited 10 rm -f "$probe"
}

check_memory() {
    local total free
    total=$(awk '/^MemTotal:/ { print int($2 / 1048576) }' /proc/meminfo)
    free=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
    if [ "$total" -lt "$MEMORY_TOTAL_GB" ]; then
        bad "memory: $total GiB in the machine, $MEMORY_TOTAL_GB expected (a module lost?)"
    elif [ "$free" -lt "$MEMORY_FREE_GB" ]; then
        bad "memory: $free of $total GiB available, $MEMORY_FREE_GB needed"
    else
        ok "memory: $free of $total GiB available"
    fi
}

check_clock() {
    local tracking offset
    if tracking=$(limited 10 chronyc -c tracking 2>/dev/null) && [ -n "$tracking" ]; then
        offset=$(cut -d, -f5 <<<"$tracking")
        if [ "$(cut -d, -f14 <<<"$tracking")" = "Not synchronised" ]; then
            bad "clock: chrony is not synchronised"
        elif awk -v o="$offset" -v max="$CLOCK_MAX_OFFSET_S" 'BEGIN { exit !(o > max || -o > max) }'; then
            bad "clock: off by $offset s, $CLOCK_MAX_OFFSET_S allowed"
        else
            ok "clock: off by $offset s"
        fi
        return
    fi
    case $(limited 10 timedatectl show --property=NTPSynchronized --value 2>/dev/null) in
        yes) ok "clock: synchronised" ;;
        no) bad "clock: not synchronised" ;;
        *) skip "clock: neither chronyc nor timedatectl answers" ;;
    esac
}

drain() {
    local reason state
    reason="healthcheck: $(printf '%s; ' "${problems[@]}")"
    reason=${reason%; }
    state=$(slurm_node | grep -oE ' State=[^ ]*')
    if [[ $state == *DRAIN* ]]; then
        echo "$node is drained already: left as it is"
    elif limited 10 scontrol update nodename="$node" state=drain reason="${reason:0:250}"; then
        echo "drained $node: $reason"
    else
        echo "healthcheck.sh: could not drain $node (only SlurmUser and root may)" >&2
    fi
}

read_arguments "$@"
read_config
check_gpus
check_xid
check_scratch
check_memory
check_clock
if [ ${#problems[@]} -eq 0 ]; then
    exit 0
fi
if [ -n "$dry_run" ]; then echo "would drain $node"; else drain; fi
exit 1
