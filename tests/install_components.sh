#!/bin/sh
# Installs what the tests run for real: Slurm with accounting, Prometheus, Alertmanager. Only as root on Debian;
# elsewhere the tests that need them skip and say why.
set -eu

wanted() { # command package...
    command=$1; shift
    command -v "$command" >/dev/null 2>&1 || missing="$missing $*"
}

PATH=$PATH:/usr/sbin
missing=""
wanted slurmctld slurm-wlm
wanted munged munge
wanted slurmdbd slurmdbd slurm-wlm-mysql-plugin
wanted mariadbd mariadb-server-core mariadb-client-core
wanted prometheus prometheus
wanted prometheus-alertmanager prometheus-alertmanager
wanted ip iproute2
wanted gcc gcc libc6-dev
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed (needs root on Debian), their tests will skip:$missing"
    exit 0
fi
echo "installing$missing"
# no daemon may start: the tests start their own, on ports and folders of their own
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
