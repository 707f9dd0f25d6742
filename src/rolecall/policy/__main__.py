"""Child process of `build_in_subprocess`: its arguments are those of `build`.

With an empty folder, standard input has the texts of the files.
"""

import os
import pickle
import signal
import sys
from pathlib import Path

from rolecall.policy.build import build
from rolecall.policy.parsed import PolicyFiles
from rolecall.policy.subprocess_build import send


def main() -> None:
    """Build the policy and write the result to the standard output."""
    # Ctrl-C is for the parent process, which decides what happens to the policy.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = sys.stdout.buffer
    sys.stdout = sys.stderr  # so that no library's print ends up between the pickles
    folder, casbin_seconds, known_key = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    source = Path(folder) if folder else PolicyFiles(*pickle.load(sys.stdin.buffer))  # noqa: S301 - our parent wrote it
    result = build(source, casbin_seconds, known_key)
    try:
        send(result, stream)
        stream.flush()
    except BrokenPipeError:
        # The parent process has ended; Python must not report an error when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(1)


main()
