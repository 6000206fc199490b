"""A reverse proxy that offers a server under a path prefix."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


@contextmanager
def prefix_proxy(url: str, prefix: str, strips: bool) -> Iterator[str]:
    """Yield the address of a proxy. strips: whether it removes the prefix from the paths that it forwards."""
    with httpx.Client(base_url=url, timeout=60) as upstream:

        class Forward(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                inside = self.path == prefix or self.path.startswith((f"{prefix}/", f"{prefix}?"))
                path = (self.path.removeprefix(prefix) or "/") if strips else self.path
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                headers |= {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
                if inside:
                    answer = upstream.request(self.command, path, content=body, headers=headers)
                else:
                    answer = httpx.Response(404, content=b"outside of the prefix")
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in ("content-encoding", "content-length", "date"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def do_GET(self) -> None:
                self._forward()

            def do_POST(self) -> None:
                self._forward()

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
