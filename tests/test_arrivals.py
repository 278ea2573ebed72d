"""What there is to be taken in: found the same on disk and on S3, waiting until it is whole, and known again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from benchmarks.servers import S3
from warehouse import arrivals
from warehouse.errors import PlaceError, UnknownNameError
from warehouse.screens import read_screen

OLD, NOW = 1_700_000_000, 1_700_001_000.0
HEAD = "PathName_OrigDNA,FileName_OrigDNA,PathName_OrigER,FileName_OrigER,Metadata_Plate,Metadata_Well,Metadata_Site\n"


class Tree:
    """A tree of files, on disk or in a bucket; every file is dated `OLD`."""

    def __init__(self, folder: Path, location: str, s3: S3 | None = None) -> None:
        self.folder, self.location, self._s3 = folder, location, s3
        folder.mkdir(parents=True)

    def put(self, name: str, data: str | bytes = "x", modified: float = OLD) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        os.utime(path, (modified, modified))
        self.settle()
        return f"{self.location}/{name}"

    def settle(self) -> None:
        """Wait until the server sees what changed."""
        if self._s3 is not None:
            self._s3.look_again()

    def gallery(self, source: str, plate: str, fields: int = 2, batch: str = "B1") -> str:
        """A plate of well A01 in the gallery's layout."""
        rows = HEAD
        for field in range(1, fields + 1):
            images = f"{source}/images/{batch}/images/{plate}"
            names = [f"A01_{field}_{channel}.tif" for channel in ("DNA", "ER")]
            for name in names:
                self.put(f"{images}/{name}")
            folder = f"{self.location}/{images}"
            rows += f"{folder},{names[0]},{folder},{names[1]},{plate},A01,{field}\n"
        return self.put(f"{source}/workspace/load_data_csv/{batch}/{plate}/load_data.csv", rows)


@pytest.fixture(params=["local", "s3"])
def tree(request, tmp_path) -> Tree:
    if request.param == "local":
        return Tree(tmp_path / "tree", str(tmp_path / "tree"))
    s3 = request.getfixturevalue("s3")
    bucket = s3.new_bucket()
    return Tree(s3.folder / bucket / "tree", f"s3://{bucket}/tree", s3)


def found(place: str, **settings) -> list[arrivals.Arrival]:
    return list(arrivals.images(place, now=NOW, **settings))


def tables(place: str, *patterns: str, **settings) -> list[arrivals.Arrival]:
    return list(arrivals.profiles(place, *patterns, now=NOW, **settings))


# ------------------------------------------------------------------------------------------ images


def test_plates_of_the_gallery_are_found(tree):
    manifests = [tree.gallery("cpg/s1", "P1"), tree.gallery("cpg/s1", "P2"), tree.gallery("cpg/s2", "P1")]
    tree.put("cpg/s1/workspace/analysis/B1/load_data.csv", "not a manifest of images")
    for place in ("", "/cpg"):
        plates = found(tree.location + place)
        assert [(one.origin, one.key) for one in plates] == list(
            zip(manifests, [("s1", "B1", "P1"), ("s1", "B1", "P2"), ("s2", "B1", "P1")], strict=True)
        )
        assert {(one.files, one.bytes, one.waits_for, one.fault) for one in plates} == {(4, 4, None, None)}
        assert len({one.arrival for one in plates}) == 3
    assert found(f"{tree.location}/cpg/s1/workspace") == plates[:2]
    assert found(manifests[2]) == plates[2:]
    with pytest.raises(PlaceError, match="there is no such folder, or no file in it"):
        found(f"{tree.location}/none")


def test_outside_the_gallery_every_load_data_counts(tree):
    tree.gallery("x", "P1")
    (tree.folder / "x" / "workspace").rename(tree.folder / "x" / "manifests")
    assert [one.key for one in found(tree.location)] == [("default", "B1", "P1")]


