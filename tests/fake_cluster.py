"""Stand-ins for the commands of Slurm and Google Cloud, which run on this machine."""

import os
import sys
from pathlib import Path

# sbatch: the job runs here until it is not requeued. The test sends signals to the
# process whose number is in job.pid, as Slurm does to the batch script.
SBATCH = r"""
cat >"$FAKE/job.sh"
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$FAKE/job.sh")
export SLURM_JOB_ID=77 SLURM_NTASKS=$tasks SLURM_RESTART_COUNT=0
while true; do
    rm -f "$FAKE/requeued"
    bash "$FAKE/job.sh" >>"$FAKE/log" 2>&1 &
    echo $! >"$FAKE/job.pid"
    wait $!
    status=$?
    [ -e "$FAKE/requeued" ] || exit $status
    SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done
"""
SCONTROL = r"""
[ "$1 $2" = "requeue 77" ] || exit 1
echo "$SLURM_RESTART_COUNT" >>"$FAKE/requeues"
touch "$FAKE/requeued"
"""
# srun: passes SIGUSR1 on and kills its tasks at SIGTERM, as Slurm's does.
SRUN = r"""
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$SLURM_NTASKS
pids=()
trap 'kill -USR1 "${pids[@]}"' USR1
trap 'kill -KILL "${pids[@]}"' TERM
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
    while
        wait "$pid"
        status=$?
        kill -0 "$pid" 2>/dev/null
    do :; done
    ((status <= worst)) || worst=$status
done
exit $worst
"""
# gcloud: workers are folders; the slice is there while its file "state" is, its request
# while "queue" is, which holds the states that it goes through. While "gone" is there,
# the machines are lost but the state does not tell; each line of fail-VERB is the
# message of one call that fails; a number in "cut" is after how many lines the
# connection breaks.
GCLOUD = r"""
kind=$3
shift 3
echo "$kind $*" >>"$FAKE/calls"
fail() { # status message
    echo "ERROR: (gcloud.compute.tpus.$kind) $2" >&2
    exit "$1"
}
if [ -s "$FAKE/fail-$1" ]; then
    message=$(head -n 1 "$FAKE/fail-$1")
    sed -i 1d "$FAKE/fail-$1"
    case $1 in ssh | scp) fail 255 "$message" ;; *) fail 1 "$message" ;; esac
fi
reachable() { [ ! -e "$FAKE/gone" ] && [ "$(cat "$FAKE/state" 2>&1)" = READY ]; }
worker() { # number command
    mkdir -p "$FAKE/worker$1" && cd "$FAKE/worker$1" || exit
    HOME=$PWD JAX_PROCESS_ID=$1 JAX_NUM_PROCESSES=2 \
        JAX_COORDINATOR_ADDRESS=localhost:$(cat "$FAKE/port") bash -c "$2"
}
file=state
[ "$kind" = tpu-vm ] || file=queue
case $1 in
describe)
    [ -e "$FAKE/$file" ] || fail 1 "NOT_FOUND: Resource 'nodes/$2' was not found."
    head -n 1 "$FAKE/$file"
    [ "$(wc -l <"$FAKE/$file")" = 1 ] || sed -i 1d "$FAKE/$file"
    if [ $file = queue ] && [ "$(cat "$FAKE/queue")" = ACTIVE ]; then
        echo READY >"$FAKE/state"
    fi
    ;;
create)
    [ ! -e "$FAKE/$file" ] || fail 1 "ALREADY_EXISTS: Resource '$2' already exists."
    rm -f "$FAKE/gone"
    if [ $file = queue ]; then
        printf '%s\n' ACCEPTED ACTIVE >"$FAKE/queue"
    else
        echo READY >"$FAKE/state"
    fi
    ;;
delete)
    [ -e "$FAKE/$file" ] || fail 1 "NOT_FOUND: Resource '$2' was not found."
    rm -rf "$FAKE/state" "$FAKE/queue" "$FAKE"/worker*
    ;;
scp)
    reachable || fail 255 "ssh: connect to host: Connection timed out"
    for number in 0 1; do
        mkdir -p "$FAKE/worker$number" && cp "$2" "$FAKE/worker$number/${3#*:}"
    done
    ;;
ssh)
    reachable || fail 255 "ssh: connect to host: Connection timed out"
    for word; do
        case $word in
        --command=*) command=${word#--command=} ;;
        --worker=*) which=${word#--worker=} ;;
        esac
    done
    status=0
    case $which:$command in
    all:*)
        case $command in
        *" start "*) echo $((20000 + RANDOM % 10000)) >"$FAKE/port" ;;
        esac
        for number in 0 1; do
            (worker $number "$command") || status=$?
        done
        ;;
    *" follow "*)
        touch "$FAKE/followed"
        if [ -e "$FAKE/cut" ]; then
            lines=$(cat "$FAKE/cut")
            rm "$FAKE/cut"
            (worker "$which" "$command") | head -n "$lines"
            exit 255
        fi
        (worker "$which" "$command") || status=$?
        ;;
    *) (worker "$which" "$command") || status=$? ;;
    esac
    reachable || exit 255
    exit $status
    ;;
esac
"""
COMMANDS = dict(sbatch=SBATCH, scontrol=SCONTROL, srun=SRUN, gcloud=GCLOUD)


def install(folder: Path) -> dict[str, str]:
    """Writes the commands into `folder`; the environment in which they are found."""
    for name, text in COMMANDS.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash{text}")
        path.chmod(0o755)
    (folder / "port").write_text("0")
    return environment(folder)


def environment(folder: Path) -> dict[str, str]:
    """That in which the commands of `folder` are found."""
    root = Path(__file__).parents[1]
    return os.environ | {
        "FAKE": str(folder),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
    }
