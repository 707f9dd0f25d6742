"""Settings: flags, then ROLECALL_* variables, then a TOML file, then defaults. What is unknown is an error."""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.errors import ConfigError

__all__ = ["PREFIX", "Settings", "check_listening", "is_loopback", "load", "split_address", "unknown_variables"]

PREFIX = "ROLECALL_"

# What the client and the command line read; no settings of the server, but no mistypings either.
_OTHER_VARIABLES = {"CONFIG", "ADDRESS", "TOKEN", "ORGANIZATION", "CA_FILE"}


def _one_a_core(given: object) -> object:
    return len(os.sched_getaffinity(0)) if given == "auto" else given


class Settings(BaseSettings):
    """How a server runs."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=False)

    database: Annotated[str, Field(repr=False)] = "sqlite:///rolecall.db"
    """SQLAlchemy URL: `sqlite:///file` or `postgresql://user:password@host/name`. May hold a password: never shown."""
    listen: str = "127.0.0.1:50051"
    """host:port. Other than loopback needs TLS, or `plaintext_exposes_tokens`."""
    policy: Path = Path("policies")
    """The folder with model.conf, policy.csv and policy_test.csv."""
    key_file: Path = Path("rolecall.key")
    """32 random bytes, readable by the owner only, shared by all processes. `rolecall init` makes it."""
    tls_cert: Path | None = None
    """PEM file with the server's certificate chain."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key."""
    plaintext_exposes_tokens: bool = False
    """Listens beyond loopback without TLS: whoever sees the traffic can use every token in it."""
    reflection: bool = True
    """Serves grpc.reflection, so that grpcurl knows the API."""
    lane: Literal["auto", "fast", "standard"] = "auto"
    """How calls come in: `fast`, past grpc's own threads, or `standard`; `auto`: fast where it works."""
    max_staleness: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """For so many seconds Checks go on without the database, from memory."""
    workers: Annotated[int, Field(ge=1, le=256), BeforeValidator(_one_a_core)] = 1
    """How many processes share the port, each with threads, connections and memory of its own; `auto`: one a core."""
    threads: Annotated[int, Field(ge=2, le=256)] = 16
    """How many calls are worked on at once."""
    connection_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """How long a connection lives before clients are asked to open a new one; frees what idle streams hold."""
    public_address: str = ""
    """Where people reach the server, host:port, as mails tell it; `listen` without it."""
    smtp_host: str = ""
    """The mail server. Without one, mails become files in `mail_folder`."""
    smtp_port: Annotated[int, Field(ge=1, le=65_535)] = 587
    """Its port."""
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection to it is protected; `none` on this machine only, or without a login."""
    smtp_user: str = ""
    """Who logs in there; empty for no login."""
    smtp_password: Annotated[str, Field(repr=False)] = ""
    """The login's password. Better: `smtp_password_file`."""
    smtp_password_file: Path | None = None
    """A file that holds the password alone."""
    smtp_ca_file: Path | None = None
    """PEM file with the authority that signed the mail server's certificate, where it is none of the system's."""
    mail_from: str = "Rolecall <rolecall@localhost>"
    """Whom mails come from."""
    mail_folder: Path = Path("mail")
    """Where mails become files, as long as there is no `smtp_host`. Whoever reads them can sign in as their readers."""
    mail_templates: Path | None = None
    """A folder with templates that are used instead of those of the same name that Rolecall brings."""
    link_template: str = ""
    """The link in mails, as `https://app.example.com/{action}#{secret}`; without it, mails tell the command to run."""
    decision_log: Literal["off", "denies", "all"] = "off"
    """Which decisions are noted in a file of JSON lines."""
    decision_log_file: Path = Path("decisions.jsonl")
    """Where they are noted."""
    decision_log_megabytes: Annotated[int, Field(ge=1, le=100_000)] = 100
    """How large the file may get before the next one begins."""
    decision_log_files: Annotated[int, Field(ge=2, le=1000)] = 10
    """How many files are kept, the present one included."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, else JSON lines."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the file come in through `load`, in this order around the environment."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS."""
        return self.tls_cert is not None


def load(config_file: Path | None = None, **flags: object) -> Settings:
    """The settings in force. Flags that are None were not given. Raises `ConfigError` with every problem in it."""
    file = config_file or (Path(os.environ["ROLECALL_CONFIG"]) if "ROLECALL_CONFIG" in os.environ else None)
    values = _read_toml(file) if file else {}
    known = set(Settings.model_fields)
    variables = {name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX)}
    problems = [
        f"{file}: `{key}` is no setting. Known: {', '.join(sorted(known))}." for key in sorted(values.keys() - known)
    ]
    problems += unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    from_file = {k: v for k, v in values.items() if k in known and k.upper() not in variables and k not in given}
    try:
        # Whatever their types, pydantic judges them.
        settings = Settings(**{**from_file, **given})  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False, include_context=False):
            name = ".".join(str(part) for part in item["loc"])
            problems.append(f"The setting `{name}` ({PREFIX}{name.upper()}) is wrong: {item['msg']}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def unknown_variables() -> list[str]:
    """What is wrong with the ROLECALL_ variables of the environment: a mistyped one would do nothing, silently."""
    known = {key.upper() for key in Settings.model_fields} | _OTHER_VARIABLES
    return [
        f"The variable {name} is unknown. Known: {', '.join(PREFIX + key for key in sorted(known))}."
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known
    ]


def check_listening(settings: Settings) -> None:
    """Raise `ConfigError` where a server with these settings would expose its tokens, or can't listen."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError(
            "TLS needs both a certificate and its key: set `tls_cert` and `tls_key` (--tls-cert, --tls-key)."
        )
    try:
        host, _ = split_address(settings.listen)
    except ValueError as error:
        raise ConfigError(f"The setting `listen` ({PREFIX}LISTEN) is wrong: {error}.") from error
    if not is_loopback(host) and not settings.tls and not settings.plaintext_exposes_tokens:
        raise ConfigError(
            f"{settings.listen} can be reached from other machines, and without TLS whoever sees the traffic can use"
            " every token in it. Give --tls-cert and --tls-key, listen on 127.0.0.1, or accept the risk with"
            " --plaintext-exposes-tokens."
        )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`. Raises `ValueError` with what is wrong."""
    host, colon, port = address.rpartition(":")
    if (
        "/" in address
        or not colon
        or host in ("", "[]")
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
    ):
        raise ValueError(f"`{address}` is not host:port, as in 127.0.0.1:50051")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"`{address}` needs brackets around its host, as in [::1]:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The settings file {file} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {file} is no TOML: {error}.") from error
