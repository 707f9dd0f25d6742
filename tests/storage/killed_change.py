"""Program that repeats one change, each time in a child that is killed one statement later, until one completes.

Each line of standard input names the person or secret the change is about; a line of output says how the child ended.
"""

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import event

from rolecall.audit import AuditLog
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Invitee
from rolecall.identity.authentication import Authenticator
from rolecall.limits import Limits
from rolecall.policy.reload import LivePolicy
from rolecall.services import operator_tokens
from rolecall.services.invitations import Invitations
from rolecall.services.members import Members
from rolecall.services.pagination import Pagination
from rolecall.services.token_rules import TokenSpec
from rolecall.services.tokens import Tokens
from rolecall.services.unit_of_work import ChangeRequest, UnauthenticatedCall, UnitOfWork
from rolecall.storage import Storage

url, key_file, policy, kind, token = sys.argv[1:]
REQUEST = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"


key = server_key.read(Path(key_file))
log = AuditLog(key)
storage = Storage(url)
live = LivePolicy(Path(policy), storage, Limits(casbin_seconds=0.0))
authenticator = Authenticator(storage)
mutations = UnitOfWork(storage, authenticator, live, log)
parts = mutations, storage, live, Pagination(key)
tokens, members, invitations = Tokens(*parts), Members(*parts), Invitations(*parts, MailedSecrets(key))
# No connection goes through a fork.
storage.close()


def change(number: int, about: str) -> None:
    caller = authenticator.authenticate(token)
    assert caller is not None
    attempt = ChangeRequest(caller, kind, "call", REQUEST, bytes(32))
    kill_at_step(number)
    match kind:
        case "issue":
            operator_tokens.issue(storage, log, "acme", about)
        case "create":
            tokens.create_personal(attempt, TokenSpec("laptop"))
        case "invite":
            people = [Invitee(f"{name}-{about}", "VIEWER") for name in ("eve", "joe", "kim")]
            invitations.create(attempt, people, validate_only=False)
        case "accept":
            invitations.accept(UnauthenticatedCall(kind, "call", "peer"), "", about, "")
        case "remove":
            members.remove(attempt, about, "")


def kill_at_step(number: int) -> None:
    left = number

    def step(*_: object, **__: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(storage._engine, "before_cursor_execute", step)
    event.listen(storage._engine, "commit", step)
    event.listen(storage._engine, "checkin", step)


for number, line in enumerate(sys.stdin):
    child = os.fork()
    if child == 0:
        change(number, line.strip())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"done {os.WEXITSTATUS(status)}", flush=True)  # noqa: T201 - the parent reads it
