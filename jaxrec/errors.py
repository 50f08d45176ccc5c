"""Errors that end a run with one line; no JAX is imported here."""

import sys


class UserError(ValueError):
    """The user's input, data or environment is at fault.

    The message is one line that names the cause and the remedy; `main` prints it
    and exits with status 2.
    """


class Interrupted(Exception):
    """A signal asked the run to end; what was reached is saved.

    `signal_number` gives the exit status, 128 + the number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class PeerLost(Exception):
    """Another process of the run is gone; started again, all go on together.

    `main` prints the line and exits with status 75, "temporary failure".
    """


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:160]


def fail(message: object) -> int:
    """Tell of a fault of the user's input in one line; returns the exit status."""
    print(f"jaxrec: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
