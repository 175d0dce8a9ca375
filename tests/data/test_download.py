"""Downloading: from a server of this process, never from the network."""

import contextlib
import gzip
import hashlib
import http.server
import socket
import threading
import types

import numpy as np
import pytest

from ssdd_jax.data import open_source
from ssdd_jax.data.download import download
from ssdd_jax.data.source import Archive
from ssdd_jax.data.sources import KINDS, NAMED, archives
from ssdd_jax.data.sources.idx import FILES
from ssdd_jax.errors import DataError


class Server:
    """Serves contents by path and counts the requests; a content may be a status code, and be said to be longer than it is."""

    def __init__(self):
        self.contents, self.requests, self.too_long, self.type = {}, [], 0, "application/octet-stream"
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                content = outer.contents.get(self.path, 404)
                if isinstance(content, int):
                    self.send_error(content)
                    return
                self.send_response(200)
                self.send_header("Content-Type", outer.type)
                self.send_header("Content-Length", str(len(content) + outer.too_long))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def archive(self, file, content, md5=None):
        self.contents[f"/{file}"] = content
        return Archive(file, f"http://127.0.0.1:{self.server.server_port}/{file}", hashlib.md5(content).hexdigest() if md5 is None else md5)

    @contextlib.contextmanager
    def running(self):
        self.thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


@pytest.fixture
def server(monkeypatch):
    # Nothing of the environment's proxies: they are for the network.
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server().running() as running:
        yield running


@pytest.fixture
def publish(monkeypatch):
    """Let a named dataset have other archives."""
    published = {}

    def set_archives(name, *files):
        published[name] = files

    monkeypatch.setattr("ssdd_jax.data.download.archives", lambda name: published.get(name, ()))
    return set_archives


def refused(match, source, data_dir):
    with pytest.raises(DataError, match=match) as caught:
        download(source, data_dir)
    assert "\n" not in str(caught.value)
    assert not list(data_dir.rglob("*.part")) if data_dir.exists() else True
    return str(caught.value)


def idx_files(seed=0):
    random = np.random.RandomState(seed)
    files = {}
    for name, count in zip(FILES, (20, 20, 8, 8), strict=True):
        shape = (count, 5, 5) if "images" in name else (count,)
        pixels = random.randint(0, 256 if "images" in name else 10, shape).astype(np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
        files[f"{name}.gz"] = gzip.compress(header + pixels.tobytes())
    return files


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_downloaded_files_are_found_by_the_reader(tmp_path, server, publish, name, capsys):
    publish(name, *(server.archive(file, content) for file, content in idx_files().items()))
    download(name, tmp_path)
    source = open_source(name, tmp_path)
    assert {file.parent for file in source.files} == {tmp_path / name}
    assert [len(split.images) for split in source.splits.values()] == [20, 8]
    assert capsys.readouterr().out.count("as published") == 4
    # What is there and right is not fetched again.
    assert len(server.requests) == 4
    download(name, tmp_path)
    assert len(server.requests) == 4
    assert capsys.readouterr().out.count("kept") == 4


@pytest.mark.parametrize(("name", "folder"), [("dogs", "stanford_dogs"), ("cub200", ""), ("cifar10", "")])
def test_other_files_are_put_where_they_are_looked_for(tmp_path, server, publish, name, folder):
    files = [server.archive(archive.file, archive.file.encode() * 1000) for archive in archives(name)]
    publish(name, *files)
    download(name, tmp_path)
    for file in files:
        assert (tmp_path / folder / file.file).read_bytes() == file.file.encode() * 1000
    # They are no archives: the reader has found them and says so.
    with pytest.raises(DataError, match="cannot read") as caught:
        open_source(name, tmp_path)
    assert str(tmp_path / folder / files[0].file) in str(caught.value) or str(tmp_path / folder / files[-1].file) in str(caught.value)


def test_every_named_dataset_has_an_address_or_comes_with_a_package():
    for name in NAMED:
        assert all(archive.url for archive in archives(name)), name
        assert archives(name) or name == "digits"


def test_the_folder_is_made_and_named_by_the_environment(tmp_path, server, publish, monkeypatch):
    monkeypatch.setenv("SSDD_JAX_DATA", str(tmp_path / "new" / "data"))
    publish("cifar10", server.archive("cifar-10-binary.tar.gz", b"x" * 3_000_000))
    download("cifar10")
    assert (tmp_path / "new" / "data" / "cifar-10-binary.tar.gz").stat().st_size == 3_000_000


def test_another_checksum_is_refused_and_nothing_kept(tmp_path, server, publish):
    archive = server.archive("a.tar", b"other", md5="0" * 32)
    publish("cifar10", archive)
    line = refused(
        r"a.tar gave 5 bytes with md5 795f3202b17cb6bc3d4b771d8c6c9eaf, expected 0{32}; try again later, or", "cifar10", tmp_path
    )
    assert archive.url in line
    assert str(tmp_path) in line
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tmp_path, server, publish):
    publish("cifar10", server.archive("a.tar", b"right"))
    (tmp_path / "a.tar").write_bytes(b"mine")
    refused(r"a.tar' exists with md5 .*, expected .*, and is not overwritten; move it away", "cifar10", tmp_path)
    assert (tmp_path / "a.tar").read_bytes() == b"mine"
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar").mkdir()
    refused("a.tar' is not a file", "cifar10", tmp_path)
    assert server.requests == []


