"""A BentoML service around our own decode and forward pass. Started by benchmarks/peers.py; argument: the port."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from peer_worker import Classifier


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class Service:
    """Returns the top five classes of one image."""

    def __init__(self) -> None:
        self.answer = Classifier()

    @bentoml.api(route="/v1/classify")
    def classify(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        return self.answer(image.read_bytes())


if __name__ == "__main__":
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "peer_bentoml:Service"]
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", sys.argv[1]])
