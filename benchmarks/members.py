"""Benchmarks of lists of members and batches of invitations: `.venv/bin/python benchmarks/members.py`."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc
from management import POLICIES, serving
from sqlalchemy import insert

from rolecall import policy
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key, token_format
from rolecall.domain import now
from rolecall.services import organizations
from rolecall.storage import Storage, Transaction
from rolecall.storage.tables import members
from rolecall.v1 import invitation_pb2, member_pb2
from rolecall.v1.invitation_pb2_grpc import InvitationServiceStub
from rolecall.v1.member_pb2_grpc import MemberServiceStub

MEMBERS = 100_000
PAGE = 50
# Pages that are measured per round, at the start and at the end of the list together.
PAGES = 40
BATCHES = 15
ROUNDS = 5

# Bars.
MAX_PAGE_RATIO = 1.5
MAX_BATCH_SECONDS = 1.0

_ORDERS = {
    "by address": member_pb2.MEMBER_ORDER_EMAIL,
    "by name": member_pb2.MEMBER_ORDER_DISPLAY_NAME,
    "newest first": member_pb2.MEMBER_ORDER_NEWEST,
}


def main() -> None:
    """Print the figures; exit with 1 if a bar is missed."""
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        settings, token = fill(Path(folder))
        with serving(settings) as address, grpc.insecure_channel(address) as channel:
            bearer = (("authorization", f"Bearer {token}"),)
            for name, order in _ORDERS.items():
                first, last = pages(MemberServiceStub(channel), bearer, order)
                ratio = last / first
                missed |= ratio > MAX_PAGE_RATIO
                what = f"a page of {PAGE} of {MEMBERS:,} members {name}: first, last, p50"
                print(
                    f"{what:<68} {first * 1000:5.2f} {last * 1000:5.2f} ms {ratio:4.2f} x   bar <= {MAX_PAGE_RATIO} x"
                )
            seconds = invitations(InvitationServiceStub(channel), bearer)
            missed |= seconds > MAX_BATCH_SECONDS
            print(f"{'200 invitations at once, p50':<68} {seconds:17.3f} s   bar <= {MAX_BATCH_SECONDS:g} s")
    sys.exit(missed)


def fill(folder: Path) -> tuple[Settings, str]:
    """Create an organization with MEMBERS members; returns the settings and its owner's token."""
    settings = Settings(
        database=f"sqlite:///{folder}/rolecall.db",
        key_file=folder / "key",
        policy=POLICIES,
        mail_folder=folder / "mail",
    )
    storage = Storage(settings.database)
    storage.create()
    loaded = policy.load(POLICIES, 0.0)
    log = AuditLog(server_key.create(settings.key_file))
    founded = organizations.create(storage, log, loaded, "acme", "ann@acme.io")
    at = now()

    def add(tx: Transaction) -> None:
        rows = [
            {
                "organization": "acme",
                "user_id": token_format.new_id(),
                "email_key": f"person{number:06}@acme.io",
                "email": f"person{number:06}@acme.io",
                "display_name": f"Person {number * 7919 % MEMBERS:06}",
                "role": loaded.roles[1 + number % (len(loaded.roles) - 1)],
                "create_time": at + number,
                "update_time": at + number,
            }
            for number in range(MEMBERS)
        ]
        tx.connection.execute(insert(members), rows)

    storage.write(add)
    storage.close()
    return settings, founded.token.text


def pages(
    stub: MemberServiceStub, bearer: tuple[tuple[str, str]], order: "member_pb2.MemberOrder.ValueType"
) -> tuple[float, float]:
    """Measure pages at the start and at the end of the list in turns; returns their median seconds."""
    # The third from the end leads to the last two pages of a thousand.
    before = [page.next_page_token for page in walk(stub, bearer, order)][-3]
    first_times, last_times = [], []
    for _ in range(ROUNDS):
        first_times += timed(stub, bearer, order, "")
        last_times += timed(stub, bearer, order, before)
    return statistics.median(first_times), statistics.median(last_times)


def walk(
    stub: MemberServiceStub,
    bearer: tuple[tuple[str, str]],
    order: "member_pb2.MemberOrder.ValueType",
) -> "list[member_pb2.ListMembersResponse]":
    """Return the whole list in pages of 1,000 members."""
    found: list[member_pb2.ListMembersResponse] = []
    token = ""
    while True:
        request = member_pb2.ListMembersRequest(order=order, page_size=1000, page_token=token)
        found.append(stub.ListMembers(request, metadata=bearer))
        token = found[-1].next_page_token
        if not token:
            return found


def timed(
    stub: MemberServiceStub, bearer: tuple[tuple[str, str]], order: "member_pb2.MemberOrder.ValueType", token: str
) -> list[float]:
    """Measure the seconds of each of the pages that follow this token."""
    times = []
    for _ in range(PAGES // 2):
        began = time.perf_counter()
        page = stub.ListMembers(
            member_pb2.ListMembersRequest(order=order, page_size=PAGE, page_token=token), metadata=bearer
        )
        times.append(time.perf_counter() - began)
        assert len(page.members) == PAGE
        token = page.next_page_token
        if not token:
            break
    return times


def invitations(stub: InvitationServiceStub, bearer: tuple[tuple[str, str]]) -> float:
    """Return the median seconds of a batch of 200 invitations."""
    times = []
    for batch in range(BATCHES):
        people = [invitation_pb2.Invitee(email=f"new{batch}-{n}@acme.io", role="VIEWER") for n in range(200)]
        began = time.perf_counter()
        stub.CreateInvitations(invitation_pb2.CreateInvitationsRequest(invitations=people), metadata=bearer)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
