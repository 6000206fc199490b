import asyncio
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from facts import assert_facts

from server.ipc.spawn import HostSpec
from server.serve import listen
from server.serving.supervisor import Supervisor
from server.settings import WORKER_BYTES, Settings, default_workers, read_settings
from teacher_cache.distributed.machine import memory_bytes
from teacher_cache.errors import LimbeckError, RunError

Command = Callable[..., subprocess.Popen[str]]
WAIT_SECONDS = 60


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for the process; return its exit status and the lines of standard error."""
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, errors.splitlines()


def test_port_in_use_is_a_one_line_error_and_status_2(command: Command, bundle_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = ended(command("serve", bundle_folder, "--port", port, "--device", "cpu"))
    assert (status, len(lines)) == (2, 1)
    assert_facts(lines[0], "limbeck: ", port, "127.0.0.1", "--port")


def test_bad_bundle_is_a_one_line_error_before_the_port_is_bound(
    command: Command, bundle_folder: Path, tmp_path: Path
) -> None:
    damaged, unread, cut = tmp_path / "damaged", tmp_path / "unread", tmp_path / "cut"
    for copy in (damaged, unread, cut):
        shutil.copytree(bundle_folder, copy)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:-1] + b"\x7f")
    (cut / "model.safetensors").write_bytes(weights[:5000])
    (unread / "card.json").write_text("{")
    wrong = {unread: "card.json", cut: "model.safetensors", tmp_path / "missing": ""}
    with Supervisor() as supervisor:
        for folder, file in wrong.items():
            spec = HostSpec(str(folder), "", "", "cpu", "torch", 0, 1000)
            with pytest.raises(RunError) as raised:
                asyncio.run(supervisor.open(spec))
            assert_facts(raised.value, folder / file)
            assert "\n" not in str(raised.value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, lines = ended(command("serve", bundle_folder, damaged, "--port", taken.getsockname()[1]))
    assert (status, len(lines)) == (2, 1)
    assert_facts(lines[0], damaged / "model.safetensors", "sha256")


def test_default_limits_are_10_s_for_a_header_and_30_s_for_a_body() -> None:
    for settings in (Settings(), read_settings([])):
        assert (settings.header_seconds, settings.body_seconds) == (10, 30)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ("deadline=0", "0.001"),
        ("deadline=nan", "86400"),
        ("max_waiting=0", "1"),
        ("max_pixels=many", "integer"),
        ("max_body=1", "max_body_bytes"),
        ("rate", "rate"),
    ],
)
def test_invalid_limit_is_refused(change: str, fact: str) -> None:
    with pytest.raises(LimbeckError) as raised:
        read_settings([change])
    assert_facts(raised.value, f"--set {change}", fact)


@pytest.mark.parametrize(
    ("device", "cores", "memory", "expected"),
    [
        ("cpu", 8, 2**40, 8),
        ("cpu", 8, 3 * WORKER_BYTES, 3),
        ("cpu", 1, 0, 1),
        ("cuda", 64, 2**40, 1),
        ("mps", 8, 2**40, 1),
    ],
)
def test_by_default_there_is_a_worker_per_core_or_one_on_a_gpu(
    device: str, cores: int, memory: int, expected: int
) -> None:
    assert default_workers(device, cores, memory) == expected


def test_bodies_of_more_bytes_than_the_memory_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_settings([]).max_held_bytes <= memory_bytes() // 4 and not capsys.readouterr().err
    too_many = 2 * memory_bytes()
    assert read_settings([f"max_held_bytes={too_many}"]).max_held_bytes == too_many
    printed = capsys.readouterr().err
    assert_facts(printed, f"max_held_bytes = {too_many:,}", f"{memory_bytes():,}")
    assert printed.count("\n") == 1


def test_listens_on_local_addresses_only() -> None:
    with listen(Settings(host="localhost", port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with pytest.raises(LimbeckError) as raised:
            listen(Settings(host="0.0.0.0", port=port))
        assert_facts(raised.value, port, "0.0.0.0", "--port")
    for host in ("192.0.2.1", "2001:db8::1", "no such host"):
        with pytest.raises(LimbeckError) as raised:
            listen(Settings(host=host))
        assert_facts(raised.value, host, "--host")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_listens_on_ipv6() -> None:
    with listen(Settings(host="::1", port=0)) as listener:
        assert listener.getsockname()[0] == "::1"


def test_sigterm_answers_requests_in_flight_and_exits_with_0(
    start: Callable[..., Any], bundle_folder: Path, pictures: dict[str, bytes]
) -> None:
    running = start(bundle_folder)
    url, image = httpx.URL(running.url), pictures["jpeg"]
    expected = httpx.post(url.join("/v1/classify"), content=image).json()["images"][0]["top_k"]
    family = [running.process.pid, *(child.pid for child in psutil.Process(running.process.pid).children(True))]
    with socket.create_connection((url.host, url.port or 0), timeout=WAIT_SECONDS) as slow:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n"
        slow.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")  # the server waits for the body
        slow.sendall(image[:100])
        running.process.send_signal(signal.SIGTERM)
        while _accepts(url):
            pass
        slow.sendall(image[100:])
        reply = b"".join(iter(lambda: slow.recv(65536), b"")).decode()
    assert reply.startswith("HTTP/1.1 200 ")
    assert httpx.Response(200, text=reply.partition("\r\n\r\n")[2]).json()["images"][0]["top_k"] == expected
    assert ended(running.process) == (0, [])
    assert not any(psutil.pid_exists(pid) for pid in family)


def _accepts(url: httpx.URL) -> bool:
    try:
        socket.create_connection((url.host, url.port or 0), timeout=WAIT_SECONDS).close()
    except ConnectionError:
        return False
    return True


def test_start_line_of_a_server_with_keys_has_a_curl_command_with_a_key(
    command: Command, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_API_KEYS", "open-sesame")
    process = command("serve", bundle_folder, "--port", 0, "--workers", 1, "--device", "cpu")
    assert process.stderr
    line = process.stderr.readline()
    assert_facts(line, "-H 'X-API-Key: KEY'", "--data-binary")
    assert "open-sesame" not in line
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, [])


def test_ctrl_c_reports_open_requests_and_a_second_one_exits_immediately(
    start: Callable[..., Any], bundle_folder: Path
) -> None:
    running = start(bundle_folder)
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port or 0)) as client:
        client.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc")
        time.sleep(1)  # until the server has read the request; nothing reports it
        running.process.send_signal(signal.SIGINT)
        line = running.process.stderr.readline()
        assert_facts(line, "limbeck: ", "1 request", "30 s", "Ctrl-C")
        running.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert ended(running.process) == (0, [])
    assert time.monotonic() - began < 10


def test_ctrl_c_in_a_job_is_one_line_and_status_130() -> None:
    job = """
import signal, time
from server.cli import app, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT
@app.command()
def job():
    print("started", flush=True)
    time.sleep(60)
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", job, "job"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    status, lines = ended(process)
    assert (status, len(lines)) == (130, 1)
    assert_facts(lines[0], "limbeck: ")


def test_command_line_and_server_do_not_import_torch(command: Command) -> None:
    version, usage = command("--version"), command("serve", ".", "--port", "70000")
    # Only the workers need torch in a server, and a recipe is validated before torch is imported.
    for module in ("server.cli", "server.serve", "student.recipe", "teacher_cache.recipe"):
        light = f"import sys, {module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
    printed, _ = version.communicate(timeout=WAIT_SECONDS)
    assert re.fullmatch(r"limbeck \d+\.\d+\.\d+\n", printed)
    assert ended(usage)[0] == 2
