"""A process that is killed between any two statements of a change leaves the whole of it, or nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sqlalchemy import func, select

from rolecall import keys, operator, organizations
from rolecall import policy as policies
from rolecall.audit import AuditLog, verify
from rolecall.domain import now
from rolecall.storage import Storage, Transaction, tables

# Makes one change again and again, each time in a child that is killed a statement later, until one gets through.
# Prints what became of each, and waits for a line on its standard input in between.
KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event

from rolecall import keys, live_policy, operator
from rolecall.audit import AuditLog
from rolecall.directory import Directory
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Attempt, Mutations
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
tokens = Tokens(Mutations(storage, directory, live, log), storage, live, Pages(key))
# No connection goes through a fork.
storage.close()


def change(number):
    if kind == "issue":
        arm(number)
        operator.issue(storage, log, "acme", "ann@acme.io")
        return
    caller = directory.caller(token)
    arm(number)
    tokens.create_personal(Attempt(caller, "CreatePersonalToken", "call", REQUEST, bytes(32)), Wish("laptop"))


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


for number in range(1000):
    child = os.fork()
    if child == 0:
        change(number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"done {os.WEXITSTATUS(status)}", flush=True)
    if not os.WIFSIGNALED(status) or not sys.stdin.readline():
        break
"""


def state(tx: Transaction) -> dict[str, Any]:
    """What a change moves: revision, rows, and the end of the log."""

    def count(table: Any) -> int:
        return tx.connection.execute(select(func.count()).select_from(table)).scalar_one()

    return {
        "revision": tx.connection.scalar(select(tables.organizations.c.revision)),
        "tokens": count(tables.credentials),
        "retired": count(tables.retired_secrets),
        "entries": count(tables.audit_entries),
        "values": count(tables.audit_values),
        "head": tx.connection.scalar(select(tables.audit_heads.c.sequence)),
        "requests": count(tables.requests),
    }


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("issue", {"revision": 1, "tokens": 1, "entries": 1, "values": 1, "head": 1}),
        ("create", {"revision": 1, "tokens": 1, "entries": 1, "values": 1, "head": 1, "requests": 1}),
    ],
)
def test_change_that_is_killed_is_whole_or_absent(
    storage: Storage, database_url: str, policy_folder: Path, tmp_path: Path, kind: str, moved: dict[str, int]
) -> None:
    """Token, entry, revision and remembered request are all there or all absent; the log is whole, others go on."""
    key_file = tmp_path / "rolecall.key"
    log = AuditLog(keys.create(key_file))
    policy = policies.build(policy_folder, 0.0).policy
    assert policy is not None
    token = organizations.found(storage, log, policy, "acme", "ann@acme.io").token.text
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, database_url, str(key_file), str(policy_folder), kind, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    outcomes: list[str] = []
    whole = 0
    with process:
        before = storage.read(state)
        while line := process.stdout.readline().strip():
            after = storage.read(state)
            difference = {name: after[name] - before[name] for name in after if after[name] != before[name]}
            assert difference in ({}, moved), f"after {len(outcomes)} steps"
            verdict = storage.read(lambda tx: verify(tx, log, "acme"))
            assert verdict.whole, verdict.problem
            assert verdict.entries == after["entries"]
            outcomes.append(line)
            if difference:
                whole += 1
                # Only the commit and what comes behind it may leave the change there.
                storage.write(lambda tx: tx.connection.execute(tables.requests.delete()).rowcount)
            if not line.startswith("killed"):
                break
            # Whoever comes next isn't held up, and nothing of the dead process is in the way.
            at = now()
            operator.issue(storage, log, "acme", "ann@acme.io")
            assert now() - at < 5_000_000
            before = storage.read(state)
            process.stdin.write("\n")
            process.stdin.flush()
        process.stdin.close()

    assert outcomes[-1] == "done 0"
    assert outcomes.count("killed") >= 10
    assert whole >= 1
    assert whole < len(outcomes) / 2
    assert process.returncode == 0
