"""Settings: flags, then ROLECALL_* variables, then a TOML file, then defaults. Unknown ones are errors."""

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.domain.spelling import nearest
from rolecall.environment import (
    CLIENT_VARIABLES,
    PREFIX,
    is_loopback,
    is_service_variable,
    read_secret,
    socket_path,
    split_address,
)
from rolecall.errors import ConfigError

__all__ = ["Settings", "check_listening", "is_loopback", "load", "socket_path", "split_address"]

# Settings that are secrets, or may hold one. Each can be read from a file, which `<setting>_file` names.
_SECRETS = ("database", "database_password", "smtp_password")

# Minimum similarity of a mistyped name to the one that is suggested: ROLECALL_PORT isn't taken for ROLECALL_SMTP_PORT.
MIN_SIMILARITY = 0.7

# Settings that are passed on to a worker have the secret itself, and no file, whatever variables the worker has.
SecretFile = Annotated[Path | None, PlainSerializer(lambda _: None)]


def _one_a_core(given: object) -> object:
    return len(os.sched_getaffinity(0)) if given == "auto" else given


def _file_mode(given: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", given):
        raise PydanticCustomError("file_mode", "write it in octal, as 0660")
    return given


class Settings(BaseSettings):
    """Settings of a server."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=False, hide_input_in_errors=True
    )

    database: Annotated[str, Field(repr=False)] = "sqlite:///rolecall.db"
    """URL: `sqlite:///file` or `postgresql://user:password@host/name`. May have a password; never shown."""
    database_file: SecretFile = None
    """File that contains only the URL."""
    database_password: Annotated[str, Field(repr=False)] = ""
    """Password for the database, as it is: one in the URL must be percent-encoded."""
    database_password_file: SecretFile = None
    """File that contains only the password."""
    listen: str = "127.0.0.1:50051"
    """host:port, or unix:path. Addresses beyond this machine need TLS, or `plaintext_exposes_tokens`."""
    socket_mode: Annotated[str, AfterValidator(_file_mode)] = "0600"
    """File mode of a Unix socket, in octal: who may connect. 0600: this user only; 0660: its group, too."""
    policy: Path = Path("policies")
    """The folder with model.conf, policy.csv and policy_test.csv."""
    key_file: Path = Path("rolecall.key")
    """File of 32 random bytes, readable by its owner only, shared by all processes. `rolecall init` creates it."""
    tls_cert: Path | None = None
    """PEM file with the server's certificate chain."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""
    plaintext_exposes_tokens: bool = False
    """Listens beyond loopback without TLS: anyone who sees the traffic can use every token in it."""
    reflection: bool = True
    """Serves grpc.reflection, so that grpcurl can list and describe the API."""
    transport: Literal["auto", "polling", "standard"] = "auto"
    """How calls are received: `polling`, without grpc's own threads, or `standard`; `auto`: polling if it works."""
    max_staleness: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Maximum seconds for which Checks are answered from the cache while the database can't be reached."""
    workers: Annotated[int, Field(ge=1, le=256), BeforeValidator(_one_a_core)] = 1
    """Processes that share the address, each with its own threads, connections and memory; `auto`: one per core."""
    threads: Annotated[int, Field(ge=2, le=256)] = 16
    """Threads for calls: the number of calls that are processed at the same time."""
    connection_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """Maximum age of a connection; then its client is asked to reconnect, which frees what idle streams hold."""
    public_address: str = ""
    """host:port of the server in mails; empty: `listen`."""
    smtp_host: str = ""
    """Host of the mail server. Without one, mails are written as files to `mail_folder`."""
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = 587
    """Port of the mail server."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """Protection of the connection to the mail server; `none` only on this machine, or without a login."""
    smtp_user: str = ""
    """User name at the mail server; empty: no login."""
    smtp_password: Annotated[str, Field(repr=False)] = ""
    """Password at the mail server. Better: `smtp_password_file`."""
    smtp_password_file: SecretFile = None
    """File that contains only the password."""
    smtp_ca_file: Path | None = None
    """PEM file with the authority that signed the mail server's certificate, if the system doesn't trust it."""
    mail_from: str = "Rolecall <rolecall@localhost>"
    """Sender of mails."""
    mail_folder: Path = Path("mail")
    """Folder for mails without an `smtp_host`. Anyone who can read it can sign in as the recipients."""
    mail_templates: Path | None = None
    """Folder with templates that replace Rolecall's own templates of the same name."""
    link_template: str = ""
    """Link in mails, as `https://app.example.com/{action}#{secret}`; without it, mails name the command to run."""
    expiry_mails: bool = True
    """Mails notices 14 and 3 days before a token expires."""
    decision_log: Literal["off", "denies", "all"] = "off"
    """Decisions that are logged in a file of JSON lines."""
    decision_log_file: Path = Path("decisions.jsonl")
    """File of the decision log."""
    decision_log_megabytes: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Maximum size of a file of the decision log; then the next one begins."""
    decision_log_files: Annotated[int, Field(ge=2, le=1000)] = 10
    """Files of the decision log that are kept, the present one included."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, else JSON lines."""

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read the secrets that are in files. Raises `ConfigError`."""
        read: dict[str, str] = {}
        for name in _SECRETS:
            file = values.get(f"{name}_file")
            if not isinstance(file, str | Path):
                # Not set, or of a type that the field refuses.
                continue
            if values.get(name):
                raise ConfigError(f"The settings `{name}` and `{name}_file` are both set: unset one of them.")
            try:
                read[name] = read_secret(Path(file))
            except ValueError as error:
                raise ConfigError(
                    f"The setting `{name}_file` ({PREFIX}{name.upper()}_FILE) is wrong: {error}."
                ) from error
        return {**values, **read}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags and the environment; values of the file are passed by `load` where neither sets them."""
        del settings_cls, dotenv_settings, file_secret_settings
        assert isinstance(env_settings, EnvSettingsSource)  # noqa: S101 - for the type checker
        env_settings.env_vars = {PREFIX.lower() + name.lower(): value for name, value in _variables().items()}
        return init_settings, env_settings

    @property
    def tls(self) -> bool:
        """Whether the server uses TLS."""
        return self.tls_cert is not None

    @property
    def private_files(self) -> list[Path]:
        """The files that hold secrets, besides the server's key and its TLS key."""
        files = [getattr(self, f"{name}_file") for name in _SECRETS]
        return [file for file in files if file is not None]


def load(config_file: Path | None = None, **flags: object) -> Settings:
    """Load the settings. Flags that are None were not given. Raises `ConfigError` with every problem in its message."""
    file = config_file or (Path(os.environ["ROLECALL_CONFIG"]) if "ROLECALL_CONFIG" in os.environ else None)
    values = _read_toml(file) if file else {}
    known = set(Settings.model_fields)
    variables = _variables()
    valid = {name.upper() for name in known} | CLIENT_VARIABLES
    problems = [f"{file}: `{key}` is not a setting: {_suggestion(key, known)}" for key in sorted(values.keys() - known)]
    problems += [
        f"The variable {PREFIX}{name} is unknown: {_suggestion(name, valid, PREFIX)}"
        for name in sorted(variables.keys() - valid)
    ]
    given = {name: value for name, value in flags.items() if value is not None}
    # A secret that a flag gives isn't read from a file that a variable names.
    given |= {f"{name}_file": None for name in given.keys() & set(_SECRETS)}
    set_above = _with_files(given) | _with_files(name.lower() for name in variables)
    from_file = {name: value for name, value in values.items() if name in known and name not in set_above}
    try:
        # pydantic validates the types.
        settings = Settings(**{**from_file, **given})  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False, include_context=False):
            name = ".".join(str(part) for part in item["loc"])
            problems.append(f"The setting `{name}` ({PREFIX}{name.upper()}) is wrong: {item['msg']}.")
    except ConfigError as error:
        problems.append(error.message)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _variables() -> dict[str, str]:
    """Return the ROLECALL_ variables without the prefix, except those that Kubernetes sets for a Service."""
    named = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return {name: value for name, value in named.items() if not is_service_variable(name, value)}


