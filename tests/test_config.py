"""Settings: the precedence of their sources, and the errors for invalid ones."""

from pathlib import Path

import pytest

from rolecall import config
from rolecall.config import Settings
from rolecall.errors import ConfigError
from rolecall.storage import Storage

PASSWORD = "hunter2"


def toml(folder: Path, text: str) -> Path:
    """A settings file that says `text`."""
    file = folder / "rolecall.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problem(config_file: Path | None = None, **flags: object) -> str:
    """The error of `load` with these settings, or of `check_listening` where `load` accepts them."""
    with pytest.raises(ConfigError) as caught:
        config.check_listening(config.load(config_file, **flags))
    return caught.value.message


def test_defaults_apply_without_other_sources() -> None:
    """A server without settings listens on this machine only, with its files in the current folder."""
    settings = config.load()

    assert settings == Settings()
    assert (settings.listen, settings.database) == ("127.0.0.1:50051", "sqlite:///rolecall.db")
    assert (settings.policy, settings.key_file) == (Path("policies"), Path("rolecall.key"))
    assert settings.decision_log == "off"
    assert not settings.plaintext_exposes_tokens
    assert not settings.tls


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source gives way to the one before it, setting by setting."""
    file = toml(tmp_path, 'log_level = "debug"\nthreads = 3\nlisten = "127.0.0.1:1"\n')
    monkeypatch.setenv("ROLECALL_LOG_LEVEL", "warning")
    monkeypatch.setenv("ROLECALL_THREADS", "4")

    settings = config.load(file, log_level="error")

    assert settings.log_level == "error"
    assert settings.threads == 4
    assert settings.listen == "127.0.0.1:1"
    assert settings.connection_seconds == Settings().connection_seconds


def test_flag_that_was_not_given_overrides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means that the flag is absent."""
    monkeypatch.setenv("ROLECALL_THREADS", "4")

    settings = config.load(threads=None)

    assert settings.threads == 4


