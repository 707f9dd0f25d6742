"""Settings: flags, then ROLECALL_* variables, then a TOML file, then defaults. Unknown ones are errors."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.environment import PREFIX, is_loopback, socket_path, split_address, unknown_variables
from rolecall.errors import ConfigError

__all__ = ["Settings", "check_listening", "is_loopback", "load", "socket_path", "split_address"]


def _one_a_core(given: object) -> object:
    return len(os.sched_getaffinity(0)) if given == "auto" else given


class Settings(BaseSettings):
    """Settings of a server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=False)

    database: Annotated[str, Field(repr=False)] = "sqlite:///rolecall.db"
    """SQLAlchemy URL: `sqlite:///file` or `postgresql://user:password@host/name`. May have a password; never shown."""
    listen: str = "127.0.0.1:50051"
    """host:port, or unix:path. Addresses beyond this machine need TLS, or `plaintext_exposes_tokens`."""
    socket_mode: Annotated[str, Field(pattern="^0?[0-7]{3}$")] = "0600"
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
    smtp_password_file: Path | None = None
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
        return init_settings, env_settings

    @property
    def tls(self) -> bool:
        """Whether the server uses TLS."""
        return self.tls_cert is not None


def load(config_file: Path | None = None, **flags: object) -> Settings:
    """Load the settings. Flags that are None were not given. Raises `ConfigError` with every problem in its message."""
    file = config_file or (Path(os.environ["ROLECALL_CONFIG"]) if "ROLECALL_CONFIG" in os.environ else None)
    values = _read_toml(file) if file else {}
    known = set(Settings.model_fields)
    variables = {name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX)}
    problems = [
        f"{file}: `{key}` is not a setting. Known: {', '.join(sorted(known))}." for key in sorted(values.keys() - known)
    ]
    problems += unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    from_file = {k: v for k, v in values.items() if k in known and k.upper() not in variables and k not in given}
    try:
        # pydantic validates the types.
        settings = Settings(**{**from_file, **given})  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False, include_context=False):
            name = ".".join(str(part) for part in item["loc"])
            problems.append(f"The setting `{name}` ({PREFIX}{name.upper()}) is wrong: {item['msg']}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


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
