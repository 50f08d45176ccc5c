#!/usr/bin/env bash
# launch/gpu.sh [OPTION...] --config=FILE --workdir=DIR [FLAG OF jaxrec.main...]
#
# Runs jaxrec on one node, as one process or as several, and starts it again when a
# process was lost; it goes on from the last checkpoint. SIGTERM, SIGINT (Ctrl-C) and
# SIGUSR1 make all processes save the same step and end; the same command resumes.
#
#   --processes=N   how many processes share the GPUs evenly (default 1, with all GPUs)
#   --gpus=LIST     the GPUs to use, such as 0,1,2,3 (default: CUDA_VISIBLE_DEVICES, or
#                   all that nvidia-smi lists)
#   --cpu=N         no GPUs: N CPU devices a process
#   --port=PORT     of the coordinator (default: chosen anew at every start)
#   --retries=N     how often a lost run is started again (default 3)
#   --grace=S       seconds in which the other processes may end by themselves when one
#                   is lost, before they are killed (default 15)
#   --dry-run       print the commands, run nothing
#   --help          this text
#
# PYTHON names the interpreter (default: python). Exit status: that of jaxrec.main.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=1 gpus='' cpu='' port='' retries=3 grace=15 dry='' flags=()
for word; do
    value=${word#*=}
    case $word in
    --processes=*) processes=$value ;;
    --gpus=*) gpus=$value ;;
    --cpu=*)
        number cpu "$value"
        cpu=$value
        ;;
    --port=*) port=$value ;;
    --retries=*) retries=$value ;;
    --grace=*) grace=$value ;;
    --dry-run) dry=1 ;;
    --help) usage "$0" && exit 0 ;;
    *) flags+=("$word") ;;
    esac
done
only_flags "${flags[@]+"${flags[@]}"}"
number processes "$processes"
number grace "$grace"
count retries "$retries"
[[ -z $port ]] || number port "$port"
[[ -n $(flag config "${flags[@]+"${flags[@]}"}") ]] ||
    die "no --config=FILE: for example --config=configs/otto.py"
if ((processes > 1)) && [[ -z $(flag workdir "${flags[@]}") ]]; then
    die "no --workdir=DIR: several processes share one"
fi

[[ -z $gpus || ,$gpus, != *,,* ]] || die "--gpus=$gpus: one of them has no name"
if [[ -z $cpu ]] && ((processes > 1)); then
    gpus=${gpus:-${CUDA_VISIBLE_DEVICES:-}}
    if [[ -z $gpus ]] && command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)
    fi
    IFS=, read -ra list <<<"$gpus"
    ((${#list[@]} > 0)) || die "no GPUs found: give --gpus=0,1 or --cpu=1"
    ((${#list[@]} % processes == 0)) ||
        die "${#list[@]} GPUs ($gpus) are not shared evenly by $processes processes"
    [[ -z $(printf '%s\n' "${list[@]}" | sort | uniq -d) ]] ||
        die "--gpus=$gpus: one of them comes twice"
fi

# command_of N: sets `words`, the command of process N.
command_of() {
    words=(env)
    if [[ -n $cpu ]]; then
        words+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$cpu")
    elif ((processes > 1)); then
        local share=$((${#list[@]} / processes))
        local mine=("${list[@]:$1*share:share}")
        words+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")")
    elif [[ -n $gpus ]]; then
        words+=("CUDA_VISIBLE_DEVICES=$gpus")
    fi
    if ((processes > 1)); then
        words+=("JAX_COORDINATOR_ADDRESS=localhost:$address")
        words+=("JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1")
    fi
    words+=("$PYTHON" -m jaxrec.main "${flags[@]}")
}

pids=() stopping=''
forward() { # the processes have sessions of their own, so each signal comes once
    stopping=1
    ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
}

# run_once: all processes, from their start to the end of the last; sets `status`.
run_once() {
    local number pid code lost=0
    pids=() status=0
    address=${port:-$((20000 + RANDOM % 10000))}
    for ((number = 0; number < processes; number++)); do
        command_of "$number"
        setsid "${words[@]}" &
        pids+=($!)
    done
    [[ -z $stopping ]] || forward
    local left=("${pids[@]}")
    while ((${#left[@]})); do
        sleep 0.3 &
        wait $! || true
        local running=()
        for pid in "${left[@]}"; do
            if [[ " $(jobs -pr | paste -sd' ') " == *" $pid "* ]]; then
                running+=("$pid")
                continue
            fi
            code=0
            wait "$pid" || code=$?
            # A fault of the input says more than the losses that follow from it.
            if ((status == 0 || code == 2)); then status=$code; fi
            if ((code && !lost)); then lost=$SECONDS; fi
        done
        left=("${running[@]+"${running[@]}"}")
        if ((lost && ${#left[@]} && SECONDS - lost > grace)); then
            kill -KILL "${left[@]}" 2>/dev/null || true
        fi
    done
}

if [[ -n $dry ]]; then
    address=${port:-$((20000 + RANDOM % 10000))}
    for ((number = 0; number < processes; number++)); do
        command_of "$number"
        echo "$(quoted "${words[@]}") &"
    done
    echo wait
    exit 0
fi
trap forward TERM INT USR1
for ((attempt = 0; ; attempt++)); do
    run_once
    if [[ -n $stopping ]] || ((attempt == retries)) || ! worth_retrying "$status"; then
        exit "$status"
    fi
    say "a process ended with status $status: starting again ($((attempt + 1)) of $retries)"
    sleep 1
done
