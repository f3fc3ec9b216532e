"""Over which network a lane's workers talk to one another."""

import os

import psutil
import pytest
import ray

from search.lane_network import choose_network

NAME = "GLOO_SOCKET_IFNAME"


@pytest.fixture
def loopback(monkeypatch):
    """The interface of 127.0.0.1, by which Ray reaches this node."""
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    found = [name for name, every in psutil.net_if_addrs().items() if "127.0.0.1" in (one.address for one in every)]
    return found[0]


def test_it_is_the_one_by_which_ray_reaches_the_node(loopback):
    choose_network()
    assert os.environ[NAME] == loopback


def test_the_users_own_choice_stays(loopback, monkeypatch):
    monkeypatch.setenv(NAME, "eth7")
    choose_network()
    assert os.environ[NAME] == "eth7"


def test_an_address_that_no_interface_has_leaves_the_choice_to_gloo(loopback, monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.9")
    choose_network()
    assert NAME not in os.environ
