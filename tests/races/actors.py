"""Who takes part in a race: does one deed after the other, here or in a process of its own that lives through all."""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import structlog

from rolecall import keys, live_policy, policy
from rolecall.acceptance import Acceptance
from rolecall.audit import AuditLog
from rolecall.directory import Directory
from rolecall.errors import RolecallError, WriteConflict
from rolecall.invitations import Invitations
from rolecall.links import Links
from rolecall.live_policy import LivePolicy
from rolecall.members import Members
from rolecall.mutations import Arrival, Attempt, Mutations
from rolecall.pages import Pages
from rolecall.sessions import Sessions
from rolecall.storage import Storage
from rolecall.token_rules import Wish
from rolecall.tokens import Tokens

__all__ = ["DONE", "Actor", "Child", "Deed", "Outcome"]

DONE = "done"
# How often somebody tries again whom others kept from writing, as a client would.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Deed:
    """What somebody does, with which credential or mailed secret, to whom; `pause` seconds after the start."""

    what: str
    secret: str
    about: tuple[str, ...] = ()
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`DONE`, the error's reason or the defect; the user who came in, the credential that was made, when it was done.

    `conflicts`: how often others kept it from writing.
    """

    said: str
    user_id: str = ""
    secret: str = ""
    conflicts: int = 0
    began: float = 0.0
    ended: float = 0.0


class Actor:
    """The parts that a server has, without the server. Threads may share it."""

    def __init__(self, storage: Storage, key_file: Path, policies: Path) -> None:
        key = keys.read(key_file)
        # What it takes to build a policy aside is tested with the policies.
        with (
            patch.object(live_policy, "build_aside", policy.build),
            patch.object(live_policy, "START_ORACLE_SECONDS", 0),
        ):
            live = LivePolicy(policies, storage)
        pages = Pages(key)
        self.links = Links(key)
        self.directory = Directory(storage)
        mutations = Mutations(storage, self.directory, live, AuditLog(key))
        self._members = Members(mutations, storage, live, pages)
        self._invitations = Invitations(mutations, storage, live, pages)
        self._tokens = Tokens(mutations, storage, live, pages)
        self._sessions = Sessions(mutations, storage, live, self.links)
        self._acceptance = Acceptance(mutations, storage, self.links)

    def ready(self, deed: Deed) -> Callable[[], Outcome]:
        """Does the deed when it is called; who presents the credential is found out before."""
        # Many strangers, as one who is wrong so often would soon be turned away.
        arrival = Arrival(deed.what, "call", deed.secret)
        match deed.what:
            case "AcceptInvitation":
                return lambda: _run(deed, lambda: self._accept(arrival, deed))
            case "SignIn":
                return lambda: _run(deed, lambda: self._sign_in(arrival, deed))
        caller = self.directory.caller(deed.secret)
        assert caller is not None, deed
        attempt = Attempt(caller, deed.what, "call")
        return lambda: _run(deed, lambda: self._attempt(attempt, deed))

    def _attempt(self, attempt: Attempt, deed: Deed) -> tuple[str, str]:
        match deed.what:
            case "ChangeMemberRole":
                user_id, role = deed.about
                self._members.change_role(attempt, user_id, role, "")
            case "RemoveMember":
                self._members.remove(attempt, deed.about[0], "")
            case "LeaveOrganization":
                self._members.leave(attempt)
            case "CreateInvitations":
                entries = [(address, "VIEWER") for address in deed.about]
                self._invitations.create(attempt, entries, validate_only=False)
            case "ResendInvitation":
                self._invitations.resend(attempt, deed.about[0], "")
            case "DeleteInvitation":
                self._invitations.delete(attempt, deed.about[0], "")
            case "CreatePersonalToken":
                return "", self._tokens.create_personal(attempt, Wish("laptop")).secret
            case _:
                raise AssertionError(deed)
        return "", ""

    def _accept(self, arrival: Arrival, deed: Deed) -> tuple[str, str]:
        entrance = self._acceptance.accept(arrival, "", deed.secret, "")
        return entrance.member.user_id, entrance.session.text

    def _sign_in(self, arrival: Arrival, deed: Deed) -> tuple[str, str]:
        entrance = self._sessions.sign_in(arrival, "", deed.secret)
        return entrance.member.user_id, entrance.session.text


class Child:
    """An actor in a process of its own, with a database connection of its own."""

    def __init__(self, url: str, key_file: Path, policies: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, str(key_file), str(policies)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def prepare(self, deed: Deed) -> None:
        """Tell it what to do, and wait until it is ready."""
        self._stdin.write(json.dumps(asdict(deed)) + "\n")
        assert self._stdout.readline() == "ready\n"

    def go(self) -> None:
        """Have it begin; waits for nothing."""
        self._stdin.write("go\n")

    def outcome(self) -> Outcome:
        """What came of it."""
        line = self._stdout.readline()
        assert line, "the child died"
        return Outcome(**json.loads(line))

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def _run(deed: Deed, do: Callable[[], tuple[str, str]]) -> Outcome:
    """What comes of it."""
    time.sleep(deed.pause)
    said, user_id, secret, conflicts = WriteConflict.reason, "", "", 0
    began = time.monotonic()
    while said == WriteConflict.reason and conflicts < TRIES:
        try:
            user_id, secret = do()
            said = DONE
        except WriteConflict:
            conflicts += 1
        except RolecallError as error:
            said = error.reason
        except Exception as error:  # noqa: BLE001 - a child must live on for the races after this one
            traceback.print_exc()
            said = repr(error)
    return Outcome(said, user_id, secret, conflicts, began, time.monotonic())


def main(url: str, key_file: str, policies: str) -> None:
    """Do what each line says, at the line after it."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    storage = Storage(url)
    actor = Actor(storage, Path(key_file), Path(policies))
    for line in sys.stdin:
        told = json.loads(line)
        go = actor.ready(Deed(**{**told, "about": tuple(told["about"])}))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(json.dumps(asdict(go())) + "\n")
        sys.stdout.flush()
    storage.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
