"""The child process of `handover.build_aside`: arguments are the folder and the seconds for the comparison."""

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
    send(build(Path(sys.argv[1]), float(sys.argv[2])), stream)
    stream.flush()


main()
