"""Shipped policies: the default one and its variants, to be copied into a policy folder."""

import os
from pathlib import Path

from rolecall.errors import ConfigError, InvalidField
from rolecall.policy.parsed import CONDITIONS_FILE, MODEL_FILE, POLICY_FILE, TEST_FILE

__all__ = ["VARIANTS", "is_absent", "write"]

VARIANTS = ("break-glass", "office-network", "owner-managed", "project-admins", "viewer-editor-admin")
"""Names of the variants of the default policy."""

# The repository keeps them in `policies/`; pyproject.toml puts that folder here in a wheel.
_PACKAGED = Path(__file__).parent / "shipped"
_FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "policies"
_FILES = (MODEL_FILE, TEST_FILE, CONDITIONS_FILE, POLICY_FILE)


def is_absent(folder: Path) -> bool:
    """Whether the folder has none of the files of a policy, or doesn't exist."""
    return not any(os.path.lexists(folder / name) for name in _FILES)


def write(folder: Path, variant: str = "") -> None:
    """Write the files of the default policy, or of a variant, into a folder, which is created.

    Never replaces a file. Raises `InvalidField` for an unknown variant, `ConfigError`.
    """
    if variant and variant not in VARIANTS:
        raise InvalidField(f"There is no variant `{variant}`: choose one of {', '.join(VARIANTS)}.", field="variant")
    if not is_absent(folder):
        raise ConfigError(f"{folder} holds a policy already: name another folder, or move its files away.")
    source = _FOLDER / "variants" / variant if variant else _FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if name == CONDITIONS_FILE and not (source / name).exists():
                continue
            with (folder / name).open("xb") as file:
                file.write((source / name).read_bytes())
    except OSError as error:
        raise ConfigError(f"The policy can't be written to {folder}: {error.strerror}.") from error
