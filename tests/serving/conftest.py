"""A server in a process of its own."""

import socket
import subprocess
import sys
import time
import urllib.request
from urllib.error import URLError

import pytest


@pytest.fixture
def start_server(tmp_path):
    """Runs `python -m WORDS --host ... --port ...` on the loopback device until it answers; gives its address."""
    started = []

    def start(*words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", *map(str, words), "--host", "127.0.0.1", "--port", str(port)]
        log = tmp_path / f"server{len(started)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        for _ in range(180):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{address}/health")
                return address
            except URLError:
                time.sleep(1)
        raise TimeoutError(log.read_text()[-3000:])

    yield start
    for process in started:
        process.terminate()
        process.wait(60)
