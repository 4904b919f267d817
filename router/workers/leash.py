"""A process that dies with its parent, also when that is killed without a word. Linux only.

As a program: `python leash.py PARENT COMMAND...` becomes the command, held so. The signals by which a service manager
or a terminal ends a whole group of processes stay blocked in it: those who need it may leave in order meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept over exec


def hold_to(parent: int) -> None:
    """Until this is called, and only then, a parent that dies leaves this process behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before


def main() -> None:
    parent, *command = sys.argv[1:]
    hold_to(int(parent))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    os.execv(command[0], command)  # noqa: S606 - what our parent found and checked


if __name__ == "__main__":
    main()
