"""A short run of benchmarks/fuzz.py, and a check that it can fail."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from facts import assert_facts

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def fuzz(url: str, *options: object) -> tuple[int, dict[str, Any], str]:
    """Run the script; return exit status, report and standard error."""
    command = [sys.executable, FUZZ, url, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, encoding="utf-8", timeout=280, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_fuzzed_images_and_requests_get_no_5xx(start: Callable[..., Any], bundle_folder: Path) -> None:
    running = start(bundle_folder)
    options = ("--pid", running.process.pid, "--images", 150, "--examples", 3, "--phases", "examples,fuzzing")
    status, found, errors = fuzz(running.url, *options)
    assert status == 0, f"{found} {errors}"
    assert found["images"] == sum(found["statuses"].values()) == 150
    assert found["statuses"]["200"] > 10 and found["statuses"]["400"] > 10
    assert found["schemathesis"] == "passed"
    (model,) = httpx.get(f"{running.url}/v1/models").json()
    running.process.send_signal(signal.SIGTERM)
    _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    for line in errors.splitlines():  # the fuzzer may request a reload, which is logged
        assert_facts(line, model["name"], model["version"])


class _Broken(BaseHTTPRequestHandler):
    """Answers every image with 500."""

    def do_GET(self) -> None:
        self._send(200, {"name": "broken"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(500, {"detail": "broken"})

    def _send(self, status: int, answer: dict[str, str]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def broken() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fuzzing_reports_a_server_that_answers_500(broken: str) -> None:
    status, found, _ = fuzz(broken, "--images", 9, "--examples", 0)
    assert status == 1
    assert found["statuses"] == {"500": 9} and len(found["failures"]) == 9


def test_every_error_status_is_documented_with_its_body(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(document)
    seen = 0
    for path, operations in document["paths"].items():
        problem = "ProtocolProblem" if path.startswith("/v2") else "Problem"
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{problem}"}, (path, status)
                    seen += 1
            if path not in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
                assert {"401", "429"} <= set(operation["responses"]), path
    assert seen > 40
    for schema in document["components"]["schemas"].values():
        assert schema.get("examples") or "enum" in schema, schema
