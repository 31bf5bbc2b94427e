"""What asks a run to stop. Nothing heavy is imported here: launchers ask it too."""

import signal

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""A shutdown, the warning of one, Ctrl-C, a terminal that is gone, Ctrl-\\."""


def stopping() -> list[signal.Signals]:
    """The signals that ask this process to stop: those of STOP, but for a hangup that is ignored here (nohup)."""
    return [number for number in STOP if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