def test_false_flag_beats_true_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--no-reflection` is given, though it is false."""
    monkeypatch.setenv("ROLECALL_REFLECTION", "true")

    settings = config.load(reflection=False)

    assert not settings.reflection


def test_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROLECALL_CONFIG names the file as --config does."""
    monkeypatch.setenv("ROLECALL_CONFIG", str(toml(tmp_path, "threads = 3\n")))

    settings = config.load()

    assert settings.threads == 3


def test_config_flag_beats_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both, the file that the flag names is read, and the other isn't."""
    monkeypatch.setenv("ROLECALL_CONFIG", str(tmp_path / "missing.toml"))

    settings = config.load(toml(tmp_path, "threads = 3\n"))

    assert settings.threads == 3


@pytest.mark.parametrize("variable", ["ADDRESS", "TOKEN", "TOKEN_FILE", "ORGANIZATION", "CA_FILE"])
def test_variables_of_the_client_are_accepted(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server starts in a shell that is set up for the client."""
    monkeypatch.setenv(f"ROLECALL_{variable}", "anything")

    settings = config.load()

    assert settings == Settings()


@pytest.mark.parametrize("key", ["listn", "LISTEN", "Listen"])
def test_unknown_key_of_the_file_is_named_with_the_nearest_one(key: str, tmp_path: Path) -> None:
    """A mistyped key says in which file it is, and what it could have been."""
    file = toml(tmp_path, f'{key} = "127.0.0.1:1"\n')

    assert problem(file) == f"{file}: `{key}` is not a setting: did you mean `listen`?"


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("ROLECALL_LISTN", "ROLECALL_LISTEN"),
        ("ROLECALL_listen", "ROLECALL_LISTEN"),
        ("ROLECALL_Listen", "ROLECALL_LISTEN"),
        ("ROLECALL_DATABASE_URL", "ROLECALL_DATABASE"),
        ("ROLECALL_LOGLEVEL", "ROLECALL_LOG_LEVEL"),
        ("ROLECALL_TOKENFILE", "ROLECALL_TOKEN_FILE"),
    ],
)
def test_unknown_variable_is_named_with_the_nearest_one(
    variable: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped variable, even one wrong only in case, is an error of one line that names the one that is meant."""
    monkeypatch.setenv(variable, "127.0.0.1:1")

    assert problem() == f"The variable {variable} is unknown: did you mean `{nearest}`?"


@pytest.mark.parametrize("variable", ["ROLECALL_", "ROLECALL_COLOUR", "ROLECALL_PORT", "ROLECALL_HOST"])
def test_variable_like_no_other_suggests_none(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no name is near, the error says where all are listed; ROLECALL_PORT isn't taken for ROLECALL_SMTP_PORT."""
    monkeypatch.setenv(variable, "50051")

    message = problem()

    assert message == f"The variable {variable} is unknown: unset it, or correct it by the list in docs/operating.md."


# Kubernetes sets these in every container of a namespace with a Service of this name, here with a port named `grpc`.
ROLECALL_SERVICE = {
    "ROLECALL_SERVICE_HOST": "10.0.0.1",
    "ROLECALL_SERVICE_PORT": "50051",
    "ROLECALL_SERVICE_PORT_GRPC": "50051",
    "ROLECALL_PORT": "tcp://10.0.0.1:50051",
    "ROLECALL_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "ROLECALL_PORT_50051_TCP_ADDR": "10.0.0.1",
    "ROLECALL_PORT_50051_TCP_PORT": "50051",
    "ROLECALL_PORT_50051_TCP_PROTO": "tcp",
}


@pytest.mark.parametrize("service", ["ROLECALL", "ROLECALL_GRPC", "ROLECALL_SMTP", "ROLECALL_DATABASE_2"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_variables_of_a_kubernetes_service_are_ignored(
    service: str, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Service named `rolecall`, or `rolecall-` and more, neither stops a server nor changes its settings."""
    for name, value in ROLECALL_SERVICE.items():
        variable = name.replace("ROLECALL", service).replace("TCP", protocol.upper())
        monkeypatch.setenv(variable, value.replace("tcp", protocol))

    settings = config.load(toml(tmp_path, "smtp_port = 26\n"))

    assert settings == Settings(smtp_port=26)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ROLECALL_PORT", "50051"),
        ("ROLECALL_PORT", "http://10.0.0.1:50051"),
        ("ROLECALL_PORT_50051", "tcp://10.0.0.1:50051"),
        ("ROLECALL_PORT_50051_TCP_ADDRESS", "10.0.0.1"),
        ("ROLECALL_SERVICE", "10.0.0.1"),
    ],
)
def test_variables_like_those_of_a_service_are_unknown(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the forms that Kubernetes sets are ignored."""
    monkeypatch.setenv(variable, value)

    assert problem().startswith(f"The variable {variable} is unknown: ")


@pytest.mark.parametrize("setting", ["database", "database_password", "smtp_password"])
def test_secrets_are_read_from_files(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<setting>_file`, in TOML or a variable, names a file with the secret; a line break at its end is none of it."""
    secret = tmp_path / "secret"
    for content in (" p@ss/w:rd ", " p@ss/w:rd \n", " p@ss/w:rd \r\n", "\ufeff p@ss/w:rd \n"):
        secret.write_text(content, encoding="utf-8", newline="")
        from_toml = config.load(toml(tmp_path, f'{setting}_file = "{secret}"\n'))
        with monkeypatch.context() as patched:
            patched.setenv(f"ROLECALL_{setting.upper()}_FILE", str(secret))
            from_variable = config.load()

        assert getattr(from_toml, setting) == getattr(from_variable, setting) == " p@ss/w:rd "


@pytest.mark.parametrize("setting", ["database", "database_password", "smtp_password"])
def test_secret_and_its_file_are_one_setting(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag beats a variable beats TOML, whichever of the two each sets; one source that sets both is refused."""
    low, high = tmp_path / "low", tmp_path / "high"
    low.write_text("low", encoding="utf-8")
    high.write_text("high", encoding="utf-8")
    variable = f"ROLECALL_{setting.upper()}"
    plain, in_file = f'{setting} = "low"\n', f'{setting}_file = "{low}"\n'
    for set_high in ({variable: "high"}, {f"{variable}_FILE": str(high)}):
        for set_low in (plain, in_file):
            with monkeypatch.context() as patched:
                for name, value in set_high.items():
                    patched.setenv(name, value)

                assert getattr(config.load(toml(tmp_path, set_low)), setting) == "high"
                assert getattr(config.load(toml(tmp_path, set_low), **{setting: "flag"}), setting) == "flag"
    assert f"`{setting}` and `{setting}_file` are both set" in problem(toml(tmp_path, plain + in_file))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two\nlines", b"nul\0", b"latin \xe9", b"\xff\xfeU\0T\0F\0", b"x" * 65_537]
)
def test_file_that_holds_no_secret_is_named(content: bytes, tmp_path: Path) -> None:
    """A file that is empty, binary, endless or of several lines is no secret; none of it is shown."""
    secret = tmp_path / "secret"
    secret.write_bytes(content)

    message = problem(toml(tmp_path, f'smtp_password_file = "{secret}"\ncolour = 1\n'))

    colour, password = message.splitlines()
    assert "`colour`" in colour
    assert password == (
        f"The setting `smtp_password_file` (ROLECALL_SMTP_PASSWORD_FILE) is wrong: the file {secret} doesn't hold a"
        " secret alone, on one line of UTF-8 text."
    )


