"""Run by torchrun: write the node counts of a compiled student's graphs under DDP, and its graph breaks."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from student.model.stochastic_depth import StochasticDepth
from student.model.student import create_student
from teacher_cache.models.spec import NetworkSpec


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    graphs: list[int] = []

    def backend(graph: GraphModule, _: list[torch.Tensor]) -> GraphModule:
        graphs.append(len(graph.graph.nodes))
        return graph

    arguments = {"drop_path_rate": 0.1, "img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 384}
    student = create_student(NetworkSpec(name="deit_tiny_distilled_patch16_224", args=arguments), 10, True)
    depth = StochasticDepth(student.network, batch=8, seed=0)
    student.compile(backend=backend)
    model = DistributedDataParallel(student.train(), gradient_as_bucket_view=True)
    for step in range(3):
        depth.set(depth.draw(step, np.arange(4), torch.device("cpu")))
        heads = model(torch.zeros(4, 3, 32, 32))
        (heads.class_logits.sum() + heads.distill_logits.sum()).backward()
    if dist.get_rank() == 0:
        found = {"graphs": graphs, "breaks": sum(counters["graph_break"].values())}
        Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
