"""Clients in other languages: the options of the protos, and the clients of docs/languages.md, generated and run."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from support.environment import CI, ROOT
from support.sites import Site

DOCUMENT = ROOT / "docs" / "languages.md"
GO = shutil.which("go")
MAVEN = shutil.which("mvn")
BIN = Path(sys.executable).parent

# Maven writes colours around the answers.
ANSWER = re.compile(r"(\w+) (true|false) REASON_(\w+)")

assert GO or not CI, "CI must test with Go"


def blocks(language: str) -> list[str]:
    """The document's code blocks in `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(lines: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines of a shell in a folder, with buf on the path."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["bash", "-e", "-c", lines]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


def test_every_proto_names_its_packages() -> None:
    """Each file has the options that generators for Go, Java and C# need, of one package in each language."""
    paths = sorted((ROOT / "protos").rglob("*.proto"))
    found = FileDescriptorSet()
    for path in paths:
        import_module(f"rolecall.v1.{path.stem}_pb2").DESCRIPTOR.CopyToProto(found.file.add())

    assert len(paths) > 5
    for file in found.file:
        assert file.options.go_package == "rolecall.dev/rolecall/v1;rolecallv1", file.name
        assert file.options.java_package == "dev.rolecall.v1", file.name
        assert file.options.java_multiple_files, file.name
        assert file.options.csharp_namespace == "Rolecall.V1", file.name
    # Two files with one outer class would overwrite each other in Java.
    assert len({file.options.java_outer_classname for file in found.file} - {""}) == len(paths)


@pytest.mark.skipif(GO is None, reason="Go is not installed")
@pytest.mark.timeout(600)
def test_the_go_client_is_generated_and_asks(sqlite_site: Site, tmp_path: Path) -> None:
    """The lines of the document make a Go program from the protos alone, and a running server answers it."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    (tmp_path / "main.go").write_text(blocks("go")[0], encoding="utf-8")
    generate, ask, _ = blocks("sh")
    made = run(generate, tmp_path)
    if made.returncode and not CI and re.search(r"proxy|dial tcp|lookup|timeout", made.stderr):
        pytest.skip(f"Go can't download here: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr

    variables = {"ROLECALL_ADDRESS": sqlite_site.address, "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"]}
    asked = run(ask, tmp_path, **variables)
    refused = run(ask, tmp_path, **{**variables, "ROLECALL_TOKEN": "rcp_wrong"})

    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.splitlines() == ["view true REASON_GRANTED", "delete false REASON_NOT_GRANTED"]
    assert refused.returncode == 1
    assert "Unauthenticated" in refused.stderr


@pytest.mark.skipif(not (CI and MAVEN), reason="Maven is not installed, or this is not CI: it takes a minute")
@pytest.mark.timeout(600)
def test_the_java_client_is_generated_and_asks(sqlite_site: Site, tmp_path: Path) -> None:
    """The files of the document make a Java program from the protos alone, and a running server answers it.

    The compiler of protos that Maven downloads also makes C#, which is not compiled here.
    """
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    (tmp_path / "pom.xml").write_text(blocks("xml")[0], encoding="utf-8")
    source = tmp_path / "src" / "main" / "java" / "Ask.java"
    source.parent.mkdir(parents=True)
    source.write_text(blocks("java")[0], encoding="utf-8")
    variables = {"ROLECALL_ADDRESS": sqlite_site.address, "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"]}
    asked = run(blocks("sh")[2], tmp_path, **variables)
    if asked.returncode and re.search(r"Could not (transfer|resolve|find) ", asked.stdout):
        pytest.skip("Maven can't download here")
    refused = run(f"{blocks('sh')[2]} -o", tmp_path, **{**variables, "ROLECALL_TOKEN": "rcp_wrong"})
    (protoc,) = (tmp_path / "target" / "protoc-plugins").glob("protoc-[0-9]*")
    well_known = Path(str(files("grpc_tools"))) / "_proto"
    c_sharp = tmp_path / "csharp"
    c_sharp.mkdir()
    run(f"{protoc} -I protos -I {well_known} --csharp_out=csharp protos/rolecall/v1/*.proto", tmp_path)
    namespaces = [re.findall(r"^namespace (\S+)", file.read_text(), re.MULTILINE) for file in c_sharp.glob("*.cs")]

    assert asked.returncode == 0, asked.stdout
    assert ANSWER.findall(asked.stdout) == [("view", "true", "GRANTED"), ("delete", "false", "NOT_GRANTED")]
    assert refused.returncode == 1
    assert "UNAUTHENTICATED" in refused.stdout
    assert namespaces == [["Rolecall.V1"]] * len(list((ROOT / "protos").rglob("*.proto")))