def test_secret_files_are_not_passed_on_to_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets the secret, and reads no file again, though it has the same variables."""
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD, encoding="utf-8")
    monkeypatch.setenv("ROLECALL_DATABASE_PASSWORD_FILE", str(secret))
    settings = config.load()

    passed_on = Settings.model_validate_json(settings.model_dump_json())

    assert passed_on.database_password == PASSWORD
    assert passed_on.database_password_file is None
    assert PASSWORD not in repr(settings)


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("threads", "many", "valid integer"),
        ("threads", "1", "greater than or equal to 2"),
        ("threads", "257", "less than or equal to 256"),
        ("connection_seconds", "0", "greater than or equal to 1"),
        ("reflection", "perhaps", "valid boolean"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("log_format", "xml", "'auto', 'text' or 'json'"),
        ("decision_log", "true", "'off', 'denies' or 'all'"),
        ("decision_log_megabytes", "0", "greater than or equal to 1"),
        ("decision_log_files", "1", "greater than or equal to 2"),
        ("listen", "localhost", "as in 127.0.0.1:50051"),
        ("listen", "", "as in 127.0.0.1:50051"),
        ("listen", "127.0.0.1:65536", "as in 127.0.0.1:50051"),
        ("listen", "::1:50051", "as in [::1]:50051"),
    ],
)
def test_wrong_value_names_setting_and_what_is_allowed(
    setting: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that can't be says by both names which setting it is, and what it may be."""
    monkeypatch.setenv(f"ROLECALL_{setting.upper()}", value)

    message = problem()

    assert f"`{setting}` (ROLECALL_{setting.upper()})" in message
    assert hint in message


@pytest.mark.parametrize("row", ["listen = 50051", "threads = 2.5", "policy = [1]", "tls_cert = true"])
def test_wrong_type_in_the_file_is_named(row: str, tmp_path: Path) -> None:
    """A TOML value of another type than the setting's is an error."""
    setting = row.partition(" ")[0]

    message = problem(toml(tmp_path, row))

    assert f"The setting `{setting}`" in message


def test_every_problem_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All problems are reported at one start, a line each."""
    monkeypatch.setenv("ROLECALL_LISTN", "x")
    file = toml(tmp_path, "colour = 1\nthreads = 1\n")

    message = problem(file, log_level="loud")

    lines = message.splitlines()
    for name in ("`colour`", "ROLECALL_LISTN", "`threads`", "`log_level`"):
        assert any(name in line for line in lines), name
    assert len(lines) == 4


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """A settings file that was asked for has to be there."""
    file = tmp_path / "missing.toml"

    message = problem(file)

    assert message == f"The settings file {file} can't be read: No such file or directory."


@pytest.mark.parametrize("content", [b"threads = = 2", b'policy = "\xff"'])
def test_file_that_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    """A file that can't be parsed is an error, whichever way it is broken."""
    file = tmp_path / "rolecall.toml"
    file.write_bytes(content)

    message = problem(file)

    assert message.startswith(f"The settings file {file} is not valid TOML: ")


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_one_tls_file_without_the_other_is_refused(given: str, tmp_path: Path) -> None:
    """A certificate without a key, or a key without a certificate, is an error."""
    message = problem(**{given: tmp_path / "file.pem"})

    assert "`tls_cert` and `tls_key` (--tls-cert, --tls-key)" in message


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.0.2.7:50051", "rolecall.acme.io:50051"])
def test_beyond_loopback_without_tls_is_refused(listen: str) -> None:
    """Listening on a network without TLS is refused: the message names every alternative."""
    message = problem(listen=listen)

    assert message.startswith(f"{listen} can be reached from other machines")
    for way_out in ("--tls-cert and --tls-key", "127.0.0.1", "--plaintext-exposes-tokens"):
        assert way_out in message


