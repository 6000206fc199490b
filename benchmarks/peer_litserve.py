"""A LitServe server around our own decode and forward pass. Started by benchmarks/peers.py; argument: the port."""

import os
import sys
from typing import Annotated, Any

import litserve
from fastapi import Body
from peer_worker import Classifier

Raw = Annotated[bytes, Body(media_type="image/jpeg")]


class Api(litserve.LitAPI):
    """Returns the top five classes of one image."""

    def setup(self, device: str) -> None:
        self.answer = Classifier()

    def decode_request(self, request: Raw) -> bytes:
        return request

    def predict(self, image: bytes) -> dict[str, Any]:
        return self.answer(image)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(api_path="/v1/classify"),
        accelerator="cpu",
        devices=1,
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        timeout=60,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
