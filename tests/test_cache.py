"""Folders of arrays: hits, misses, damage, killed and competing writers."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrec.data import cache
from jaxrec.types import UserError

ARRAYS = dict(
    observation=np.arange(12, dtype=np.float32).reshape(6, 2),
    flag=np.array([True, False]),
    empty=np.zeros((0, 3)),
    scalar=np.float32(3),
    **{"extras/qpos": np.arange(3)},
)


def never():
    raise AssertionError("built although it is cached")


def get(root, build=never, **settings):
    return cache.cached(root, "gym/Hopper-v4/medium", settings, build)


def only_folder(root):
    (folder,) = root.iterdir()
    return folder


def test_second_call_reads_what_the_first_built(tmp_path):
    arrays, manifest = get(tmp_path, lambda: (ARRAYS, dict(mean=2.5)), seed=0, a=(1, 2))
    again, found = get(tmp_path, seed=0, a=(1, 2))
    assert set(arrays) == set(again) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype and again[name].shape == array.shape
        assert isinstance(again[name], np.memmap) and not again[name].flags.writeable
    assert manifest == found and found["facts"] == {"mean": 2.5}
    assert found["settings"] == {"seed": 0, "a": [1, 2]}
    assert len(found["arrays"]["extras/qpos"]["sha256"]) == 64
    assert only_folder(tmp_path).name.startswith("gym-Hopper-v4-medium-")


def test_other_settings_are_another_folder(tmp_path):
    for seed in (0, 1):
        get(tmp_path, lambda: (dict(x=np.array([seed])), {}), seed=seed)  # noqa: B023
    assert [int(get(tmp_path, seed=seed)[0]["x"][0]) for seed in (0, 1)] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-4], "bytes where"),
        (lambda data: data + b"0", "bytes where"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
    ],
)
def test_damage_is_named_with_the_folder_to_delete(tmp_path, damage, message):
    get(tmp_path, lambda: (ARRAYS, {}))
    file = only_folder(tmp_path) / "observation.npy"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        get(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert f"delete the folder {file.parent}" in str(caught.value)


def test_large_folders_are_checked_by_size_only(tmp_path, monkeypatch):
    get(tmp_path, lambda: (ARRAYS, {}))
    file = only_folder(tmp_path) / "observation.npy"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"\x01")
    monkeypatch.setattr(cache, "CHECKSUM_LIMIT", 10)
    assert get(tmp_path)[0]["observation"][0, 1] == 1
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match="is damaged"):
        get(tmp_path)


def test_missing_files_and_broken_manifests(tmp_path):
    get(tmp_path, lambda: (ARRAYS, {}))
    folder = only_folder(tmp_path)
    (folder / "flag.npy").unlink()
    with pytest.raises(UserError, match="flag.npy is damaged"):
        get(tmp_path)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    for broken in ("{", "[]", "{}", json.dumps(json.loads(text) | {"arrays": 3})):
        manifest.write_text(broken)
        with pytest.raises(UserError, match="delete the folder"):
            get(tmp_path)
    manifest.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        get(tmp_path)
    manifest.unlink()
    with pytest.raises(UserError, match="manifest.json"):
        get(tmp_path)


def test_a_header_that_disagrees_is_damage(tmp_path):
    cache.write_arrays(tmp_path / "a", dict(x=np.zeros((2, 3), np.float32)))
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("float32", "float64"))
    with pytest.raises(UserError, match="shape or dtype"):
        cache.read_arrays(tmp_path / "a")


def test_pickled_arrays_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        cache.write_arrays(tmp_path / "a", dict(x=np.array([{}], object)))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_build_leaves_nothing(tmp_path):
    def build():
        raise RuntimeError("simulator broke")

    with pytest.raises(RuntimeError, match="simulator broke"):
        get(tmp_path, build)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_user_error_that_leaves_nothing(tmp_path, monkeypatch):
    save = np.save

    def full(file, array, **options):
        if "flag" in str(file):
            raise OSError(28, "No space left on device")
        save(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        get(tmp_path, lambda: (ARRAYS, {}))
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk(tmp_path):
    """File size is limited by the system, in another process."""
    script = f"""