def test_a_file_without_a_published_checksum(tmp_path, server, publish, capsys):
    publish("imagenet64", server.archive("a.zip", b"zip", md5=""))
    server.type = "text/html; charset=utf-8"
    refused(
        "a.zip to '.*': the address returned a web page, perhaps because it requires an account; try again later, or download it manually",
        "imagenet64",
        tmp_path,
    )
    server.type = "application/zip"
    download("imagenet64", tmp_path)
    assert "a.zip: 3 bytes, md5 adcdbd79a8d84175c229b192aadc02f2, none is published" in capsys.readouterr().out.replace("\n", "")
    (tmp_path / "a.zip").write_bytes(b"another")
    download("imagenet64", tmp_path)
    assert "kept, no md5 is published" in capsys.readouterr().out
    assert (tmp_path / "a.zip").read_bytes() == b"another"
    publish("imagenet64", Archive("b.zip"))
    refused("b.zip cannot be fetched without an account; download it manually", "imagenet64", tmp_path)


def test_failures_of_the_network_are_one_line(tmp_path, server, publish):
    missing, cut = server.archive("missing.tar", b""), server.archive("cut.tar", b"x" * 100)
    server.contents["/missing.tar"] = 404
    publish("cifar10", missing)
    refused(
        rf"cannot download {missing.url} to '.*missing.tar': 404 Not Found; try again later, or download it manually", "cifar10", tmp_path
    )
    server.too_long = 50
    publish("cifar10", cut)
    refused("cut.tar': the connection ended after 100 of 150 bytes", "cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    publish("cifar10", Archive("a.tar", f"http://127.0.0.1:{port}/a.tar", "0" * 32))
    refused(f"cannot download http://127.0.0.1:{port}/a.tar to .*Connection refused", "cifar10", tmp_path)
    publish("cifar10", Archive("a.tar", (tmp_path / "gone.tar").as_uri(), "0" * 32))
    refused("cannot download file://.*gone.tar to .*No such file", "cifar10", tmp_path)


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path, server, publish, monkeypatch):
    publish("cifar10", server.archive("a.tar", b"x" * 1000))
    monkeypatch.setattr("ssdd_jax.data.download.shutil.disk_usage", lambda folder: types.SimpleNamespace(free=999))
    refused("0.00 GB are needed and 0.00 GB are free", "cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_later_file_goes_on_where_an_earlier_run_stopped(tmp_path, server, publish):
    first, second = server.archive("a.tar", b"first"), server.archive("b.tar", b"second")
    publish("cifar10", first, second)
    server.contents["/b.tar"] = 503
    refused("b.tar': 503", "cifar10", tmp_path)
    server.contents["/b.tar"] = b"second"
    download("cifar10", tmp_path)
    assert server.requests == ["/a.tar", "/b.tar", "/b.tar"]
    assert (tmp_path / "b.tar").read_bytes() == b"second"


def test_nothing_to_download(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x_train=np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1), y_train=np.arange(4) % 2)
    for source in ("digits", f"arrays:{tmp_path / 'a.npz'}"):
        download(source, tmp_path)
        assert "nothing to download" in capsys.readouterr().out
    refused("unknown data source 'cifar11', .*did you mean 'cifar10", "cifar11", tmp_path)
    refused("no file|does not exist|no such", f"folder:{tmp_path / 'none'}", tmp_path)


@pytest.mark.parametrize("kind", ["tfds", "hf"])
def test_catalogues_download_by_their_readers(tmp_path, monkeypatch, kind, capsys):
    called = []
    monkeypatch.setattr("ssdd_jax.data.download.open_source", lambda *args, **kwargs: called.append((args, kwargs)))
    download(f"{kind}:cifar10", tmp_path)
    assert called == [((f"{kind}:cifar10", tmp_path), {"download": True})]
    assert f"{kind}:cifar10" in capsys.readouterr().out
    assert kind in KINDS
