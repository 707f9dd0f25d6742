"""A process that is killed between any two statements of a change leaves the complete change, or nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from rolecall import policy as policies
from rolecall.audit import AuditLog, verify
from rolecall.credentials import server_key, token_format
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Invitation, InvitationState, LinkKind, Member, now
from rolecall.services import operator_tokens, organizations
from rolecall.services.sessions import open_session
from rolecall.services.token_rules import DAY
from rolecall.storage import Storage, Transaction, tables
from rolecall.storage import credentials as credential_rows
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as member_rows
from support.environment import ROOT

KILLED = Path(__file__).with_name("killed_change.py")


def state(tx: Transaction) -> dict[str, Any]:
    """The state that a change moves: revision, rows, and the end of the log."""

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
    """Add an invitation; return its id."""
    at = now()
    email = f"p{number}@acme.io"
    invitation = Invitation(
        organization="acme",
        id=token_format.new_id(),
        email=email,
        role="VIEWER",
        creator=f"user:{inviter.user_id}",
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
    """Add a member with two tokens, one of them rotated, and a session; return the user id."""
    at = now()
    member = Member("acme", token_format.new_id(), f"p{number}@acme.io", "p", "CONTRIBUTOR", at, at)
    member_rows.add(tx, member, member.email)
    first, _ = operator_tokens.add_token(tx, member, "first"), operator_tokens.add_token(tx, member, "second")
    credential_rows.rotate(tx, "acme", token_format.mint(first.kind, first.id), at + DAY)
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
def test_killed_change_is_complete_or_absent(
    storage: Storage, database_url: str, policy_folder: Path, tmp_path: Path, kind: str, moved: dict[str, int]
) -> None:
    """Rows, mails, entry, revision and stored request all exist or none does; the log is intact, others can write."""
    key_file = tmp_path / "rolecall.key"
    key = server_key.create(key_file)
    log = AuditLog(key)
    policy = policies.build(policy_folder, 0.0).policy
    assert policy is not None
    founded = organizations.create(storage, log, policy, "acme", "ann@acme.io")
    ann = founded.owner

    def about(number: int) -> str:
        """The target of the change of this number."""
        match kind:
            case "invite":
                return f"p{number}@acme.io"
            case "accept":
                made = storage.mutate("acme", lambda tx: invite(tx, ann, number))
                return MailedSecrets(key).secret(LinkKind.INVITATION, made, 1)
            case "remove":
                return storage.mutate("acme", lambda tx: join(tx, number))
        return ann.email

    process = subprocess.Popen(
        [sys.executable, str(KILLED), database_url, str(key_file), str(policy_folder), kind, founded.token.text],
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
            assert verdict.intact, verdict.problem
            assert verdict.entries == after["entries"]
            if difference:
                whole += 1
                # Only the commit and what comes behind it may leave the change there.
                storage.write(lambda tx: tx.connection.execute(tables.requests.delete()).rowcount)
            # The next writer is not blocked by anything that the killed process left.
            at = now()
            operator_tokens.issue(storage, log, "acme", ann.email)
            assert now() - at < 5_000_000
        process.stdin.close()

    assert outcomes[-1] == "done 0"
    assert outcomes.count("killed") >= 10
    assert whole >= 1
    assert whole < len(outcomes) / 2
    assert process.returncode == 0