def test_beyond_loopback_with_tls_is_accepted(tmp_path: Path) -> None:
    """With both TLS files a server may listen anywhere."""
    settings = config.load(listen="0.0.0.0:50051", tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    config.check_listening(settings)

    assert settings.tls


def test_beyond_loopback_is_accepted_with_the_risk_flag() -> None:
    """The flag that names the risk is enough."""
    settings = config.load(listen="0.0.0.0:50051", plaintext_exposes_tokens=True)
    config.check_listening(settings)

    assert not settings.tls


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.1.2.3:50051", "localhost:50051", "[::1]:50051"])
def test_loopback_needs_no_tls(listen: str) -> None:
    """A loopback address may be served in plain text."""
    settings = config.load(listen=listen)
    config.check_listening(settings)

    assert settings.listen == listen


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("rolecall.acme.io:65535", ("rolecall.acme.io", 65535)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_address_splits_into_host_and_port(address: str, expected: tuple[str, int]) -> None:
    """Brackets around an IPv6 host are not part of it."""
    assert config.split_address(address) == expected


@pytest.mark.parametrize(
    "address",
    ["", "host", ":50051", "host:", "host:-1", "host:65536", "host:5005l", "host:\u0665", "::1:50051", "[::1]", "::1"],
)
def test_malformed_address_is_refused(address: str) -> None:
    """An address that is not host:port is quoted in the error, with an example."""
    with pytest.raises(ValueError, match="as in") as caught:
        config.split_address(address)

    assert f"`{address}`" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:/run/rolecall.sock", "/run/rolecall.sock"),
        ("unix:///run/rolecall.sock", "/run/rolecall.sock"),
        ("unix:rolecall.sock", "rolecall.sock"),
        ("127.0.0.1:50051", ""),
        ("unix.acme.io:50051", ""),
    ],
)
def test_unix_address_names_a_path(address: str, path: str) -> None:
    """Both forms that gRPC knows are read; any other address names no path."""
    assert config.socket_path(address) == path


@pytest.mark.parametrize("address", ["https://auth.acme.io", "http://127.0.0.1:50051", "dns:///auth.acme.io:443"])
def test_url_is_no_address(address: str) -> None:
    """A pasted URL is refused with the part of it that is the address."""
    with pytest.raises(ValueError, match="is a URL: write only its host and port"):
        config.split_address(address, default_port=443)


@pytest.mark.parametrize("host", ["localhost.acme.io", "128.0.0.1", "::", "0.0.0.0", "", "127.0.0.1.acme.io"])
def test_hosts_that_others_can_reach_are_no_loopback(host: str) -> None:
    """A name that only looks local is not a loopback address."""
    assert not config.is_loopback(host)


def test_errors_never_show_the_database_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL stays out of the message, whatever else is wrong."""
    url = f"postgresql://ann:{PASSWORD}@db/rolecall"
    monkeypatch.setenv("ROLECALL_DATABASE_URL", url)
    monkeypatch.setenv("ROLECALL_THREADS", "many")
    file = toml(tmp_path, f'databse = "{url}"\n')

    message = problem(file, database=url)

    assert "ROLECALL_DATABASE_URL is unknown" in message
    assert "`databse`" in message
    assert PASSWORD not in message


def test_settings_of_the_wrong_type_are_not_shown(tmp_path: Path) -> None:
    """A table with the password in it is no URL, and is not quoted as one."""
    message = problem(toml(tmp_path, f'[database]\npassword = "{PASSWORD}"\n'))

    assert "`database` (ROLECALL_DATABASE)" in message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{PASSWORD}@127.0.0.1:1/rolecall",
        f"postgresql://ann@127.0.0.1:1/rolecall?password={PASSWORD}",
        f"postgresql://ann:{PASSWORD}/rolecall",
        f"postgresql://ann:{PASSWORD}@127.0.0.1:port/rolecall",
        f"mysql://ann:{PASSWORD}@127.0.0.1/rolecall",
        f"ann:{PASSWORD}@127.0.0.1",
    ],
)
def test_database_that_cannot_be_used_is_reported_without_its_password(url: str) -> None:
    """Errors about an unreachable database or an invalid URL don't contain the password."""
    with pytest.raises(ConfigError) as caught:
        Storage(url).check()

    assert "database" in caught.value.message
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize("mode", ["99999", "u+x", "660\n", "", "0o660"])
def test_wrong_socket_mode_names_the_form(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that isn't octal says how to write one, and not which expression it has to match."""
    monkeypatch.setenv("ROLECALL_SOCKET_MODE", mode)

    assert problem() == "The setting `socket_mode` (ROLECALL_SOCKET_MODE) is wrong: write it in octal, as 0660."
