"""Organizations and who is in them."""

from dataclasses import dataclass

__all__ = ["Member", "Organization"]


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. `id` is its slug; `revision` counts its mutations, `changed` is the one that last changed it itself."""

    id: str
    display_name: str
    revision: int
    create_time: int
    changed: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the organization itself."""
        return f"{self.changed:x}"


@dataclass(frozen=True, slots=True)
class Member:
    """A person inside one organization. `email` is the address as written, not the normalised key."""

    organization: str
    user_id: str
    email: str
    display_name: str
    role: str
    create_time: int
    update_time: int
