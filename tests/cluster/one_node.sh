#!/usr/bin/env bash
# A Slurm cluster of one node, for tests: munge, slurmctld and slurmd from Debian's
# packages (slurm-wlm, munge), without systemd and without accounting. Run as root.
#
#   one_node.sh up FOLDER [--cgroup] [--fake-gpu]   start it; all its files lie in FOLDER
#   one_node.sh node FOLDER                         start a slurmd that was killed
#   one_node.sh down FOLDER                         stop what `up` started, nothing else
#
# Every user must be able to enter the folder that FOLDER lies in: munge insists.
# Outside FOLDER it makes a link, /etc/slurm/slurm.conf, by which clients find it, and the
# device file of a pretended GPU; `down` removes both. A machine that has a slurm.conf is
# refused. The node claims four cores and 64 GB, so that every request fits.
#   --cgroup    jobs that take more memory than they asked for are killed
#   --fake-gpu  the node claims one GPU; it is /dev/null by another name
set -eEuo pipefail

readonly link=/etc/slurm/slurm.conf
readonly fake_gpu=/dev/one_node_gpu0

write_configuration() {
    local folder=$1 cgroup=$2 gpu=$3 host ports
    host=$(hostname -s)
    read -r -a ports < <(free_ports)
    cat > "$folder/slurm.conf" <<CONF
ClusterName=one_node
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/node
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/$([[ $cgroup ]] && echo cgroup || echo linuxproc)
TaskPlugin=task/$([[ $cgroup ]] && echo cgroup || echo none)
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
SlurmdTimeout=30
MinJobAge=900
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
$([[ $gpu ]] && echo GresTypes=gpu)
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000 $([[ $gpu ]] && echo Gres=gpu:1) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES State=UP
CONF
    printf 'CgroupAutomount=yes\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\n' \
        > "$folder/cgroup.conf"
    if [[ $gpu ]]; then
        printf 'AutoDetect=off\nName=gpu File=%s\n' "$fake_gpu" > "$folder/gres.conf"
    fi
}

free_ports() {
    python3 - <<'PYTHON'
import socket

sockets = [socket.socket() for _ in range(2)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

start_munge() {
    local munge=$1/munge
    install -d -m 0755 "$munge"
    (umask 077 && head -c 128 /dev/urandom > "$munge/key")
    munged --socket="$munge/socket" --key-file="$munge/key" --pid-file="$munge/pid" \
        --log-file="$munge/log" --seed-file="$munge/seed"
    munge --socket="$munge/socket" -n | unmunge --socket="$munge/socket" > /dev/null
}

start_node() {
    slurmd -f "$1/slurm.conf"
    for _ in $(seq 150); do
        [[ $(sinfo --noheader --format %T 2> /dev/null) == @(idle|mixed|allocated) ]] && return
        sleep 0.2
    done
    echo "the node does not answer; see $1/slurmd.log and $1/slurmctld.log" >&2
    return 1
}

up() {
    local folder=$1 cgroup='' gpu=''
    shift
    for option in "$@"; do
        case $option in
            --cgroup) cgroup=yes ;;
            --fake-gpu) gpu=yes ;;
            *) usage ;;
        esac
    done
    [[ $EUID == 0 ]] || { echo "one_node.sh up needs root" >&2; exit 1; }
    [[ ! -e $link ]] || { echo "$link is there: a Slurm is set up already" >&2; exit 1; }
    mkdir "$folder" # not -p: a folder that is there may belong to a running cluster
    chmod 0755 "$folder"
    mkdir "$folder/controller" "$folder/node"
    if [[ $gpu && ! -e $fake_gpu ]]; then
        mknod "$fake_gpu" c 1 3
        touch "$folder/made_fake_gpu"
    fi
    write_configuration "$folder" "$cgroup" "$gpu"
    trap 'down "$folder"' ERR
    ln -s "$folder/slurm.conf" "$link"
    start_munge "$folder"
    slurmctld -f "$folder/slurm.conf"
    start_node "$folder"
}

# A pid is given again after a while: the name tells whether it is still ours.
runs() {
    [[ $(cat "/proc/$2/comm" 2> /dev/null) == "$1" ]]
}

stop() {
    local name=$1 file=$2 pid
    [[ -s $file ]] || return 0
    pid=$(< "$file")
    runs "$name" "$pid" && kill "$pid"
    for _ in $(seq 100); do
        runs "$name" "$pid" || return 0
        sleep 0.1
    done
    kill -KILL "$pid"
}

down() {
    local folder=$1
    trap - ERR
    if [[ -s $folder/slurmd.pid && -s $folder/slurmctld.pid ]]; then
        cancel_jobs
    fi
    stop slurmd "$folder/slurmd.pid"
    stop slurmctld "$folder/slurmctld.pid"
    stop munged "$folder/munge/pid"
    [[ $(readlink "$link") != "$folder/slurm.conf" ]] || rm "$link"
    [[ ! -e $folder/made_fake_gpu ]] || rm "$fake_gpu" "$folder/made_fake_gpu"
}

# Jobs are no children of slurmd: without this they would outlive it.
cancel_jobs() {
    timeout 10 scancel --user root --quiet || true
    for _ in $(seq 50); do
        [[ $(timeout 10 squeue --noheader 2> /dev/null) ]] || return 0
        sleep 0.2
    done
}

usage() {
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
}

[[ $# -ge 2 ]] || usage
command=$1
folder=$(realpath -m "$2")
shift 2
case $command in
    up) up "$folder" "$@" ;;
    node) start_node "$folder" ;;
    down) down "$folder" ;;
    *) usage ;;
esac
