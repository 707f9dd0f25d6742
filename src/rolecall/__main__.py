"""The command `rolecall`, also run by `python -m rolecall`."""

import sys

from rolecall.environment import SERVER_EXTRA_MISSING, importing, lacks_server_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line. Exits with 2 on errors, also where the extra `server` is not installed."""
    if lacks_server_extra():
        sys.stderr.write(f"{SERVER_EXTRA_MISSING}\n")
        sys.exit(2)
    with importing():
        from rolecall.cli import main as run  # noqa: PLC0415 - needs the packages that were looked for above

    run()


if __name__ == "__main__":
    main()
