# Parts of the launch scripts; sourced by them, not run.
# shellcheck shell=bash

PYTHON=${PYTHON:-python}
TEMPORARY=75 # jaxrec.main: another process of the run is gone

die() {
    echo "launch: error: $*" >&2
    exit 2
}

say() { echo "launch: $*" >&2; }

# usage SCRIPT: the comment at its head, from the second line to the first without "#".
usage() { sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//; p}}' "$1"; }

# quoted WORD...: one line that a shell reads as these words.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# number NAME VALUE: dies unless VALUE is a positive number, of six digits at most.
number() { [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || die "--$1=$2: give a positive number"; }

# count NAME VALUE: as `number`, but 0 is one too.
count() { [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || die "--$1=$2: give a number"; }

# only_flags WORD...: dies at a word that is no flag of jaxrec.main, such as --retrys=5
# or "--nodes 2" instead of --nodes=2, before a machine is asked for.
only_flags() {
    local word
    for word; do
        case $word in
        --config=* | --config.?*=* | --workdir=* | --verbosity=* | --peer_timeout=*) ;;
        --coordinator=* | --num_processes=* | --process_id=*) ;;
        --distributed | --nodistributed | --distributed=*) ;;
        -*=*) die "unknown option $word: see --help" ;;
        -*) die "unknown option $word, at least without =VALUE: see --help" ;;
        *) die "$word is no flag: give --NAME=VALUE, with the sign =" ;;
        esac
    done
}

# flag NAME WORD...: the value of --NAME=VALUE among the words, nothing without it.
flag() {
    local name=$1 word
    shift
    for word; do
        if [[ $word == "--$name="* ]]; then echo "${word#*=}"; fi
    done
}

# worth_retrying STATUS: whether the same command goes on where the last one ended: a
# process was lost (75), or killed, but not by a signal that asks to stop.
worth_retrying() {
    case $1 in
    "$TEMPORARY") return 0 ;;
    130 | 138 | 143) return 1 ;;
    *) (($1 > 128)) ;;
    esac
}
