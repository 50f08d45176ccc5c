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
# on a disk that all workers see and that outlives them: mount it with --setup. FILE is
# one of this checkout, such as configs/td3bc.py: its code is what workers get.
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
FOLDERS=(configs jaxrec launch) # what workers get
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
only_flags "${flags[@]+"${flags[@]}"}"

# shipped FILE: whether workers find it by that name, in their copy of the code; not
# where the name means another file here.
shipped() {
    local path=${1#./}
    [[ " ${FOLDERS[*]} " == *" ${path%%/*} "* && /$path/ != */../* ]] &&
        [[ -f $ROOT/$path && (! -e $path || $path -ef $ROOT/$path) ]]
}

[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "give the TPU VM a name: launch/tpu.sh NAME ..."
[[ -n $zone ]] || die "give --zone=ZONE, such as us-central1-a"
count retries "$retries"
number wait "$wait"
if [[ -z $stop ]]; then
    [[ -n $type ]] || die "give --type=TYPE, such as v5litepod-8"
    configs=$(flag config "${flags[@]+"${flags[@]}"}")
    [[ -n $configs ]] || die "give --config=FILE"
    while IFS= read -r config; do
        shipped "${config%%:*}" || die "--config=$config: workers get no such \
file, put it into $ROOT/configs and give --config=configs/NAME.py"
    done <<<"$configs"
    [[ -n $(flag workdir "${flags[@]}") ]] || die "give --workdir=DIR, on a lasting disk"
fi
if [[ -n $dry ]]; then
    temporary=${TMPDIR:-/tmp}
else
    command -v gcloud >/dev/null || die "no gcloud here: install the Google Cloud CLI"
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
fi
packed=$temporary/jaxrec.tar.gz

place=("--zone=$zone" ${project:+"--project=$project"})
# run WORD...: the command, or with --dry-run its text.
run() {
    if [[ -n $dry ]]; then quoted "$@"; else "$@"; fi
}
vm() { run gcloud compute tpus tpu-vm "$@" "${place[@]}"; }
queue() { run gcloud compute tpus queued-resources "$@" "${place[@]}"; }
# on WORKERS COMMAND: in the copy of the code, on all workers or one.
on() { vm ssh "$name" "--worker=$1" "--command=mkdir -p jaxrec && cd jaxrec && $2"; }
# worker WORD...: what launch/tpu_worker.sh is asked there.
worker() { echo "bash launch/tpu_worker.sh $(quoted "$@")"; }

describe_vm() { vm describe "$name" '--format=value(state)'; }
describe_queued() { queue describe "$name" '--format=value(state.state)'; }

# told COMMAND: the state it tells; NONE of a thing that is not there, UNKNOWN where
# gcloud cannot tell, as without a network.
told() {
    local found
    if found=$("$1" 2>"$temporary/error"); then
        echo "$found"
    elif grep -qE 'NOT_FOUND|was not found' "$temporary/error"; then
        echo NONE
    else
        cat "$temporary/error" >&2
        echo UNKNOWN
    fi
}

# The state of the slice or, before there is one, of its place in the queue.
state() {
    local found
    found=$(told describe_vm)
    if [[ $found == NONE && -n $queued ]]; then found=$(told describe_queued); fi
    echo "$found"
}

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

# ready: waits until the slice is, and creates it where there is none; sets `fresh` then.
# A creation that fails ends the script where it is the first: the type may be wrong.
there='' fresh=''
ready() {
    local found
    while true; do
        found=$(state)
        case $found in
        READY)
            there=1
            return
            ;;
        PREEMPTED | TERMINATED | STOPPED | SUSPENDING | SUSPENDED | FAILED)
            there=1
            say "$name was taken away ($found): creating it anew"
            if remove; then continue; fi
            ;;
        NONE)
            if create; then
                there=1 fresh=1
                continue
            fi
            [[ -n $there ]] || exit 1
            ;;
        UNKNOWN) ;;
        *) there=1 ;;
        esac
        say "waiting for $name ($found)"
        sleep "$wait"
    done
}

# reach COMMAND: runs it with a slice that is ready, again while it fails because the
# slice is not there, or does not answer (255 of ssh) as one that was READY just now.
reach() {
    local code
    while true; do
        ready
        code=0
        "$1" || code=$?
        ((code)) || return 0
        if ((code != 255)) && [[ $(state) == READY ]]; then
            say "$name is there, but its commands failed with status $code"
            return "$code"
        fi
        say "$name was not reached: trying again"
        sleep "$wait"
    done
}

pack() {
    run tar -C "$ROOT" --exclude=__pycache__ --exclude='*.egg-info' -czf "$packed" \
        "${FOLDERS[@]}" setup.cfg pyproject.toml README.md
}

# begin: ends what is left of an earlier start, copies the code and starts the run.
begin() {
    vm scp "$packed" "$name:jaxrec.tar.gz" --worker=all || return 255
    on all "{ [ ! -e launch/tpu_worker.sh ] || $(worker kill); } && \
tar -xzf ../jaxrec.tar.gz && $install" &&
        on all "$setup && $(worker start "${flags[@]}")"
}

# ask: sets `answer`, whether a run is at work there.
# shellcheck disable=SC2329 # reach calls it
ask() {
    answer=$(on 0 "if $(worker alive) 2>/dev/null; then echo running; else echo idle; fi") ||
        return 255
}

# tail_of_run: what tpu_worker.sh follow tells; as of a lost run where it is not there.
tail_of_run() { on 0 "$(worker follow) || echo status:$TEMPORARY"; }

# follow: shows the lines of the log that were not shown before, until the end; sets
# `status` to that of the run, or 255 where it was cut off. The lines come with numbers,
# since gcloud by itself connects again and repeats the command.
shown=0
follow() {
    echo 255 >"$temporary/status"
    echo "$shown" >"$temporary/shown"
    tail_of_run | while IFS= read -r line; do
        number=${line%%:*}
        if [[ $number == status ]]; then
            echo "${line#*:}" >"$temporary/status"
        elif [[ $number =~ ^[0-9]+$ ]] && ((number > shown)); then
            printf '%s\n' "${line#*:}"
            shown=$number
            echo "$shown" >"$temporary/shown"
        fi
    done || true
    status=$(cat "$temporary/status")
    shown=$(cat "$temporary/shown")
}

if [[ -n $stop ]]; then
    on all "$(worker stop)"
    exit
fi
if [[ -n $dry ]]; then
    describe_vm
    [[ -z $queued ]] || describe_queued
    create
    pack
    begin
    tail_of_run
    [[ -z $delete ]] || remove
    exit
fi

pack # once, so that the run goes on with the code it began with
reach ask
if [[ $answer == *running* ]]; then
    say "$name is at work: following"
else
    reach begin
fi
for ((attempt = 0; ; )); do
    follow
    ((status == 143)) || worth_retrying "$status" || break
    sleep "$wait" # gcloud may learn of a preemption later than the run
    if ((status == 143)); then # SIGTERM: of --stop, or of a machine that is taken away
        case $(state) in PREEMPTED | SUSPENDING | SUSPENDED) ;; *) break ;; esac
    fi
    fresh=''
    ready
    if [[ -z $fresh ]]; then
        if ((status == 255)); then continue; fi # the connection alone
        ((attempt < retries)) || break
        attempt=$((attempt + 1))
        say "a process ended with status $status: starting again ($attempt of $retries)"
    fi
    reach begin
    shown=0
done
if ((status == 0)) && [[ -n $delete ]]; then remove; fi
exit "$status"
