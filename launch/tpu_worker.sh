#!/usr/bin/env bash
# launch/tpu_worker.sh start FLAG... | alive | follow LINES | stop | kill
#
# What launch/tpu.sh asks of each worker, in the copy of the code there.
#
#   start   jaxrec.main with these flags, in a session of its own that outlives the
#           connection; leaves the files pid, run.log and, at its end, status
#   alive   succeeds while that session runs
#   follow  shows run.log from LINES on until the end; exits as the run did, or with 75
#           where it went without a status, as after a reboot
#   stop    lets the run save and end
#   kill    ends what is left of it

set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

task=${1:-}
shift
case $task in
start)
    rm -f status run.log
    setsid nohup bash "${BASH_SOURCE[0]}" session "$@" </dev/null >/dev/null 2>&1 &
    echo $! >pid
    ;;
session)
    trap : TERM # for the run; this shell has the status to write down
    PATH=$PWD/venv/bin:$PATH python -m jaxrec.main --distributed "$@" >>run.log 2>&1
    echo $? >status
    ;;
alive) [[ -e pid ]] && kill -0 "$(cat pid)" 2>/dev/null ;;
follow)
    tail -n "$1" -f --pid="$(cat pid)" run.log
    sleep 1
    exit "$(cat status 2>/dev/null || echo "$TEMPORARY")"
    ;;
stop) kill -TERM -- "-$(cat pid)" ;;
kill) kill -KILL -- "-$(cat pid)" 2>/dev/null || true ;;
*) usage "$0" && exit 2 ;;
esac
