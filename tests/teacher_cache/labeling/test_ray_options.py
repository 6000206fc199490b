"""Tests that wrong Ray addresses and options are reported in one line."""

import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from facts import assert_facts

from teacher_cache.distributed import ray_cluster as cluster
from teacher_cache.distributed.ray_cluster import parse_engine, ray_session
from teacher_cache.errors import ClusterError


def test_no_ray_at_the_address_is_one_line_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ClusterError) as caught,
        ray_session(address),
    ):
        pass
    assert_facts(caught.value, f"'{address}'", os.strerror(errno.ECONNREFUSED), "ray start --head")


def test_a_ray_head_is_recognized(ray_cluster: Any) -> None:
    cluster._check_address(ray_cluster.address)
    with pytest.raises(ClusterError, match=r"'127\.0\.0\.1:65536'"):
        cluster._check_address("127.0.0.1:65536")


@pytest.mark.parametrize("name", ["ray", "grpc"])
def test_without_ray_its_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(ClusterError, match=r"pip install 'limbeck\[ray\]'"),
        ray_session(None),
    ):
        pass


@pytest.mark.parametrize("words", ["slurm", "ray=", "Ray", "ray:127.0.0.1"])
def test_unknown_engine_is_refused(words: str) -> None:
    assert (parse_engine("ray"), parse_engine("ray=head:6379")) == (None, "head:6379")
    with pytest.raises(ClusterError) as caught:
        parse_engine(words)
    assert_facts(caught.value, f"'{words}'", "--on ray", "--on ray=HOST:PORT")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("--on", "ray", "--rank", "0", "--world", "2"), ["--on ray", "--rank", "--world"]),
        (("--actors", "2"), ["--actors", "--on ray"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    limbeck: Callable[..., str], recipe_text: Callable[..., str], words: Any, facts: Any, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(recipe_text("cache", shards="here", teacher="there", cache="cache.zarr"))
    with pytest.raises(ClusterError) as caught:
        limbeck("cache", "build", tmp_path / "r.toml", *words)
    assert_facts(caught.value, *facts)
