from __future__ import annotations

import socket
import time

import pytest

from lotlip.errors import ClusterError
from lotlip_platform.cluster import connected
from lotlip_platform.ray_address import check_answers


def test_a_port_at_which_nobody_listens_is_told_at_once(monkeypatch, dead_url):
    monkeypatch.setenv("RAY_ADDRESS", dead_url.removeprefix("http://"))
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray at 127.* refused; start it"), connected():
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["somewhere", "ray://host", "host:port"])
def test_an_address_without_host_or_port_is_malformed(address):
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address} is malformed"):
        check_answers(address)


def test_an_open_port_and_the_names_without_one_pass():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_answers(f"127.0.0.1:{listener.getsockname()[1]}")
    for address in ("", "auto", "local"):
        check_answers(address)