def test_a_plate_waits_until_it_is_whole(tree):
    manifest = tree.gallery("s1", "P1")
    images = tree.folder / "s1/images/B1/images/P1"
    ready = found(tree.location)[0]
    (images / "A01_1_ER.tif").unlink()
    (images / "A01_2_ER.tif").unlink()
    tree.settle()
    one = found(tree.location)[0]
    address = f"{tree.location}/s1/images/B1/images/P1/A01_1_ER.tif"
    assert one.waits_for == f"2 of 4 image files are not there, the first {address}"
    assert (one.files, one.bytes) == (2, 2)
    tree.put("s1/images/B1/images/P1/A01_1_ER.tif", "")
    tree.put("s1/images/B1/images/P1/A01_2_ER.tif")
    assert found(tree.location)[0].waits_for == f"{address} is empty"
    tree.put("s1/images/B1/images/P1/A01_1_ER.tif", "x", NOW - 59)
    assert found(tree.location)[0].waits_for == f"{address} was changed 59 s ago, and must rest for 60 s"
    assert found(tree.location, settle_seconds=59)[0].waits_for is None
    tree.put("s1/images/B1/images/P1/A01_1_ER.tif", "x", NOW + 9000)
    assert "which is still to come: touch it, or set the clock" in found(tree.location)[0].waits_for
    tree.put("s1/images/B1/images/P1/A01_1_ER.tif")
    assert found(tree.location) == [ready]
    os.utime(tree.folder / manifest.removeprefix(f"{tree.location}/"), (NOW - 5, NOW - 5))
    tree.settle()
    assert found(tree.location)[0].waits_for == f"{manifest} was changed 5 s ago, and must rest for 60 s"
    assert found(tree.location, channels=["DNA"])[0].files == 2


def test_what_changes_an_arrival(tree):
    manifest = tree.gallery("s1", "P1")
    tree.gallery("s1", "P2")
    tree.put(
        "s1/workspace/metadata/platemaps/B1/barcode_platemap.csv",
        "Assay_Plate_Barcode,Plate_Map_Name\nP1,M\n",
    )
    name, text = (
        "s1/images/B1/images/P1/A01_1_ER.tif",
        (tree.folder / "s1/workspace/load_data_csv/B1/P1/load_data.csv"),
    )
    seen = {found(tree.location)[0].arrival}
    other = found(tree.location)[1]

    def changed() -> bool:
        plates = found(tree.location)
        is_new = plates[0].arrival not in seen
        seen.add(plates[0].arrival)
        assert plates[1].arrival == other.arrival
        return is_new

    assert not changed()
    tree.put(name, "xx")
    assert changed()
    tree.put(name, "xx", OLD + 1)
    assert changed()
    tree.put(manifest.removeprefix(f"{tree.location}/"), text.read_bytes(), OLD + 1)
    assert changed()
    assert found(tree.location, salt="other settings")[0].arrival not in seen
    assert found(tree.location, salt=lambda key: key[2])[0].arrival not in seen
    # A platemap that is not there yet is waited for, and is no part of what a plate is.
    waiting = found(tree.location)
    assert "its layout, which cannot be read: " in waiting[0].waits_for
    tree.put("s1/workspace/metadata/platemaps/B1/platemap/M.txt", "well_position\tbroad_sample\nA01\tBRD-1\n")
    assert [(one.arrival, one.waits_for) for one in found(tree.location)] == [
        (one.arrival, None) for one in waiting
    ]


