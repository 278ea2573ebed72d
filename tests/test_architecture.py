"""The shape of the code: which way imports go, what is light to import, how long files are, where SQL comes from."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(
    [
        *(REPOSITORY / "warehouse").rglob("*.py"),
        *(REPOSITORY / "extractors").rglob("*.py"),
        REPOSITORY / "cli.py",
    ]
)
FILES = sorted({*MODULES, *(REPOSITORY / "benchmarks").glob("*.py")})
#: What each layer must not import, at the top of a module or inside a function.
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "lightly",
    "skimage",
    "tifffile",
    "imagecodecs",
    "cp_measure",
}
FORBIDDEN = {
    "warehouse": {"extractors", "cli", "tests", "benchmarks", "sql", "schema", *HEAVY},
    "extractors": {"cli", "tests", "benchmarks", "sql", "schema"},
    "cli.py": {"tests", "benchmarks", "sql", "schema"},
}
#: What a module of `warehouse` must come up without; `faiss` is for search only, when it is used.
BLOCKED = sorted({*HEAVY, "faiss"} - {"lightly"})


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield node.lineno, str(node.module)


# ------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    forbidden = FORBIDDEN[path.relative_to(REPOSITORY).parts[0]]
    faults = [f"line {line}: {name}" for line, name in imported(path) if name.split(".")[0] in forbidden]
    assert not faults, f"{name_of(path)} imports {faults}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_dynamic_import_goes_around_the_layers(path):
    calls = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
    ]
    assert not calls or name_of(path) == "extractors/registry.py", f"{name_of(path)}: lines {calls}"


def test_sql_and_schema_are_no_packages():
    found = [name_of(path) for kind in ("sql", "schema") for path in (REPOSITORY / kind).rglob("*.py")]
    assert found == []


_PROBE = """
import importlib, json, sys
blocked, names, home = json.loads(sys.argv[1])
asked = []

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in blocked:
            return None
        # Other packages may look whether torch is there; ours may not.
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        # Named by folder: through the link .venv, site-packages too lie below the repository.
        ours = tuple(home + part for part in ("/warehouse/", "/extractors/", "/cli.py"))
        if frame.f_code.co_filename.startswith(ours):
            asked.append(name)
        raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
for name in names:
    importlib.import_module(name)
