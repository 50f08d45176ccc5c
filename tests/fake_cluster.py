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
# gcloud: workers are folders; the slice is there while its file "state" is.
GCLOUD = r"""
shift 3
echo "$*" >>"$FAKE/calls"
port=$(cat "$FAKE/port")
worker() { # number command
    mkdir -p "$FAKE/worker$1" && cd "$FAKE/worker$1" || exit
    HOME=$PWD JAX_PROCESS_ID=$1 JAX_NUM_PROCESSES=2 \
        JAX_COORDINATOR_ADDRESS=localhost:$port bash -c "$2"
}
case $1 in
describe) cat "$FAKE/state" 2>/dev/null ;;
create) echo READY >"$FAKE/state" ;;
delete) rm -rf "$FAKE/state" "$FAKE"/worker* ;;
scp)
    for number in 0 1; do
        mkdir -p "$FAKE/worker$number" && cp "$2" "$FAKE/worker$number/${3#*:}"
    done
    ;;
ssh)
    [ -e "$FAKE/state" ] && [ "$(cat "$FAKE/state")" = READY ] || exit 255
    for word; do
        case $word in
        --command=*) command=${word#--command=} ;;
        --worker=*) which=${word#--worker=} ;;
        esac
    done
    if [ "$which" = all ]; then
        case $command in
        *" start "*) echo $((20000 + RANDOM % 10000)) >"$FAKE/port" ;;
        esac
        port=$(cat "$FAKE/port")
        worker 0 "$command"
        worker 1 "$command"
    else
        worker "$which" "$command"
        status=$?
        [ "$(cat "$FAKE/state" 2>/dev/null)" = READY ] || exit 255
        exit $status
    fi
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
    root = Path(__file__).parents[1]
    return os.environ | {
        "FAKE": str(folder),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
    }