def _with_files(names: Iterable[str]) -> set[str]:
    """Return the names, and of those of a secret or its file the other too: both set the same."""
    found = set(names)
    for name in _SECRETS:
        pair = {name, f"{name}_file"}
        if found & pair:
            found |= pair
    return found


def _suggestion(name: str, known: set[str], prefix: str = "") -> str:
    """Return what to do about an unknown name, which would have no effect, silently."""
    near = nearest(name, known, MIN_SIMILARITY)
    if not near:
        return "unset it, or correct it by the list in docs/operating.md."
    return f"did you mean `{prefix}{near}`?"


def check_listening(settings: Settings) -> None:
    """Raise `ConfigError` if a server with these settings would expose its tokens, or can't listen."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError(
            "TLS needs both a certificate and its key: set `tls_cert` and `tls_key` (--tls-cert, --tls-key)."
        )
    try:
        if socket_path(settings.listen):
            if settings.tls:
                raise ConfigError(
                    "A Unix socket has no TLS, as its traffic doesn't leave this machine: leave out `tls_cert` and"
                    " `tls_key`, or listen on host:port."
                )
            return
        host, _ = split_address(settings.listen)
    except ValueError as error:
        raise ConfigError(f"The setting `listen` ({PREFIX}LISTEN) is wrong: {error}.") from error
    if not is_loopback(host) and not settings.tls and not settings.plaintext_exposes_tokens:
        raise ConfigError(
            f"{settings.listen} can be reached from other machines, and without TLS anyone who sees the traffic can use"
            " every token in it. Give --tls-cert and --tls-key, listen on 127.0.0.1, or accept the risk with"
            " --plaintext-exposes-tokens."
        )


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The settings file {file} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {file} is not valid TOML: {error}.") from error
