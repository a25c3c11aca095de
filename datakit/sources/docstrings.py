"""Docstrings with the source or the signature of what they document. Modules are parsed, never imported."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datakit.errors import UserError
from datakit.schema import digest
from datakit.sources.paragraphs import beginning
from datakit.sources.records import Unreadable

INVALID_PYTHON = "invalid_python"
STDLIB = "stdlib"
# Longer docstrings are cut at a paragraph where they are the positive.
WORDS = 300

_NO_DOCUMENTATION = frozenset(
    {"antigravity", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}
)
_TESTS = re.compile(r"tests?|testing|test_.*|.*_tests?|conftest|examples?|benchmarks?")
_ROLE = re.compile(r":[a-z:+-]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Documented:
    """A public function or class with a docstring: where it is, its signature, its source without the docstring."""

    name: str
    signature: str
    docstring: str
    source: str

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(re.split(r"\n\s*\n", self.docstring)[0].split())

    @property
    def details(self) -> str:
        """The docstring without its first paragraph."""
        return "".join(re.split(r"\n\s*\n", self.docstring, maxsplit=1)[1:]).strip()


def documented(package: str, seed: int) -> Iterator[Documented | Unreadable]:
    """All that is documented in an importable package (or `stdlib`), module by module, in an order drawn from `seed`."""
    files = sorted(module_files(package), key=lambda item: (digest("module", str(seed), item[0]), item[0]))
    for module, path in files:
        yield from of_module(module, path)


def module_files(package: str) -> Iterator[tuple[str, Path]]:
    """The public modules of a package with their files; no tests, and none whose name begins with an underscore.

    Raises a UserError for a package that is not installed, or that has no Python sources.
    """
    roots = list(_roots(package))
    if not roots:
        raise UserError(f"The package '{package}' is not installed (or has no Python sources). Install it, or take it out.")
    for name, root in roots:
        if root.is_file():
            yield name, root
            continue
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            inner = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(part.startswith("_") or _TESTS.fullmatch(part) or not part.isidentifier() for part in inner):
                yield ".".join([name, *inner]), path


def _roots(package: str) -> Iterator[tuple[str, Path]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    if package == STDLIB:
        names = [name for name in sorted(sys.stdlib_module_names) if not name.startswith("_") and name not in _NO_DOCUMENTATION]
        for name in names:
            for path in (library / f"{name}.py", library / name):
                if path.exists():
                    yield name, path
        return
    # Only the outermost package is looked up: find_spec would import the parents of an inner one.
    first, *inner = package.split(".")
    spec = importlib.util.find_spec(first) if first.isidentifier() else None
    if spec is None:
        return
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders and spec.origin and not inner and spec.origin.endswith(".py"):
        yield package, Path(spec.origin)
    for folder in folders:
        path = folder.joinpath(*inner)
        for candidate in (path, path.with_name(path.name + ".py")):
            if candidate.is_dir() or (inner and candidate.is_file()):
                yield package, candidate


def of_module(module: str, path: Path) -> Iterator[Documented | Unreadable]:
    """What is documented in one file, in its order; Unreadable where the file is no Python of this version."""
    data = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = io.TextIOWrapper(io.BytesIO(data), encoding).read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        yield Unreadable(INVALID_PYTHON, f"the module {module} cannot be parsed ({error})", data)
        return
    lines = text.split("\n")
    for name, node, inside_class in _definitions(tree, ""):
        found = _documented(f"{module}.{name}", node, lines, inside_class)
        if found is not None:
            yield found


def _definitions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition, bool]]:
    for node in parent.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node, isinstance(parent, ast.ClassDef)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}{node.name}.")


def _documented(name: str, node: Definition, lines: Sequence[str], inside_class: bool) -> Documented | None:
    """None where there is no docstring, nothing besides it, or a text that no file can hold (lone surrogates)."""
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    statement = node.body[0]
    assert statement.end_lineno is not None
    assert node.end_lineno is not None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    if statement.lineno == node.body[1].lineno or statement.lineno == node.lineno or "\f" in lines[statement.lineno - 1]:
        return None  # the docstring shares its line with code
    kept = [*lines[start - 1 : statement.lineno - 1], *lines[statement.end_lineno : node.end_lineno]]
    source = textwrap.dedent("\n".join(kept)).strip("\n")
    try:
        (docstring + source).encode()
    except UnicodeEncodeError:
        return None
    return Documented(name, _signature(name, node, inside_class), _prose(docstring), re.sub(r"\n(?:[ \t]*\n)+", "\n\n", source))


def _prose(docstring: str) -> str:
    return _ROLE.sub(r"`\1`", inspect.cleandoc(docstring)).replace("``", "`").strip()


def _signature(name: str, node: Definition, inside_class: bool) -> str:
    """ "module.name(arguments) -> result", without self; of a class, what its __init__ takes."""
    if isinstance(node, ast.ClassDef):
        initialisers = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return f"class {name}" + (f"({_arguments(initialisers[0], True)})" if initialisers else "")
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        return name + result
    return f"{name}({_arguments(node, inside_class and 'staticmethod' not in decorators)}){result}"


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if bound and positional:
        first = positional[0]
        arguments = ast.arguments(
            posonlyargs=[item for item in arguments.posonlyargs if item is not first],
            args=[item for item in arguments.args if item is not first],
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults[-(len(positional) - 1) :] if len(positional) > 1 else [],
        )
    return ast.unparse(arguments)


def pair(item: Documented, part: str) -> dict[str, str]:
    """docstrings: summary <-> source. signatures: signature <-> docstring. summaries: summary <-> the rest of the docstring."""
    match part:
        case "docstrings":
            query, positive = item.summary, item.source
        case "summaries":
            query, positive = item.summary, beginning(item.details, WORDS)
        case _:
            query, positive = item.signature, beginning(item.docstring, WORDS)
    return {"query": query, "positive": positive, "document_id": f"object {item.name}"}


def document(item: Documented) -> dict[str, str]:
    return {"title": item.name, "text": item.docstring, "document_id": f"object {item.name}"}
