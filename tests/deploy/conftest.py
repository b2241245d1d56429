"""What the tests share."""

import socket
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from containers import Store  # noqa: E402
from machine import Server  # noqa: E402


@pytest.fixture(scope="session")
def store():
    """A store with the image."""
    with tempfile.TemporaryDirectory(prefix="events-backfill-deploy.") as directory:
        made = Store(directory)
        made.make_bases()
        made.build()
        yield made


@pytest.fixture
def start_server(tmp_path):
    """Starts a server with two months."""
    servers = []

    def start():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        directory = tmp_path / "server"
        directory.mkdir()
        servers.append(Server(directory, port))
        servers[0].load_months()
        return servers[0]

    yield start
    for server in servers:
        server.stop()