import resource, signal, numpy as np
from jaxrec.data import cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    cache.write_arrays("{tmp_path}/a", dict(x=np.zeros(10_000)))
except cache.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout and "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*another directory"):
        get(tmp_path / "file" / "below", lambda: (ARRAYS, {}))
    with pytest.raises(UserError, match="config.data_dir"):
        cache.write_arrays("/proc/nowhere", ARRAYS)


def test_a_reader_sees_nothing_of_a_killed_writer(tmp_path):
    """The writer dies between two arrays; the next call builds, and later cleans."""
    script = f"""
import os, numpy as np
from jaxrec.data import cache
save = np.save
def die(file, array, **options):
    save(file, array, **options)
    if "b.npy" in str(file):
        os._exit(9)
np.save = die
arrays = dict(a=np.ones(3), b=np.ones(3))
cache.cached("{tmp_path}", "data", {{}}, lambda: (arrays, {{}}))
"""
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == 9
    left = only_folder(tmp_path)
    assert left.name.startswith(".data-") and left.name.endswith(".tmp")
    built = []
    for _ in range(2):
        arrays, _ = cache.cached(
            tmp_path, "data", {}, lambda: built.append(1) or (dict(a=np.zeros(2)), {})
        )
    assert arrays["a"].tolist() == [0, 0] and built == [1]
    assert left.exists()  # its writer might still live
    old = time.time() - 2 * cache.STALE_SECONDS
    os.utime(left, (old, old))
    final = next(p for p in tmp_path.iterdir() if not p.name.startswith("."))
    cache.write_arrays(final, arrays)
    assert not left.exists()


def test_processes_that_build_at_once_agree(tmp_path):
    """Each waits for the other inside of `build`, so both write."""
    script = f"""
import sys, time, pathlib, numpy as np
from jaxrec.data import cache
me, root = sys.argv[1], pathlib.Path("{tmp_path}")
def build():
    (root / ("ready" + me)).touch()
    while len(list(root.glob("ready*"))) < 3:
        time.sleep(0.01)
    return dict(x=np.full(100_000, int(me))), dict(me=me)
arrays, manifest = cache.cached(root / "cache", "data", {{}}, build)
assert (arrays["x"] == int(manifest["facts"]["me"])).all()
print(manifest["facts"]["me"])
"""
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(i)], stdout=subprocess.PIPE)
        for i in range(3)
    ]
    said = [process.communicate(timeout=60)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(said)) == 1 and said[0].strip() in "012"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_artefacts_are_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "artefact"
    cache.write_arrays(path, dict(x=np.ones(3), old=np.ones(1)), dict(round=1))
    cache.write_arrays(path, dict(x=np.zeros(2)), dict(round=2))
    arrays, manifest = cache.read_arrays(path)
    assert set(arrays) == {"x"} and arrays["x"].shape == (2,)
    assert manifest["facts"] == {"round": 2}
    assert [p.name for p in path.parent.iterdir()] == ["artefact"]


def test_names_that_would_share_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share the file"):
        cache.write_arrays(tmp_path / "a", {"x/y": np.ones(1), "x-y": np.ones(1)})


def test_directory_prefers_the_argument(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAXREC_DATA", raising=False)
    assert cache.directory() == tmp_path / ".cache" / "jaxrec"
    monkeypatch.setenv("JAXREC_DATA", "/data")
    assert str(cache.directory("")) == "/data"
    assert cache.directory("~/mine") == tmp_path / "mine"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_built(tmp_path):
    (tmp_path / "file").write_text("")

    def build():
        raise AssertionError("hours of work for nothing")

    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write .*config.data_dir"):
            cache.cached(root, "name", {}, build)
    cache.cached(tmp_path / "new", "name", {}, lambda: (dict(a=np.zeros(2)), {}))
    assert len(list((tmp_path / "new").iterdir())) == 1
