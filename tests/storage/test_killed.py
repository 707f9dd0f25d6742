"""A process that is killed between any two statements of a change leaves the whole of it, or nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sqlalchemy import func, select

from rolecall import credentials, keys, operator, organizations
from rolecall import policy as policies
from rolecall.audit import AuditLog, verify
from rolecall.domain import Invitation, InvitationState, LinkKind, Member, now
from rolecall.links import Links
from rolecall.sessions import open_session
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as member_rows
from rolecall.token_rules import DAY

# Makes one change again and again, each time in a child that is killed a statement later, until one gets through.
# Each line of its standard input names whom it is made to; then it prints what became of it.
KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event

from rolecall import keys, live_policy, operator
from rolecall.acceptance import Acceptance
from rolecall.audit import AuditLog
from rolecall.directory import Directory
from rolecall.invitations import Invitations
from rolecall.links import Links
from rolecall.live_policy import LivePolicy
from rolecall.members import Members
from rolecall.mutations import Arrival, Attempt, Mutations
from rolecall.pages import Pages
from rolecall.storage import Storage
from rolecall.token_rules import Wish
from rolecall.tokens import Tokens

url, key_file, policy, kind, token = sys.argv[1:]
live_policy.START_ORACLE_SECONDS = 0.0
REQUEST = "6b7c3a52-2a43-4ba0-9d28-6f1e0a2b9c11"


key = keys.read(Path(key_file))
log = AuditLog(key)
storage = Storage(url)
live = LivePolicy(Path(policy), storage)
directory = Directory(storage)
mutations = Mutations(storage, directory, live, log)
parts = mutations, storage, live, Pages(key)
tokens, members, invitations = Tokens(*parts), Members(*parts), Invitations(*parts)
acceptance = Acceptance(mutations, storage, Links(key))
# No connection goes through a fork.
storage.close()


def change(number, about):
    caller = directory.caller(token)
    attempt = Attempt(caller, kind, "call", REQUEST, bytes(32))
    arm(number)
    match kind:
        case "issue":
            operator.issue(storage, log, "acme", about)
        case "create":
            tokens.create_personal(attempt, Wish("laptop"))
        case "invite":
            people = [(f"{name}-{about}", "VIEWER") for name in ("eve", "joe", "kim")]
            invitations.create(attempt, people, validate_only=False)
        case "accept":
            acceptance.accept(Arrival(kind, "call", "peer"), "", about, "")
        case "remove":
            members.remove(attempt, about, "")


def arm(number):
    left = number

    def step(*_, **__):
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
    print("killed" if os.WIFSIGNALED(status) else f"done {os.WEXITSTATUS(status)}", flush=True)
"""


def state(tx: Transaction) -> dict[str, Any]:
    """What a change moves: revision, rows, and the end of the log."""

    def count(table: Any, *where: Any) -> int:
        return tx.connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()

    return {
        "revision": tx.connection.scalar(select(tables.organizations.c.revision)),
        "members": count(tables.members),
        "invitations": count(tables.invitations),
        "accepted": count(tables.invitations, tables.invitations.c.state == "accepted"),
        "mails": count(tables.mails),
        "tokens": count(tables.credentials),
        "retired": count(tables.retired_secrets),
        "entries": count(tables.audit_entries),
        "values": count(tables.audit_values),
        "head": tx.connection.scalar(select(tables.audit_heads.c.sequence)),
        "requests": count(tables.requests),
        "changes": count(tables.changes),
    }


def invite(tx: Transaction, inviter: Member, number: int) -> str:
    """The id of somebody's invitation."""
    at = now()
    email = f"p{number}@acme.io"
    invitation = Invitation(
        organization="acme",
        id=credentials.new_id(),
        email=email,
        role="VIEWER",
        inviter=f"user:{inviter.user_id}",
        restriction=None,
        generation=1,
        stored=InvitationState.PENDING,
        create_time=at,
        expire_time=at + DAY,
        changed=tx.revision,
    )
    invitation_rows.add(tx, [(email, invitation)])
    return invitation.id


def join(tx: Transaction, number: int) -> str:
    """The id of a member who has two tokens, one of them with another secret before, and a session."""
    at = now()
    member = Member("acme", credentials.new_id(), f"p{number}@acme.io", "p", "CONTRIBUTOR", at, at)
    member_rows.add(tx, member, member.email)
    first, _ = operator.add_token(tx, member, "first"), operator.add_token(tx, member, "second")
    credential_rows.rotate(tx, "acme", credentials.mint(first.kind, first.id), at + DAY)
    open_session(tx, member, at)
    return member.user_id


LOGGED = {"revision": 1, "entries": 1, "head": 1}


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("issue", {"tokens": 1, "values": 1, "changes": 1}),
        ("create", {"tokens": 1, "values": 1, "changes": 1, "requests": 1}),
        ("invite", {"invitations": 3, "mails": 3, "values": 3, "changes": 1, "requests": 1}),
        ("accept", {"accepted": 1, "members": 1, "tokens": 1, "values": 2, "changes": 2}),
        ("remove", {"members": -1, "tokens": -3, "retired": -1, "values": 2, "changes": 1, "requests": 1}),
    ],
)
def test_change_that_is_killed_is_whole_or_absent(
    storage: Storage, database_url: str, policy_folder: Path, tmp_path: Path, kind: str, moved: dict[str, int]
) -> None:
    """Rows, mails, entry, revision, remembered request are all there or all absent; the log is whole, others go on."""
    key_file = tmp_path / "rolecall.key"
    key = keys.create(key_file)
    log = AuditLog(key)
    policy = policies.build(policy_folder, 0.0).policy
    assert policy is not None
    founded = organizations.found(storage, log, policy, "acme", "ann@acme.io")
    ann = founded.owner

    def about(number: int) -> str:
        """Whom the change of this number is made to."""
        match kind:
            case "invite":
                return f"p{number}@acme.io"
            case "accept":
                made = storage.mutate("acme", lambda tx: invite(tx, ann, number))
                return Links(key).secret(LinkKind.INVITATION, made, 1)
            case "remove":
                return storage.mutate("acme", lambda tx: join(tx, number))
        return ann.email

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, database_url, str(key_file), str(policy_folder), kind, founded.token.text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    outcomes: list[str] = []
    whole = 0
    with process:
        while not outcomes or outcomes[-1] == "killed":
            named = about(len(outcomes))
            before = storage.read(state)
            process.stdin.write(f"{named}\n")
            outcomes.append(process.stdout.readline().strip())
            after = storage.read(state)
            difference = {name: after[name] - before[name] for name in after if after[name] != before[name]}
            assert difference in ({}, LOGGED | moved), f"after {len(outcomes) - 1} steps"
            verdict = storage.read(lambda tx: verify(tx, log, "acme"))
            assert verdict.whole, verdict.problem
            assert verdict.entries == after["entries"]
            if difference:
                whole += 1
                # Only the commit and what comes behind it may leave the change there.
                storage.write(lambda tx: tx.connection.execute(tables.requests.delete()).rowcount)
            # Whoever comes next isn't held up, and nothing of the dead process is in the way.
            at = now()
            operator.issue(storage, log, "acme", ann.email)
            assert now() - at < 5_000_000
        process.stdin.close()

    assert outcomes[-1] == "done 0"
    assert outcomes.count("killed") >= 10
    assert whole >= 1
    assert whole < len(outcomes) / 2
    assert process.returncode == 0