def test_an_unchanged_tree_gives_the_same_in_a_new_process(tree):
    tree.gallery("s1", "P1")
    code = (
        "import sys, json; from warehouse import arrivals; "
        "print(json.dumps([a.arrival for a in arrivals.images(sys.argv[1], now=float(sys.argv[2]), salt='s')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tree.location, str(NOW)], check=True, capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert json.loads(done.stdout) == [one.arrival for one in found(tree.location, salt="s")]


def test_one_broken_manifest_is_one_fault_and_the_others_go_on(tree):
    tree.gallery("s1", "P1")
    broken = tree.put("s1/workspace/load_data_csv/B1/P0/load_data.csv", HEAD + "only,three,values\n")
    garbage = tree.put("s1/workspace/load_data_csv/B1/P3/load_data.csv.gz", b"\x1f\x8b no gzip")
    plates = found(tree.location)
    assert [one.key for one in plates] == [None, ("s1", "B1", "P1"), None]
    assert plates[0].fault.startswith(f"{broken}, row 2: 3 values for 7 columns")
    assert plates[2].fault.startswith(f"{garbage}: cannot be read")
    assert plates[1].fault is None


def test_a_manifest_of_many_plates(tree):
    rows = "source,batch,plate,well,field,path_DNA\n"
    for plate in ("P1", "P2"):
        tree.put(f"images/{plate}.tif")
        rows += f"s,b,{plate},A01,1,images/{plate}.tif\n"
    manifest = tree.put("manifest.csv", rows)
    first = found(manifest)
    assert [(one.key, one.files, one.waits_for) for one in first] == [
        (("s", "b", "P1"), 1, None), (("s", "b", "P2"), 1, None),
    ]  # fmt: skip
    tree.put("manifest.csv", rows + "s,b,P3,A01,1,images/P3.tif\n", OLD + 1)
    second = found(manifest)
    assert second[:2] == first
    assert second[2].waits_for == f"1 of 1 image files are not there, the first {tree.location}/images/P3.tif"
    layout = tree.put("layout.csv", "plate,well,compound\nP1,A01,x\n")
    assert found(manifest, layout=layout) == second
    tree.put("layout.csv", "plate,well,compound\nP1,A01,y\n", time.time())
    assert "layout.csv" in found(manifest, layout=layout, settle_seconds=60)[0].waits_for


def test_with_recheck_manifest_known_plates_are_not_opened(tree, monkeypatch):
    tree.gallery("s1", "P1")
    rows = "source,batch,plate,well,field,path_DNA\ns,b,A,A01,1,i.tif\ns,b,B,A01,1,j.tif\n"
    manifest = tree.put("manifest.csv", rows)
    tree.put("i.tif")
    with pytest.raises(UnknownNameError, match="unknown recheck 'file'"):
        found(tree.location, recheck="file")
    for place in (f"{tree.location}/s1", manifest):
        plates = found(place, recheck="manifest")
        known = {one.arrival: one.key for one in plates if one.waits_for is None}
        again = found(place, recheck="manifest", known=known)
        assert [(one.key, one.arrival, one.waits_for) for one in again] == [
            (one.key, one.arrival, one.waits_for) for one in plates
        ]
    known = {one.arrival: one.key for one in plates}
    monkeypatch.setattr("warehouse.arrivals.plates.read_screen", None)
    again = found(manifest, recheck="manifest", known=known)
    assert [(one.key, one.arrival, one.waits_for) for one in again] == [
        (("s", "b", name), one.arrival, None) for name, one in zip("AB", plates, strict=True)
    ]
    tree.put("manifest.csv", rows, OLD + 1)
    with pytest.raises(TypeError):  # it would be opened
        found(manifest, recheck="manifest", known=known)


def test_the_gallerys_layout_is_found_and_read(tree):
    manifest = tree.gallery("s1", "P1")
    assert arrivals.gallery_layout(manifest) is None
    tree.put(
        "s1/workspace/metadata/platemaps/B1/barcode_platemap.csv",
        "Assay_Plate_Barcode,Plate_Map_Name\nP1,M\n",
    )
    tree.put("s1/workspace/metadata/platemaps/B1/platemap/M.txt", "well_position\tbroad_sample\nA01\tBRD-1\n")
    layout = arrivals.gallery_layout(manifest)
    assert layout == f"{tree.location}/s1/workspace/metadata/platemaps/B1"
    assert read_screen(manifest, layout=layout).layout.row(0)[:5] == ("s1", "B1", "P1", "A01", "BRD-1")
    assert arrivals.gallery_layout(f"{tree.location}/load_data.csv") is None


def test_an_images_folder_that_is_not_mounted_blames_no_manifest(tree):
    manifest = tree.gallery("s1", "P1")
    with pytest.raises(
        PlaceError, match=r"none: there is no such folder\. Correct the path, or is it not mounted"
    ):
        found(manifest, images=f"{tree.location}/none")


# ------------------------------------------------------------------------------------------ profiles


def test_files_of_profiles_by_their_names(tree):
    for name in ("a/P1.parquet", "a/P2.parquet.tmp", "b/c/P3.parquet", "b/.P4.parquet", "P5.csv", ".x/P6.parquet",
                 "b/P7.parquet~", "~$P8.csv", "P9.part"):  # fmt: skip
        tree.put(name)

    def names(*patterns: str) -> list[str]:
        return [one.origin.removeprefix(f"{tree.location}/") for one in tables(tree.location, *patterns)]

    assert names() == ["P5.csv", "a/P1.parquet", "b/c/P3.parquet"]
    assert names("*.parquet|*.csv") == names()
    assert names("*.parquet") == ["a/P1.parquet", "b/c/P3.parquet"]
    assert names("a/*.parquet") == ["a/P1.parquet"]
    assert names("**/c/P[1-3].parquet") == ["b/c/P3.parquet"]
    assert names("P[!1].parquet") == ["b/c/P3.parquet"]
    assert names("**/P?.*") == names()
    assert names("(a)") == names("") == []
    with pytest.raises(UnknownNameError, match="unknown units 'folder'"):
        tables(tree.location, units="folder")


def test_changes_and_waiting_of_profiles(tree):
    place = tree.put("P1.parquet", "xx")
    first = tables(tree.location)[0]
    assert first == tables(place)[0]
    assert (first.origin, first.key, first.files, first.bytes, first.waits_for) == (place, None, 1, 2, None)
    tree.put("P1.parquet", "xxx")
    grown = tables(tree.location)[0]
    tree.put("P1.parquet", "xxx", NOW - 1)
    touched = tables(tree.location)[0]
    assert (
        len({first.arrival, grown.arrival, touched.arrival, tables(tree.location, salt="s")[0].arrival}) == 4
    )
    assert touched.waits_for == f"{place} was changed 1 s ago, and must rest for 60 s"
    tree.put("P1.parquet", "")
    assert tables(tree.location)[0].waits_for == f"{place} is empty"


def test_folders_as_units(tree):
    for site in ("P1-A01-1", "P1-A01-2"):
        for name in ("Image.csv", "Cells.csv"):
            tree.put(f"B1/P1/analysis/{site}/{name}")
    tree.put("B1/P2/analysis/P2-A01-1/Image.csv")
    tree.put("B1/readme.csv")
    units = tables(tree.location, "*/*/analysis", units="folders")
    assert [(one.origin, one.files) for one in units] == [
        (f"{tree.location}/B1/P1/analysis", 4), (f"{tree.location}/B1/P2/analysis", 1),
    ]  # fmt: skip
    assert [one.origin for one in tables(tree.location, "*", units="folders")] == [f"{tree.location}/B1"]
    tree.put("B1/P1/analysis/P1-A01-3/Image.csv")
    again = tables(tree.location, "*/*/analysis", units="folders")
    assert [one.arrival == two.arrival for one, two in zip(units, again, strict=True)] == [False, True]


def test_a_list_of_profiles(tree, tmp_path):
    there = tree.put("files/P1.parquet")
    tree.put("files/site/Image.csv")
    rows = ["files/P1.parquet,s,b,P1", f"{there},,,", "files/site,s,b,P2", "files/none.csv,s,b,P3",
            "../../etc/passwd,s,b,P4", ",s,b,P5", "s3://bucket//x,s,b,P6"]  # fmt: skip
    listed = tree.put("list.csv", "\n".join(["path,source,batch,plate", *rows, ""]))
    first, second, folder, missing, *broken = tables(listed)
    assert (first.origin, first.key, first.files) == (there, ("s", "b", "P1"), 1)
    assert (second.origin, second.key) == (there, None)
    assert (folder.origin, folder.files) == (f"{tree.location}/files/site", 1)
    assert missing.waits_for == f"{tree.location}/files/none.csv is not there"
    assert [one.origin for one in broken] == [listed] * 3
    assert "'../../etc/passwd' is no name below this folder" in broken[0].fault
    assert f"{listed}, row 7: no path" in broken[1].fault
    assert "'s3://bucket//x'" in broken[2].fault
    table = tree.put("profiles.csv", "path,Metadata_Well,f1\na,A01,1\n")
    assert [one.origin for one in tables(table)] == [table]


# ------------------------------------------------------------------------------------------ real data, many files


def test_real_manifests_wait_for_their_images(data_dir):
    plates = list(arrivals.images(data_dir / "jump"))
    assert len(plates) == 10
    for one in plates:
        assert one.key[1] == "2022_11_28_Batch1"
        assert one.key[2].startswith("BR001356")
        count = int(one.waits_for.split()[0])
        assert one.waits_for.startswith(
            f"{count} of {count} image files are not there, the first /home/ubuntu/bucket"
        )
        assert count % 5 == 0


def test_real_screens_and_profiles(data_dir):
    bbbc021 = data_dir / "bbbc021"
    crops = list(arrivals.images(bbbc021 / "crops.csv", images=bbbc021 / "crops"))
    assert (len(crops), sum(one.files for one in crops)) == (55, 1000)
    fields = list(arrivals.images(bbbc021 / "BBBC021_v1_image.csv.gz", images=bbbc021 / "fields"))
    assert [(one.key[2], one.files) for one in fields if one.files] == [("Week2_24381", 8)]
    recipe = list(
        arrivals.profiles(data_dir / "jump_recipe" / "inputs" / "profiles", "**/profiles/*/*/*.parquet")
    )
    assert len(recipe) == 8
    rounds = [
        len(list(arrivals.profiles(data_dir / "cell_atlas" / f"round{n}", "*.parquet"))) for n in (1, 2)
    ]
    assert rounds == [6, 6]


@pytest.mark.slow
def test_many_files_are_discovered_in_seconds(tmp_path):
    """Ten plates; `WELLHOUSE_TEST_FILES=100000` for the long form, of which making the files takes most."""
    each = int(os.environ.get("WELLHOUSE_TEST_FILES", "20000")) // 10
    rows = []
    for plate in range(10):
        folder = tmp_path / f"P{plate}"
        folder.mkdir()
        for number in range(each):
            path = folder / f"{number}.tif"
            os.write(handle := os.open(path, os.O_CREAT | os.O_WRONLY), b"x")
            os.close(handle)
        rows += [(f"P{plate}", f"{'ABCDEFGHIJKLMNOP'[n // 24 % 16]}{n % 24 + 1:02d}", str(n), f"P{plate}/{n}.tif")
                 for n in range(each)]  # fmt: skip
    pl.DataFrame(rows, ["plate", "well", "field", "path_DNA"], orient="row").write_csv(
        tmp_path / "manifest.csv"
    )
    started = time.perf_counter()
    plates = list(arrivals.images(tmp_path / "manifest.csv", now=time.time() + 100))
    seconds = time.perf_counter() - started
    assert [(one.files, one.waits_for) for one in plates] == [(each, None)] * 10
    assert seconds < 15
    started = time.perf_counter()
    assert len(list(arrivals.profiles(tmp_path, "*.tif", now=time.time() + 100))) == 10 * each
    assert time.perf_counter() - started < 15
    shutil.rmtree(tmp_path / "P0")


def test_a_batch_that_only_the_layout_tells_is_the_plates(tree):
    tree.put("i.tif")
    manifest = tree.put("manifest.csv", "plate,well,field,path_DNA\nP1,A01,1,i.tif\n")
    layout = tree.put("layout.csv", "batch,plate,well,compound\nB7,P1,A01,x\n")
    assert [one.key for one in found(manifest, layout=layout)] == [("default", "B7", "P1")]
