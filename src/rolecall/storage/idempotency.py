"""Queries on the answers kept for repeated requests (idempotency by request_id)."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from rolecall.storage.tables import requests
from rolecall.storage.transaction import Transaction

__all__ = ["Request", "add", "answer_to", "prune"]


@dataclass(frozen=True, slots=True)
class Request:
    """Request that may be repeated: its principal, action and id, and the SHA-256 of the whole request."""

    organization: str
    principal: str
    action: str
    request_id: str
    body: bytes


def add(tx: Transaction, request: Request, answer: str, at: int, delete_before: int) -> None:
    """Store the answer for a repeated request; delete the organization's answers from before `delete_before`."""
    tx.connection.execute(
        delete(requests).where(requests.c.organization == request.organization, requests.c.time < delete_before)
    )
    tx.connection.execute(
        insert(requests).values(
            organization=request.organization,
            principal=request.principal,
            action=request.action,
            request_id=request.request_id,
            body=request.body,
            answer=answer,
            time=at,
        )
    )


def answer_to(tx: Transaction, request: Request, since: int) -> tuple[bytes, str] | None:
    """Read the SHA-256 and the answer of the request made with this id since `since`; None where none was."""
    row = tx.connection.execute(
        select(requests.c.body, requests.c.answer).where(
            requests.c.organization == request.organization,
            requests.c.principal == request.principal,
            requests.c.action == request.action,
            requests.c.request_id == request.request_id,
            requests.c.time >= since,
        )
    ).one_or_none()
    return (row.body, row.answer) if row else None


def prune(tx: Transaction, before: int) -> None:
    """Delete all answers from before this time."""
    tx.connection.execute(delete(requests).where(requests.c.time < before))
