"""python -m jaxrec.main --config=configs/otto.py [--workdir=DIR] [--config.FIELD=VALUE]

Does the whole run: data, training, evaluation, summary. The same command again resumes
it, or prints the summary of a finished one. `--config=configs/otto.py:smoke` is a
short form of the same path. Exit status: 0 done; 2 a fault of the input, in one line;
75 another process of the run is gone, 128 + N stopped by signal N: to be resumed.

One run may have several processes, each started with the same command: a step of
several tasks in Slurm, or --coordinator, --num_processes and --process_id (or
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), or, where JAX finds the
others by itself, as on a TPU slice, --distributed.
"""

import errno
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxrec.errors import Interrupted, PeerLost, UserError, fail

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Path of a config file, with an argument after a colon."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default: runs/<name of the config>."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: HOST:PORT on the host of process 0."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    None,
    "Find the other processes as JAX does (TPU slice, Slurm, MPI); --nodistributed: "
    "run alone, whatever the variables say.",
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout",
    100,
    "Several processes: seconds of silence after which one counts as dead and the "
    "others end, to be started again.",
    lower_bound=2,
)
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
NO_SPACE += (errno.EPERM,)


def main(argv: list[str]) -> int:
    """Run the experiment that the flags name; returns the exit status."""
    if not logging.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax tells every step of a save
        # ... and of a failed one in hundreds of lines, which it raises as well.
        logging.get_absl_logger().setLevel("CRITICAL")
    if len(argv) > 1:
        return fail(f"unexpected argument {argv[1]!r}: flags start with --")
    if CONFIG.value is None:
        return fail("no config: for example --config=configs/otto.py")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    if not Path(path).is_file():  # the flag's parser defers this until it is used
        return fail(f"no config file {path}: for example --config=configs/otto.py")
    from jaxrec import hosts  # after --help, which needs no JAX

    # A shell leaves the ~ of --workdir=~/run as it is; an unknown ~user stays too.
    workdir = Path(os.path.expanduser(WORKDIR.value or f"runs/{CONFIG.value.name}"))
    try:
        address = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
        found = hosts.plan(os.environ, *address, DISTRIBUTED.value)
        if found is not None:
            hosts.join(found, PEER_TIMEOUT.value)
        from jaxrec import experiment, report  # after the meeting: they may use JAX

        with hosts.membership():
            summary = experiment.run(CONFIG.value, workdir)
    except UserError as error:
        return fail(str(error))
    except PeerLost as error:
        print(f"jaxrec: {error}", file=sys.stderr)
        return hosts.leave(TEMPORARY)
    except Interrupted as stop:
        print(f"jaxrec: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = error.filename or workdir
        return fail(f"cannot write {where} ({error.strerror}): free space or change it")
    if not hosts.is_lead():
        return 0
    print(report.final_table(summary))
    print(f"\n{workdir}/summary.json")
    return 0


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with faults of the flags and the config file as one line."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config file may raise anything
        sys.exit(fail(f"{reason(error)} (see --help)"))


def read_config(argv: list[str]) -> ConfigDict:
    """What `CONFIG` would be with these flags. Raises UserError where it would fail."""
    found = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=found, sys_argv=argv)
    try:
        found(["jaxrec", *argv], known_only=True)
    except Exception as error:
        raise UserError(reason(error)) from error
    return found.config


def reason(error: Exception) -> str:
    """The line of an error of the flags or the config file that says why."""
    # absl quotes the whole traceback of a config file, and ConfigDict the text of a
    # KeyError, quotes and escapes included; the last line says why.
    text = str(error).encode().decode("unicode_escape").strip()
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):
        text = text[1:-1]
    line = re.sub(r"^\w+(Error|Exception): ", "", text.splitlines()[-1])
    if re.fullmatch(r"'\w+'", line):  # a KeyError with no near name to tell
        line = f"the config has no field {line}"
    if early := re.match(r"Found (--\S+) in argv before a value for --config", line):
        line = f"put --config=FILE first, before {early[1]}"
    return line


def cli() -> None:
    """Entry point."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    cli()
