"""A server of our own, with good and bad mirrors of small image sets."""

import gzip
import hashlib
import socket
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest
import torch

from fabook.data import Remote, images
from image_files import IDX_FILES, cifar_archive, prepared_part, unpacked


@pytest.fixture(autouse=True)
def no_global_randomness():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees FABOOK_DATA, a proxy or the user's cache unless it asks."""
    monkeypatch.delenv("FABOOK_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    return tmp_path / "cache"


class Mirror(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.together:
            self.server.together.wait()
        _, kind, path = self.path.split("/", 2)
        body = self.server.files[path]
        if kind == "error":
            self.send_error(500)
            return
        sent = {
            "good": body,
            "corrupted": body[:-20] + bytes(20),
            "recompressed": gzip.compress(gzip.decompress(body), 1),
            "truncated": body[: len(body) // 2],
            "empty": b"",
        }[kind]
        self.send_response(200)
        whole = sent if kind in ("empty", "recompressed") else body
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as httpd:
        httpd.daemon_threads, httpd.asked, httpd.together = False, [], None
        httpd.files = IDX_FILES | {f"cifar-{n}.tar.gz": cifar_archive(n) for n in (10, 100)}
        httpd.files["cifar10-part.npz"] = prepared_part()
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def remotes(server, names, mirrors):
    bases = {"dead": f"http://127.0.0.1:{closed_port()}"}
    good = f"http://127.0.0.1:{server.server_port}"
    return tuple(
        Remote(
            name,
            hashlib.sha256(server.files[name]).hexdigest(),
            len(server.files[name]),
            tuple(f"{bases.get(mirror, good)}/{mirror}/{name}" for mirror in mirrors),
            hashlib.sha256(unpacked(name)).hexdigest() if name in IDX_FILES else "",
        )
        for name in names
    )


@pytest.fixture
def small(server, monkeypatch):
    """Register small image sets whose files lie on the given mirrors."""

    def register(*mirrors):
        find = partial(remotes, server, mirrors=mirrors)
        real = dict(images.REGISTRY)
        sets = {
            "digits": real["digits"],
            "mnist": replace(real["mnist"], sizes=(30, 12), files=find(list(IDX_FILES))),
            "cifar10": replace(
                real["cifar10"],
                sizes=(50, 10),
                files=find(["cifar-10.tar.gz"]),
                prepared="cifar10-part.npz",
            ),
            "cifar100": replace(
                real["cifar100"], sizes=(50, 10), files=find(["cifar-100.tar.gz"]), prepared=""
            ),
        }
        monkeypatch.setattr(images, "REGISTRY", sets)
        return sets

    return register
