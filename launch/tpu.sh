#!/usr/bin/env bash
# launch/tpu.sh NAME --zone=ZONE --type=TYPE [OPTION...] --config=FILE --workdir=DIR
#     [FLAG OF jaxrec.main...]
#
# Runs jaxrec on all workers of the TPU VM NAME (a slice of any size), which is created
# unless it is there, and shows the log of its first worker. A preempted slice is
# created anew, a lost process started again; the run goes on from the last checkpoint.
# The run does not end with this script: the same command follows it again.
#
# With more than one worker, or where preemption is to be survived, --workdir has to be
# on a disk that all workers see and that outlives them: mount it with --setup.
#
#   --type=TYPE        such as v5litepod-16
#   --version=VERSION  of the software (default tpu-ubuntu2204-base)
#   --project=PROJECT
#   --spot             at the price, and with the end, of spot machines
#   --queued           wait in the queue (a queued resource) instead of failing when
#                      there is none
#   --install=COMMAND  in the copy of the code on each worker (default: a virtual
#                      environment with jax[tpu] and this package)
#   --setup=COMMAND    on each worker before every start, such as a mount
#   --retries=N        how often a lost run is started again (default 3; preemptions
#                      do not count)
#   --wait=S           seconds between two looks at a machine that is not ready
#   --stop             save and end the run that is there
#   --delete           delete the slice when the run is done
#   --dry-run          print the commands, run nothing
#   --help             this text

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=tpu-ubuntu2204-base retries=3 wait=30 setup=true
install="python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet \
--allow-existing --python=3.11 venv && python3 -m uv pip install --quiet \
--python=venv/bin/python 'jax[tpu]' -e ."
name='' zone='' type='' project='' spot='' queued='' stop='' delete='' dry='' flags=()
for word; do
    value=${word#*=}
    case $word in
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --project=*) project=$value ;;
    --spot) spot=$word ;;
    --queued) queued=1 ;;
    --install=*) install=$value ;;
    --setup=*) setup=$value ;;
    --retries=*) retries=$value ;;
    --wait=*) wait=$value ;;
    --stop) stop=1 ;;
    --delete) delete=1 ;;
    --dry-run) dry=1 ;;
    --help) usage "$0" && exit 0 ;;
    -*) flags+=("$word") ;;
    *)
        [[ -z $name ]] || die "$word: after the name $name, give --NAME=VALUE"
        name=$word
        ;;
    esac
done
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "give the TPU VM a name: launch/tpu.sh NAME ..."
[[ -n $zone ]] || die "give --zone=ZONE, such as us-central1-a"
[[ $retries =~ ^[0-9]+$ ]] || die "--retries=$retries: give a number"
number wait "$wait"
if [[ -z $stop ]]; then
    [[ -n $type ]] || die "give --type=TYPE, such as v5litepod-8"
    [[ -n $(flag config "${flags[@]+"${flags[@]}"}") ]] || die "give --config=FILE"
    [[ -n $(flag workdir "${flags[@]}") ]] || die "give --workdir=DIR, on a lasting disk"
fi
if [[ -z $dry ]]; then
    command -v gcloud >/dev/null || die "no gcloud here: install the Google Cloud CLI"
fi

place=("--zone=$zone" ${project:+"--project=$project"})
# run WORD...: the command, or with --dry-run its text.
run() {
    if [[ -n $dry ]]; then quoted "$@"; else "$@"; fi
}
vm() { run gcloud compute tpus tpu-vm "$@" "${place[@]}"; }
queue() { run gcloud compute tpus queued-resources "$@" "${place[@]}"; }
# on WORKERS COMMAND: in the copy of the code, on all workers or one.
on() { vm ssh "$name" "--worker=$1" "--command=mkdir -p jaxrec && cd jaxrec && $2"; }

# The state of the slice; nothing when there is none.
state() { gcloud compute tpus tpu-vm describe "$name" "${place[@]}" '--format=value(state)' 2>/dev/null || true; }

create() {
    if [[ -n $queued ]]; then
        queue create "$name" "--node-id=$name" "--accelerator-type=$type" \
            "--runtime-version=$version" ${spot:+"$spot"}
    else
        vm create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+"$spot"}
    fi
}

remove() {
    if [[ -n $queued ]]; then
        queue delete "$name" --force --quiet
    else
        vm delete "$name" --quiet
    fi
}

# ready: waits until the slice is; sets `fresh` where it has not our code yet.
ready() {
    local found
    fresh='' asked=''
    while true; do
        found=$(state)
        case $found in
        READY) return ;;
        PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED)
            say "$name was taken away: creating it anew"
            remove
            asked=''
            ;;
        '')
            if [[ -z $asked ]]; then
                create
                fresh=1 asked=1
                continue
            fi
            ;;
        esac
        say "waiting for $name (${found:-not there yet})"
        sleep "$wait"
    done
}

copy() {
    local packed=$ROOT/build/jaxrec.tar.gz
    run mkdir -p "$ROOT/build"
    run tar -C "$ROOT" --exclude=__pycache__ --exclude='*.egg-info' -czf "$packed" \
        jaxrec configs launch setup.cfg pyproject.toml README.md
    vm scp "$packed" "$name:jaxrec.tar.gz" --worker=all
    on all "tar -xzf ../jaxrec.tar.gz && $install"
}

# worker WORD...: what launch/tpu_worker.sh is asked there.
worker() { echo "bash launch/tpu_worker.sh $(quoted "$@")"; }

start() { on all "$setup && $(worker start "${flags[@]}")"; }

# follow LINES: the log from there on; the status of the run, 255 where it is cut off.
follow() { on 0 "$(worker follow "$1")"; }

if [[ -n $stop ]]; then
    on all "$(worker stop)"
    exit
fi
if [[ -n $dry ]]; then
    run gcloud compute tpus tpu-vm describe "$name" "${place[@]}" '--format=value(state)'
    create
    copy
    start
    follow +1
    [[ -z $delete ]] || remove
    exit
fi

ready
if [[ -z $fresh ]] && on 0 "$(worker alive)" 2>/dev/null; then
    say "$name is at work: following"
else
    copy
    start
fi
lines=+1
for ((attempt = 0; ; )); do
    status=0
    follow "$lines" || status=$?
    lines=0
    if ((status == 255)); then # the connection, or the machine
        sleep "$wait"
        if [[ $(state) == READY ]]; then continue; fi
        ready
        copy
    elif worth_retrying "$status" && ((attempt < retries)); then
        attempt=$((attempt + 1))
        say "a process ended with status $status: starting again ($attempt of $retries)"
        on all "$(worker kill)"
    else
        break
    fi
    start
    lines=+1
done
if ((status == 0)) && [[ -n $delete ]]; then remove; fi
exit "$status"
