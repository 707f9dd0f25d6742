"""Refuse docstrings whose first sentence doesn't name its subject: `check_docstrings.py [FILE_OR_FOLDER ...]`.

The refused openings, the folders that are checked by default and those that are left out stand in pyproject.toml, under
`[tool.rolecall.docstrings]`. Each docstring found is printed as file:line with its opening; the exit code is then 1.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Check the files and folders named, by default those of pyproject.toml; return the exit code."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["rolecall"]["docstrings"]
    refused = re.compile(rf"\W*({'|'.join(map(re.escape, settings['refused']))})(?![\w-])")
    excluded = [ROOT / folder for folder in settings["exclude"]]
    paths = [Path(name).resolve() for name in arguments] or [ROOT / folder for folder in settings["paths"]]
    if missing := [str(path) for path in paths if not path.exists()]:
        print(f"No such file or folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    count = 0
    for file_path in _python_files(paths):
        if any(file_path.is_relative_to(folder) for folder in excluded):
            continue
        tree = ast.parse(file_path.read_text(encoding="utf-8"), str(file_path))
        shown = file_path.relative_to(ROOT) if file_path.is_relative_to(ROOT) else file_path
        for line, text in docstrings(tree):
            if opening := refused.match(text):
                first_line = text.strip().splitlines()[0]
                print(f"{shown}:{line}: docstring begins with `{opening[1]}`: {first_line}")
                count += 1
    if count:
        print(f"Docstrings that don't name their subject: {count}. Begin with the thing or with a verb.")
    return 1 if count else 0


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring of modules, classes, functions and attributes (below their assignment)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        candidates = node.body[:1]
        if isinstance(node, ast.Module | ast.ClassDef):
            pairs = pairwise(node.body)
            candidates += [after for before, after in pairs if isinstance(before, ast.Assign | ast.AnnAssign)]
        for statement in candidates:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text


def _python_files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files named and the Python files beneath the folders named, in a fixed order."""
    for path in paths:
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
