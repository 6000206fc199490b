import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from facts import assert_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from teacher_cache.data.index import Shard, ShardIndex, load_index, save_index
from teacher_cache.data.indexing import expand_shards, index_shards
from teacher_cache.data.shards import Record, fetch, read_shard, scan_shard
from teacher_cache.errors import EXIT_USER_ERROR, ShardError, UnavailableError


def tar_bytes(samples: list[dict[str, object]]) -> bytes:
    file = io.BytesIO()
    with TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write(sample)
    return file.getvalue()


def sample(key: str, label: object = 0, **more: bytes) -> dict[str, object]:
    return {"__key__": key, "jpg": b"image of " + key.encode(), "cls": str(label).encode(), **more}


THREE = tar_bytes([sample("a", 0), sample("b", 1), sample("c", 2, json=b"{}")])


@pytest.fixture
def imagenet(photos: Path, shards: ShardIndex, tmp_path: Path) -> Path:
    """The photos in the layout of timm/imagenet-1k-wds: its names of shards, keys and fields."""
    folder = tmp_path / "imagenet"
    folder.mkdir()
    for number in range(3):
        samples = [
            {
                "__key__": f"n{record.label:08d}_{record.key}",
                "jpg": record.image,
                "cls": str(record.label).encode(),
                "json": json.dumps({"label": record.label, "width": 1}).encode(),
            }
            for record in read_shard(shards, number)
        ]
        (folder / f"imagenet1k-train-{number:04d}.tar").write_bytes(tar_bytes(samples))
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[..., BaseHTTPRequestHandler]], str]]:
    """Start HTTP servers on loopback; returns their addresses."""
    servers = []

    def start(handler: Callable[..., BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class HangsUp(BaseHTTPRequestHandler):
    """Announces a whole tar and closes the connection midway."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(THREE)))
        self.end_headers()
        self.wfile.write(THREE[:3000])

    def log_message(self, *_: object) -> None:
        pass


def test_indexing_shards_gives_the_index_that_pack_wrote(shards: ShardIndex) -> None:
    folder = Path(shards.folder)
    assert index_shards(expand_shards([shards.folder]), folder, shards.classes) == shards == load_index(folder)


def test_rows_come_in_the_order_of_the_tar() -> None:
    assert list(scan_shard("three.tar", THREE)) == [
        Record(row, key, b"image of " + key.encode(), row) for row, key in enumerate("abc")
    ]


TEXT = st.text(max_size=8)
COUNT = st.integers(0, 2**40)


@settings(max_examples=20, deadline=None)
@given(shards=st.lists(st.builds(Shard, TEXT, COUNT, COUNT, TEXT), max_size=4), classes=st.lists(TEXT, max_size=4))
def test_an_index_is_read_as_it_was_written(
    shards: list[Shard], classes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    index = ShardIndex(str(folder), tuple(shards), tuple(classes))
    save_index(index, folder / "some.json")
    assert load_index(folder / "some.json") == index


def test_shards_in_imagenets_layout_are_indexed(
    imagenet: Path, shards: ShardIndex, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    said = limbeck("index", imagenet)
    assert_facts(said, "40 images", "3 classes", "3 shards", f"{imagenet}/index.json")
    index = load_index(imagenet)
    assert index.classes == ("0", "1", "2") and index.shards[0].url == "imagenet1k-train-0000.tar"
    (tmp_path / "names.txt").write_text("\n".join(shards.classes) + "\n")
    (imagenet / "index.json").unlink()
    limbeck("index", imagenet / "imagenet1k-train-{0000..0001}.tar", "--classes", tmp_path / "names.txt")
    assert load_index(imagenet).classes == shards.classes and load_index(imagenet).rows == 32
    assert "--classes" not in limbeck("index", imagenet)
    assert load_index(imagenet).classes == shards.classes and load_index(imagenet).rows == 40


def test_shards_over_http_are_indexed_and_read(
    imagenet: Path, tmp_path: Path, serve: Callable[[object], str], limbeck: Callable[..., str]
) -> None:
    host = serve(partial(Files, directory=str(imagenet)))
    pattern = f"{host}/imagenet1k-train-{{0000..0002}}.tar"
    with pytest.raises(ShardError, match="--out"):
        limbeck("index", pattern)
    limbeck("index", pattern, "--out", tmp_path / "remote" / "index.json")
    fewer = ("index", pattern.replace("0002}", "0001}"), "--out", tmp_path / "remote" / "index.json")
    with pytest.raises(ShardError, match="imagenet1k-train-0002"):  # HTTP cannot show that it is gone
        limbeck(*fewer)
    remote = load_index(tmp_path / "remote")
    local = index_shards(expand_shards([str(imagenet)]), imagenet)
    assert remote.contents() == local.contents() and remote.url(2) == f"{host}/imagenet1k-train-0002.tar"
    assert [read_shard(remote, number) for number in range(3)] == [read_shard(local, n) for n in range(3)]
    save_index(local, imagenet / "index.json")
    assert read_shard(load_index(host), 1) == read_shard(
        local, 1
    )  # the index may be next to its shards on a server, too
    with pytest.raises(ShardError) as caught:
        limbeck("index", f"{host}/imagenet1k-train-0003.tar", "--out", tmp_path)
    assert_facts(caught.value, f"'{host}/imagenet1k-train-0003.tar'", 404)


def test_a_connection_cut_short_is_an_error(tmp_path: Path, serve: Callable[[object], str]) -> None:
    with pytest.raises(UnavailableError, match=r"/three\.tar'.*IncompleteRead\(3000 bytes read"):
        index_shards([f"{serve(HangsUp)}/three.tar"], tmp_path)


@given(cut=st.integers(0, len(THREE) - 1))
def test_a_shard_cut_anywhere_is_an_error_or_whole(cut: int) -> None:
    try:
        keys = [record.key for record in scan_shard("three.tar", THREE[:cut])]
    except ShardError as error:
        assert_facts(error, "'three.tar'")
        assert "\n" not in str(error)
    else:
        assert keys == ["a", "b", "c"]  # only padding is gone


@given(at=st.integers(0, len(THREE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_never_drops_a_row(at: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = bytearray(THREE)
    data[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.tar"
    path.write_bytes(data)
    try:
        index = index_shards([str(path)], path.parent)
    except ShardError as error:
        assert "\n" not in str(error)
    else:
        assert index.rows == 3


def test_two_tars_in_one_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(THREE + tar_bytes([sample(f"more{number}") for number in range(20)]))
    assert index_shards([str(tmp_path / "a.tar")], tmp_path).rows == 23


@pytest.mark.parametrize(
    ("samples", "facts"),
    [
        ([sample("a"), sample("b", 1), sample("a", 1)], ["key 'a'", "/one.tar'"]),
        ([{"__key__": "a", "jpg": b"x"}], ["'a'", ".cls", "/one.tar'"]),
        ([sample("a", "tench")], ["'a'", "'tench'", "/one.tar'"]),
        ([{"__key__": "a", "cls": b"0"}], ["'a'", ".jpg", ".cls", "--skip-broken", "/one.tar'"]),
        ([sample("a", 1), sample("b", 1)], ["class 1"]),
        ([sample("a", -1), sample("b", 1)], ["'a'", "-1", "/one.tar'"]),
        ([], ["/one.tar"]),
    ],
)
def test_shards_that_cannot_be_indexed_are_one_line_error(
    samples: list[dict[str, object]], facts: list[str], tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    (tmp_path / "one.tar").write_bytes(tar_bytes(samples))
    with pytest.raises(ShardError) as caught:
        limbeck("index", tmp_path)
    assert_facts(caught.value, *facts)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "index.json").exists()


def test_duplicate_file_in_a_sample_is_an_error() -> None:
    with pytest.raises(ShardError, match=r"'two\.tar'.*a\.cls"):
        list(scan_shard("two.tar", THREE[:1024] + THREE))


def test_a_key_in_two_shards_is_an_error(tmp_path: Path, limbeck: Callable[..., str]) -> None:
    (tmp_path / "x.tar").write_bytes(THREE)
    (tmp_path / "y.tar").write_bytes(tar_bytes([sample("a", 2)]))
    with pytest.raises(ShardError) as caught:
        limbeck("index", tmp_path)
    assert_facts(caught.value, "key 'a'", f"'{tmp_path}/x.tar'", f"'{tmp_path}/y.tar'")


def test_missing_or_changed_shard_is_not_read(shards: ShardIndex, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shards.folder, folder)
    index = load_index(folder)
    path = folder / "000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(ShardError) as shorter:
        read_shard(index, 1)
    assert_facts(shorter.value, f"'{path}'", len(whole) - 512, len(whole))
    path.write_bytes(tar_bytes([sample("a")]).ljust(len(whole), b"\0"))
    with pytest.raises(ShardError, match=re.escape(f"'{path}'")):
        read_shard(index, 1)
    with pytest.raises(ShardError) as fewer:
        read_shard(index, 1, verify=False)
    assert_facts(fewer.value, f"'{path}'", "1 sample", 16)
    path.unlink()
    with pytest.raises(ShardError, match=re.escape(f"'{path}'")):
        read_shard(index, 1)
    with pytest.raises(ShardError, match=re.escape(f"'{path}'")):
        index_shards([str(path)], folder)


def test_folder_in_place_of_a_shard_exits_with_2(tmp_path: Path) -> None:
    for place in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(ShardError, match=re.escape(f"'{place}'")) as caught:
            fetch(place)
        assert caught.value.status == EXIT_USER_ERROR


def test_links_are_indexed_by_their_own_names(tmp_path: Path, limbeck: Callable[..., str]) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "5f3a").write_bytes(THREE)
    (tmp_path / "snapshot" / "train.tar").symlink_to("../blobs/5f3a")  # the layout of a model hub's cache
    limbeck("index", tmp_path / "snapshot")
    assert [shard.url for shard in load_index(tmp_path / "snapshot").shards] == ["train.tar"]


def test_shards_elsewhere_are_indexed_by_their_whole_path(
    shards: ShardIndex, tmp_path: Path, limbeck: Callable[..., str]
) -> None:
    limbeck("index", shards.folder, "--out", tmp_path / "here")
    index = load_index(tmp_path / "here")
    assert index.url(0) == f"{shards.folder}/000000.tar" and len(read_shard(index, 0)) == 16


@pytest.mark.parametrize("pattern", ["s/{000..", "${NOWHERE}/a.tar"])
def test_invalid_pattern_is_reported(pattern: str) -> None:
    with pytest.raises(ShardError, match=re.escape(f"'{pattern}'")):
        expand_shards([pattern])


def test_folder_without_shards_is_reported(shards: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=re.escape(f"'{tmp_path}'")):
        expand_shards([shards.folder, str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", ["line 1"]),
        ("[]", []),
        ('{"__kind__": "other"}', ["__kind__", "'other'", "'wids-shard-index-v1'"]),
        ('{"__kind__": "wids-shard-index-v1", "classes": []}', ["'shardlist'"]),
    ],
)
def test_invalid_index_is_one_line_error(text: str, facts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ShardError) as missing:
        load_index(tmp_path)
    assert_facts(missing.value, f"'{tmp_path}/index.json'", "limbeck index", "limbeck pack")
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ShardError) as caught:
        load_index(tmp_path)
    assert_facts(caught.value, f"'{tmp_path}/index.json'", "limbeck index", *facts)
    assert "\n" not in str(caught.value) and "limbeck pack" not in str(caught.value)


def test_changed_byte_in_a_shard_is_detected(shards: ShardIndex, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards.folder, tmp_path / "copy"))
    path = folder / "000000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b".cls") // 512 * 512 + 512  # the class number, which only the checksum covers
    data[place] = ord("1") if data[place] != ord("1") else ord("2")
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"/000000\.tar'"):
        read_shard(load_index(folder), 0)
