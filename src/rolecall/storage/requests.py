"""Queries on repeated requests."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from rolecall.storage.tables import requests
from rolecall.storage.transaction import Transaction

__all__ = ["Request", "add", "answer_to", "prune"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be repeated: who makes it with which id, and the SHA-256 of the whole of it."""

    organization: str
    principal: str
    action: str
    request_id: str
    body: bytes


def add(tx: Transaction, request: Request, answer: str, at: int, forget_before: int) -> None:
    """Keep the answer for whoever repeats the request; drop the organization's answers from before `forget_before`."""
    tx.connection.execute(
        delete(requests).where(requests.c.organization == request.organization, requests.c.time < forget_before)
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
    """The SHA-256 of the request that was first made with this id since then, and its answer; None for none."""
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
    """Drop all answers from before this moment."""
    tx.connection.execute(delete(requests).where(requests.c.time < before))
