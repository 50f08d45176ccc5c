#!/usr/bin/env bash
# launch/tpu_worker.sh start FLAG... | alive | follow | stop | kill
#
# What launch/tpu.sh asks of each worker, in the copy of the code there.
#
#   start   jaxrec.main with these flags, in a session of its own that outlives the
#           connection; leaves the files pid, run.log and, at its end, status. Ends what
#           is left of an earlier session first
#   alive   succeeds while that session runs
#   follow  shows run.log, its lines as NUMBER:TEXT, until the end of the run; the last
#           line is status:N, with 75 where the run went without a status, as after a
#           reboot
#   stop    lets the run save and end
#   kill    ends what is left of it, and waits for that

set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# ours: the processes of the session, one a line. After a reboot the number in `pid` may
# be that of others, which is why their command line is looked at.
ours() { [[ -s pid ]] && pgrep -g "$(cat pid)" -f 'tpu_worker\.sh session|jaxrec\.main'; }

alive() { ours | grep -qx "$(cat pid 2>/dev/null)"; }

end() {
    local look
    for ((look = 0; look < 300; look++)); do
        ours >/dev/null || return 0
        kill -KILL -- "-$(cat pid)" 2>/dev/null
        sleep 0.2
    done
    die "the processes of an earlier run do not end: $(ours | paste -sd' ')"
}

task=${1:-}
shift
case $task in
start)
    end
    rm -f pid status
    : >run.log # before the session, for those who follow it
    setsid nohup bash "${BASH_SOURCE[0]}" session "$@" </dev/null >/dev/null 2>&1 &
    while kill -0 $! 2>/dev/null && [[ ! -s pid ]]; do sleep 0.1; done
    [[ -s pid ]] || die "no session started: is $PWD full?"
    ;;
session)
    trap : TERM # for the run; this shell has the status to write down
    echo $$ >pid
    PATH=$PWD/venv/bin:$PATH python -m jaxrec.main --distributed "$@" >>run.log 2>&1
    echo $? >status
    ;;
alive) alive ;;
follow)
    [[ -e run.log ]] || die "nothing was started in $PWD"
    if alive; then
        tail -n +1 -f --pid="$(cat pid)" run.log
    else
        cat run.log
    fi | grep -an --line-buffered ''
    code=$(cat status 2>/dev/null)
    echo "status:${code:-$TEMPORARY}"
    ;;
stop)
    if ours >/dev/null; then kill -TERM -- "-$(cat pid)"; else say "nothing runs here"; fi
    ;;
kill) end ;;
*) usage "$0" && exit 2 ;;
esac
