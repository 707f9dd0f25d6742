"""The child process of `handover.build_aside`: arguments are the folder and the seconds for the comparison."""

import os
import signal
import sys
from pathlib import Path

from rolecall.policy.build import build
from rolecall.policy.handover import send


def main() -> None:
    """Build, and hand the result over on the standard output."""
    # Ctrl-C is for the process that waits for us: it decides what becomes of the policy.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = sys.stdout.buffer
    sys.stdout = sys.stderr  # so that no library's print ends up between the pickles
    result = build(Path(sys.argv[1]), float(sys.argv[2]))
    try:
        send(result, stream)
        stream.flush()
    except BrokenPipeError:
        # Whoever waited for us has ended; Python must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(1)


main()
