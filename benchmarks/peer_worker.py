"""The worker of the compared servers: our own decode and forward pass, or none, to measure a framework's cost."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.ipc.messages import ModelInfo, Prediction, Task
from server.schema.classify import Query, build_answer
from server.workers.runtime import open_runtime, prepare_runtime
from server.workers.worker import Worker
from student.bundle.bundle import open_bundle

CLASSES = 1000


class Classifier:
    """Returns the JSON response for an encoded image.

    Environment: PEER_BUNDLE, a bundle's folder or "" for random probabilities; PEER_RUNTIME.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        folder = os.environ["PEER_BUNDLE"]
        self._worker = None
        if folder:
            bundle = open_bundle(Path(folder), torch.device("cpu"))
            name = os.environ["PEER_RUNTIME"]
            model = prepare_runtime(name, bundle, Path(folder))
            self._worker = Worker(bundle, open_runtime(name, bundle, 1, model), 1, 10**8)
        self._rows = np.random.Generator(np.random.Philox(key=1)).random((5, CLASSES), np.float32)
        self._info = ModelInfo(
            name="peer",
            version="1",
            network="",
            classes=tuple(f"class number {number}" for number in range(CLASSES)),
            heads=("class", "distill"),
            fusion="softmax-sum",
            size=224,
            accuracy={},
            sha256="",
            card="",
            runtime="",
            device="cpu",
            difference=0.0,
            batch=1,
        )
        self._query = Query()

    def __call__(self, image: bytes) -> dict[str, Any]:
        prediction = self._worker.run([Task(image)])[0].value if self._worker else Prediction(self._rows)
        return dict(build_answer(prediction, self._info, self._query))
