"""Participants of a race, in this process or in one of their own: each runs one action after another."""

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

from rolecall import policy
from rolecall.audit import AuditLog
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Invitee
from rolecall.errors import RolecallError, WriteConflict
from rolecall.identity.authentication import Authenticator
from rolecall.limits import Limits
from rolecall.policy import reload
from rolecall.policy.reload import LivePolicy
from rolecall.services.invitations import Invitations
from rolecall.services.members import Members
from rolecall.services.pagination import Pagination
from rolecall.services.sessions import Sessions
from rolecall.services.token_rules import TokenSpec
from rolecall.services.tokens import Tokens
from rolecall.services.unit_of_work import ChangeRequest, UnauthenticatedCall, UnitOfWork
from rolecall.storage import Storage

__all__ = ["DONE", "Action", "Participant", "ParticipantProcess", "Result"]

DONE = "done"
# Maximum attempts after write conflicts, as a client would make.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Action:
    """Action with a credential or mailed secret: an RPC and its arguments, `pause` seconds after the start."""

    what: str
    secret: str
    arguments: tuple[str, ...] = ()
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Result of an action. `status`: `DONE`, the error's reason, or the defect.

    `user_id`: a new member; `secret`: a new credential; `conflicts`: number of write conflicts; `began` and `ended`:
    monotonic seconds.
    """

    status: str
    user_id: str = ""
    secret: str = ""
    conflicts: int = 0
    began: float = 0.0
    ended: float = 0.0


class Participant:
    """Services of a server without its transports. Threads may share it."""

    def __init__(self, storage: Storage, key_file: Path, policies: Path) -> None:
        key = server_key.read(key_file)
        # Built in this process: the subprocess is tested with the policies.
        with patch.object(reload, "build_in_subprocess", policy.build):
            live = LivePolicy(policies, storage, Limits(casbin_seconds=0))
        pages = Pagination(key)
        self.links = MailedSecrets(key)
        self.authenticator = Authenticator(storage)
        unit_of_work = UnitOfWork(storage, self.authenticator, live, AuditLog(key))
        self._members = Members(unit_of_work, storage, live, pages)
        self._invitations = Invitations(unit_of_work, storage, live, pages, self.links)
        self._tokens = Tokens(unit_of_work, storage, live, pages)
        self._sessions = Sessions(unit_of_work, storage, live, self.links)

    def ready(self, action: Action) -> Callable[[], Result]:
        """Authenticate the credential; return a function that runs the action."""
        # Each secret has a peer of its own: one peer with all these failures would be rate-limited.
        call = UnauthenticatedCall(action.what, "call", action.secret)
        match action.what:
            case "AcceptInvitation":
                return lambda: _run(action, lambda: self._accept(call, action))
            case "SignIn":
                return lambda: _run(action, lambda: self._sign_in(call, action))
        caller = self.authenticator.authenticate(action.secret)
        assert caller is not None, action
        change = ChangeRequest(caller, action.what, "call")
        return lambda: _run(action, lambda: self._change(change, action))

    def _change(self, change: ChangeRequest, action: Action) -> tuple[str, str]:
        match action.what:
            case "ChangeMemberRole":
                user_id, role = action.arguments
                self._members.change_role(change, user_id, role, "")
            case "RemoveMember":
                self._members.remove(change, action.arguments[0], "")
            case "LeaveOrganization":
                self._members.leave(change)
            case "CreateInvitations":
                invitees = [Invitee(address, "VIEWER") for address in action.arguments]
                self._invitations.create(change, invitees, validate_only=False)
            case "ResendInvitation":
                self._invitations.resend(change, action.arguments[0], "")
            case "DeleteInvitation":
                self._invitations.delete(change, action.arguments[0], "")
            case "CreatePersonalToken":
                return "", self._tokens.create_personal(change, TokenSpec("laptop")).secret
            case _:
                raise AssertionError(action)
        return "", ""

    def _accept(self, call: UnauthenticatedCall, action: Action) -> tuple[str, str]:
        opened = self._invitations.accept(call, "", action.secret, "")
        return opened.member.user_id, opened.session.text

    def _sign_in(self, call: UnauthenticatedCall, action: Action) -> tuple[str, str]:
        opened = self._sessions.sign_in(call, "", action.secret)
        return opened.member.user_id, opened.session.text


class ParticipantProcess:
    """Participant in a process of its own, with its own database connections."""

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

    def prepare(self, action: Action) -> None:
        """Send the action, and wait until the process is ready."""
        self._stdin.write(json.dumps(asdict(action)) + "\n")
        assert self._stdout.readline() == "ready\n"

    def go(self) -> None:
        """Start the action, without waiting for it."""
        self._stdin.write("go\n")

    def result(self) -> Result:
        """Wait for the result, and return it."""
        line = self._stdout.readline()
        assert line, "the child died"
        return Result(**json.loads(line))

    def stop(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def _run(action: Action, do: Callable[[], tuple[str, str]]) -> Result:
    """Run the action, and return its result."""
    time.sleep(action.pause)
    status, user_id, secret, conflicts = WriteConflict.reason, "", "", 0
    began = time.monotonic()
    while status == WriteConflict.reason and conflicts < TRIES:
        try:
            user_id, secret = do()
            status = DONE
        except WriteConflict:
            conflicts += 1
        except RolecallError as error:
            status = error.reason
        except Exception as error:  # noqa: BLE001 - a child must live on for the races after this one
            traceback.print_exc()
            status = repr(error)
    return Result(status, user_id, secret, conflicts, began, time.monotonic())


def main(url: str, key_file: str, policies: str) -> None:
    """Read actions from standard input; run each when the next line arrives."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    storage = Storage(url)
    participant = Participant(storage, Path(key_file), Path(policies))
    for line in sys.stdin:
        fields = json.loads(line)
        go = participant.ready(Action(**{**fields, "arguments": tuple(fields["arguments"])}))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(json.dumps(asdict(go())) + "\n")
        sys.stdout.flush()
    storage.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