print(json.dumps({"asked": asked, "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def loaded_by(*names: str, blocked: tuple[str, ...] = ()) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps([blocked, names, str(REPOSITORY)])],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_warehouse_comes_up_without_the_extras():
    names = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in MODULES
        if name_of(path).startswith("warehouse/")
    ]
    assert len(names) > 30
    found = loaded_by(*names, blocked=tuple(BLOCKED))
    assert found["asked"] == []
    assert not set(found["loaded"]) & set(BLOCKED)


def test_registry_lists_extractors_without_importing_one():
    assert not set(loaded_by("extractors.registry")["loaded"]) & {*BLOCKED, "scipy"}


def test_help_imports_nothing_heavy():
    heavy = {*BLOCKED, "polars", "duckdb", "numpy", "pyarrow", "sklearn", "scipy", "pandas"}
    assert not set(loaded_by("cli")["loaded"]) & heavy


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_short_and_says_what_it_is(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{name_of(path)} has {lines} lines"
    docstring = ast.get_docstring(tree(path)) or ""
    assert len(docstring) > 10, f"{name_of(path)} has no docstring"


def test_no_module_is_named_after_nothing():
    vague = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [name_of(path) for path in FILES if path.name in vague] == []


# ------------------------------------------------------------------------------------------ SQL

#: Calls that give quoted names, and calls that run SQL.
_QUOTING = {"relation", "identifier", "literal"}
_RUNNING = {"execute", "executemany", "frame", "value", "sql", "query"}
#: Placeholders that are neither a quoted name nor a constant, and why each can hold no value of a user.
EXPLAINED = {
    ("warehouse/correct.py", "table"): "one of two names in the line above",
    ("warehouse/catalog.py", "given"): "texts of ours, with literal() around what is given",
    ("warehouse/catalog.py", "moment"): "a number, or literal() around a time",
    ("warehouse/catalog.py", "text"): "options of ours, with literal() around their values",
    ("warehouse/extensions.py", "name"): "of an extension: called with texts of ours",
    ("warehouse/extensions.py", "setting"): "one of the texts in the line above",
    ("warehouse/formats/cellprofiler_sqlite.py", "marks"): "question marks",
    ("warehouse/formats/cellprofiler_sqlite.py", "names"): "each one quoted by identifier()",
    ("warehouse/formats/cellprofiler_sqlite.py", "stored"): "quoted by identifier() in the lines above",
    ("warehouse/ingest.py", "columns"): "a text in the line above",
    ("warehouse/ingest.py", "table"): "one of two names in the line above",
    ("warehouse/layouts.py", "new_rows"): "a text in the same function",
    ("warehouse/nearest/controls.py", "keys"): "columns of ours",
    ("warehouse/nearest/filters.py", "predicate(where)"): "checked to be one expression that only reads",
    ("warehouse/layouts.py", "table"): "insert() is called with names of ours or relation()",
    ("warehouse/levels.py", "target.dim"): "a number",
    ("warehouse/nights/plan.py", "table"): "one of two names of ours",
    ("warehouse/profiles.py", "corrected"): "a text in the lines above, with relation()",
    (
        "warehouse/profiles.py",
        "text",
    ): "parsed as one expression before; described, not run, by a connection apart",
    ("warehouse/profiles.py", "query"): "columns of ours, relation(), and predicate(), which is checked",
    ("warehouse/profiles.py", "', '.join(IDS[level])"): "columns of ours",
    ("warehouse/status.py", "name"): "one of the names in the line below",
    ("warehouse/upkeep/compact.py", "function"): "called with two names of ours",
    ("warehouse/upkeep/compact.py", "name"): "called with relation()",
    ("warehouse/upkeep/differences.py", "name"): "called with relation()",
    ("warehouse/upkeep/differences.py", "who"): "one of two texts in the line above",
    ("warehouse/upkeep/rollback.py", "name"): "called with relation()",
    ("warehouse/upkeep/rollback.py", "names"): "columns of ours, in the line above",
    ("warehouse/upkeep/rollback.py", "of"): "a text in the line above, with relation()",
    ("warehouse/upkeep/rollback.py", "rows"): "called with texts of this module, with relation()",
    ("warehouse/upkeep/rollback.py", "table"): "one of three names in the line above, or relation()",
    ("warehouse/upkeep/verify.py", "name"): "relation() in the lines above",
}


def _is_quoted(value: ast.expr, local: dict[str, list[ast.expr]]) -> bool:
    """Whether an expression is a quoting call, a constant in capitals, or a local name that is always one."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in _QUOTING
    if isinstance(value, ast.Name | ast.Attribute):
        last = ast.unparse(value).split(".")[-1]
        if re.fullmatch(r"_?[A-Z][A-Z_]*", last):
            return True
        given = local.get(ast.unparse(value), [])
        return bool(given) and all(isinstance(one, ast.Call) and _is_quoted(one, {}) for one in given)
    return False


def unquoted(module: ast.Module) -> set[str]:
    """Placeholders of f-strings that are run as SQL, also over one local name, and that are not quoted."""
    found = set()
    functions = [
        node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for scope in functions:
        local: dict[str, list[ast.expr]] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                local.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if ast.unparse(node.func).split(".")[-1] not in _RUNNING:
                continue
            first = node.args[0]
            texts = local.get(first.id, []) if isinstance(first, ast.Name) else [first]
            for text in texts:
                for part in ast.walk(text):
                    if isinstance(part, ast.FormattedValue) and not _is_quoted(part.value, local):
                        found.add(ast.unparse(part.value))
    return found


def test_no_value_goes_into_sql_by_f_string():
    found = {(name_of(path), placeholder) for path in MODULES for placeholder in unquoted(tree(path))}
    assert found - set(EXPLAINED) == set(), "bind these as parameters, or quote and explain them"
    assert set(EXPLAINED) - found == set(), "these are gone: take them out of EXPLAINED"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('c.execute(f"SELECT * FROM t WHERE well = {well!r}")', {"well"}),
        ('q = f"SELECT * FROM t WHERE well = {well}"\n    c.execute(q)', {"well"}),
        ('t = relation(a, "wells")\n    c.execute(f"SELECT * FROM {t} WHERE {PLATE}", key)', set()),
        ('t = relation(a, "wells")\n    t = user\n    c.execute(f"SELECT * FROM {t}")', {"t"}),
        ('lake.frame(f"SELECT * FROM {relation(a, b)} WHERE {x.LOAD} = ?", [1])', set()),
        ('lake.value("SELECT 1" + f" WHERE {user.name}")', {"user.name"}),
    ],
)
def test_the_check_of_sql_sees_what_it_should(code, expected):
    assert unquoted(ast.parse(f"def work():\n    {code}\n")) == expected
