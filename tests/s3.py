"""A server that speaks S3, for tests: what is put there is in its memory, and gone with it."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import s3fs

from cluster.session import free_port
from tests.ports import port_shift

_BUCKET = "versions"
# Moto looks whether a file is there and writes it in two steps, and in several threads; a store does both in one.
_SERVER = """
import threading

from moto.s3.responses import S3Response
from moto.server import main

alone, put = threading.Lock(), S3Response.put_object


def put_alone(self):
    with alone:
        return put(self)


S3Response.put_object = put_alone
main()
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start one for the length of the block, and let this process and those that it starts use it; gives the URI of a bucket."""
    url = f"http://127.0.0.1:{free_port(19_200 + port_shift())}"
    command = [sys.executable, "-c", _SERVER, "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    account = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as here:
        for name, value in (account | {"AWS_ENDPOINT_URL": url}).items():
            here.setenv(name, value)
        # Those of a server before know its port.
        s3fs.S3FileSystem.clear_instance_cache()
        process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(process, f"{url}/{_BUCKET}")
            yield f"s3://{_BUCKET}"
        finally:
            process.terminate()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", bucket: str) -> None:
    """Make a bucket as soon as it listens; whoever is asked without a signature says nothing about it."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.put(bucket, trust_env=False).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)  # it tells nobody that it listens
        else:
            return
    raise RuntimeError(f"no S3 at {bucket}: exit code {process.poll()}")


def new_folder(bucket: str) -> str:
    """Return the URI of a folder that nobody else has."""
    return f"{bucket}/{uuid.uuid4().hex}"
