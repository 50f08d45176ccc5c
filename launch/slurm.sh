#!/usr/bin/env bash
# launch/slurm.sh [OPTION...] --config=FILE --workdir=DIR [FLAG OF jaxrec.main...]
# launch/slurm.sh [OPTION...] --array=FILE
#
# Submits a run to Slurm, on one node or several, or with --array one run for each line
# of FILE, which holds the flags of jaxrec.main as a shell would read them. Before the
# time limit the run saves and the job is put into the queue again, as it is after the
# loss of a process or a node; it goes on from the last checkpoint. The folder of the
# run has to be on disks that all nodes see.
#
#   --nodes=N       (default 1)
#   --gpus=N        GPUs of a node (default 0: on CPUs)
#   --processes=N   processes of a node (default: one a GPU, or one)
#   --cpus=N        CPUs of a process
#   --time=LIMIT    such as 12:00:00
#   --grace=S       how many seconds before the limit to save (default 120)
#   --retries=N     how often a run that lost a process is requeued (default 3)
#   --at-once=N     how many runs of --array at the same time
#   --partition=NAME, --account=NAME
#   --sbatch=FLAG   any other flag of sbatch; may be repeated
#   --setup=COMMAND to run on the first node before, such as 'module load cuda'
#   --dry-run       print the command and the job's script, submit nothing
#   --help          this text
#
# PYTHON names the interpreter on the nodes (default: python).

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=0 processes='' cpus='' grace=120 retries=3 array='' at_once='' setup=''
dry='' more=() flags=()
for word; do
    value=${word#*=}
    case $word in
    --nodes=*) nodes=$value ;;
    --gpus=*) gpus=$value ;;
    --processes=*) processes=$value ;;
    --cpus=*) cpus=$value ;;
    --grace=*) grace=$value ;;
    --retries=*) retries=$value ;;
    --array=*) array=$value ;;
    --at-once=*) at_once=$value ;;
    --time=* | --partition=* | --account=*) more+=("$word") ;;
    --sbatch=*) more+=("$value") ;;
    --setup=*) setup=$value ;;
    --dry-run) dry=1 ;;
    --help) usage "$0" && exit 0 ;;
    *) flags+=("$word") ;;
    esac
done
only_flags "${flags[@]+"${flags[@]}"}"
count gpus "$gpus"
count retries "$retries"
[[ -z $cpus ]] || number cpus "$cpus"
[[ -z $at_once ]] || number at-once "$at_once"
processes=${processes:-$((gpus > 0 ? gpus : 1))}
number nodes "$nodes"
number processes "$processes"
number grace "$grace"
if ((gpus > 0 && processes != 1 && processes != gpus)); then
    die "--processes=$processes: one for each of the $gpus GPUs of a node, or 1 for all"
fi
if [[ -n $array ]]; then
    [[ -f $array && -r $array ]] || die "cannot read --array=$array: python -m jaxrec.sweep writes it"
    ((${#flags[@]} == 0)) || die "${flags[0]} beside --array: put it into its lines"
    array=$(realpath "$array")
    runs=$(grep -c . "$array") || die "--array=$array is empty"
    name=$(basename "$(dirname "$array")")
    logs=$(dirname "$array")
    output=slurm-%A_%a.log
    more+=("--array=1-$runs${at_once:+%$at_once}")
else
    workdir=$(flag workdir "${flags[@]+"${flags[@]}"}")
    [[ -n $(flag config "${flags[@]+"${flags[@]}"}") && -n $workdir ]] ||
        die "give --config=FILE and --workdir=DIR, or --array=FILE"
    name=$(basename "$workdir")
    logs=${workdir/#\~\//$HOME/} # as jaxrec.main reads it
    output=slurm-%j.log
fi
output=${logs//%/%%}/$output
for word in "$output" "${more[@]+"${more[@]}"}"; do
    [[ $word != *[[:space:]]* ]] ||
        die "$word: a line of #SBATCH ends at a blank, take words without one"
done
[[ -z $cpus ]] || more+=("--cpus-per-task=$cpus")
((gpus == 0)) || more+=("--gpus-per-node=$gpus")

script() {
    echo '#!/usr/bin/env bash'
    local word
    for word in "--job-name=jaxrec-$name" "--nodes=$nodes" \
        "--ntasks-per-node=$processes" "--signal=B:USR1@$grace" --requeue \
        --open-mode=append "--output=$output" "${more[@]+"${more[@]}"}"; do
        echo "#SBATCH $word"
    done
    echo 'set -u'
    if ((gpus > 1 && processes == 1)); then # JAX would give a task one GPU
        echo "export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))"
    fi
    [[ -z $cpus ]] || echo "export SRUN_CPUS_PER_TASK=$cpus" # sbatch's is not passed on
    [[ -z $setup ]] || echo "$setup"
    echo "losses=$(quoted "$logs")/slurm-\$SLURM_JOB_ID.losses"
    echo "python=$(quoted "$PYTHON") retries=$retries TEMPORARY=$TEMPORARY"
    declare -f worth_retrying
    if [[ -n $array ]]; then
        echo "runs=$(quoted "$array")"
        cat <<'END'
eval "flags=($(grep . "$runs" | sed -n "${SLURM_ARRAY_TASK_ID}p"))"
END
    else
        echo "flags=($(quoted "${flags[@]}"))"
    fi
    cat <<'END'
# limit: the time ends; stop: preempted, which Slurm requeues, or cancelled
told='' step=''
save() { [[ -z $step ]] || kill -USR1 "$step"; } # at SIGTERM srun kills its tasks
trap 'told=limit; save' USR1
trap 'told=${told:-stop}; save' TERM
# Tasks notice a lost one and leave by themselves; Slurm ends those that are stuck.
srun --kill-on-bad-exit=0 --wait=600 "$python" -m jaxrec.main "${flags[@]}" &
step=$!
[[ -z $told ]] || save
while
    wait "$step"
    status=$?
    kill -0 "$step" 2>/dev/null
do :; done # a signal ends the wait before the step
again=''
if [[ $told == limit ]]; then
    ((status == 0 || status == 2)) || again=1
elif [[ -z $told ]] && worth_retrying "$status"; then
    lost=$(cat "$losses" 2>/dev/null || echo 0)
    ((lost >= retries)) || again=1
    echo $((lost + 1)) >"$losses"
fi
[[ -z $again ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
END
}

if [[ -n $dry ]]; then
    echo "sbatch <<'END'"
    script
    echo END
    exit 0
fi
script | bash -n || die "the job's script is not what bash reads: look at --setup"
command -v sbatch >/dev/null || die "no sbatch here: run this on a node of the cluster"
mkdir -p "$logs"
script | sbatch
