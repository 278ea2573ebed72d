"""The wheel, built from the working tree and installed where nothing else of ours is."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = (
    "warehouse",
    "extractors",
    "sql",
    "schema",
    "cli.py",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    ".gitignore",
)
#: What the extras bring, and the base must do without.
ABSENT = (
    "torch",
    "torchvision",
    "timm",
    "skimage",
    "tifffile",
    "cp_measure",
    "imagecodecs",
    "faiss",
    "pandas",
)

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Neither our checkout nor our own environment may help what is installed there.
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WELLHOUSE_LAKE")
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout and two runs do not meet."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for part in PARTS:
        source = REPOSITORY / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / part)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, folder=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment with PyPI's `schema`, the wheel and its base dependencies, nothing more."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    # `schema` first: a wheel with files of that name would overwrite it.
    for what in ("schema", wheel):
        done = run(
            *pip, "install", "--quiet", "--no-compile", "-c", REPOSITORY / "constraints.txt", what,
            folder=folder, check=False,
        )  # fmt: skip
        if "No matching distribution found for schema" in done.stderr or "NewConnectionError" in done.stderr:
            pytest.skip("PyPI cannot be reached: the wheel's dependencies cannot be installed")
        assert done.returncode == 0, done.stderr
    return python.parent


@pytest.fixture
def lake(bin_folder: Path, tmp_path: Path) -> Path:
    run(bin_folder / "wellhouse", "init", "X", folder=tmp_path)
    return tmp_path / "X"


def test_wheel_holds_the_code_and_every_sql_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {
        f"warehouse/_data/{path.relative_to(REPOSITORY).as_posix()}"
        for kind in ("sql", "schema")
        for path in (REPOSITORY / kind).rglob("*.sql")
    }
    code = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("warehouse", "extractors")
        for path in (REPOSITORY / package).rglob("*.py")
    }
    assert names == data | code | {"cli.py"}
    folders = {name.rsplit("/", 1)[0] for name in data}
    assert folders == {f"warehouse/_data/{name}" for name in (
        "schema", "schema/feature_set", "sql/checks", "sql/consensus", "sql/feature_set", "sql/from_cells", "sql/main",
        "sql/parts",
    )}  # fmt: skip


def test_installed_sql_is_that_of_the_checkout(bin_folder, tmp_path):
    code = (
        "import json; from warehouse import resources as r; "
        "kinds = [('schema', ''), ('schema', 'feature_set'), ('sql', 'main'), ('sql', 'feature_set'), "
        "('sql', 'checks'), ('sql', 'consensus'), ('sql', 'from_cells'), ('sql', 'parts')]; "
        "print(json.dumps([[str(p), p.read_text()] for kind in kinds for p in r.files(*kind)]))"
    )
    found = json.loads(run(bin_folder / "python", "-c", code, folder=tmp_path).stdout)
    assert len(found) == sum(1 for kind in ("sql", "schema") for _ in (REPOSITORY / kind).rglob("*.sql"))
    for path, text in found:
        assert bin_folder.parent.as_posix() in path
        inside = path.split("/_data/")[1]
        assert text == (REPOSITORY / inside).read_text(), inside


def test_nothing_of_the_extras_is_there(bin_folder, tmp_path):
    code = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    assert run(bin_folder / "python", "-c", code, folder=tmp_path).stdout.strip() == "[]"


def test_help_names_every_command(bin_folder, tmp_path):
    shown = run(bin_folder / "wellhouse", "--help", folder=tmp_path).stdout
    for name in (
        "init",
        "ingest",
        "import-profiles",
        "correct",
        "index",
        "nearest",
        "evaluate",
        "sql",
        "status",
    ):
        assert f" {name} " in shown


def test_init_makes_a_lake_that_sql_and_status_read(bin_folder, lake):
    query = "SELECT count(*) AS plates FROM main.plates"
    for script in ((bin_folder / "wellhouse",), (bin_folder / "python", "-m", "cli")):
        done = run(*script, "sql", query, "--lake", lake, "--json", folder=lake.parent)
        assert json.loads(done.stdout) == [{"plates": 0}]
    assert (
        "checks: all pass"
        in run(bin_folder / "wellhouse", "status", "--lake", lake, folder=lake.parent).stdout
    )
    assert (lake / "templates" / "manifest.csv").is_file()


def test_profiles_come_in_and_are_corrected_and_scored_without_torch_and_faiss(bin_folder, lake):
    wells = [(f"A{i:02d}", "DMSO", "negative") for i in range(1, 5)] + [
        ("B01", "x", "none"),
        ("B02", "y", "none"),
    ]
    rows = [f"p1,{well},{i},{i * i % 7}" for i, (well, _, _) in enumerate(wells)]
    (lake.parent / "p.csv").write_text("\n".join(["plate,well,emb0,emb1", *rows]) + "\n")
    plan = [f"p1,{well},{compound},{control}" for well, compound, control in wells]
    (lake.parent / "l.csv").write_text("\n".join(["plate,well,compound,control_type", *plan]) + "\n")
    wellhouse = bin_folder / "wellhouse"
    run(
        wellhouse,
        "import-profiles",
        "p.csv",
        "--feature-set",
        "f",
        "--layout",
        "l.csv",
        "--lake",
        lake,
        folder=lake.parent,
    )
    run(wellhouse, "correct", "f", "--recipe", "standardize", "--lake", lake, folder=lake.parent)
    query = "SELECT treatment FROM f.treatments__standardize ORDER BY 1"
    done = run(wellhouse, "sql", query, "--lake", lake, "--json", folder=lake.parent)
    assert [row["treatment"] for row in json.loads(done.stdout)] == ["DMSO", "x", "y"]
    done = run(
        wellhouse, "nearest", "x", "--feature-set", "f", "--lake", lake, folder=lake.parent, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: FAISS is not installed: pip install 'wellhouse[cpu]'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("extractor", ["transfer", "cellprofiler"])
def test_ingest_says_which_extra_is_missing(bin_folder, lake, extractor):
    (lake.parent / "dna.tif").write_bytes(b"")
    (lake.parent / "m.csv").write_text("plate,well,field,path_DNA\np1,A01,1,dna.tif\n")
    done = run(
        bin_folder / "wellhouse", "ingest", "m.csv", "--extractor", extractor, "--lake", lake,
        folder=lake.parent, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(" is not installed: pip install 'wellhouse[extract]'\n")


def test_schema_is_the_one_from_pypi_and_its_removal_leaves_us_whole(bin_folder, lake):
    python = bin_folder / "python"
    seen = run(
        python,
        "-c",
        "import schema; print(schema.__file__, schema.Schema(int).validate(3))",
        folder=lake.parent,
    )
    file, value = seen.stdout.split()
    assert Path(file).is_relative_to(bin_folder.parent)
    assert value == "3"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "uninstall", "--quiet", "--yes", "schema", folder=lake.parent)
    gone = run(python, "-c", "import schema", folder=lake.parent, check=False)
    assert "ModuleNotFoundError: No module named 'schema'" in gone.stderr
    run(bin_folder / "wellhouse", "init", "Y", folder=lake.parent)
    done = run(bin_folder / "wellhouse", "status", "--lake", "Y", "--json", folder=lake.parent)
    assert json.loads(done.stdout)["faults"] == {}
