"""The Kubernetes objects of deploy/, and the built-in objects inside custom resources."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Plain = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
RAYJOB = KUBERNETES / "overlays/ray/rayjob.yaml"
KUBECTL = Path(sys.executable).with_name("kubectl")
CUSTOM_KINDS = {"JobSet", "RayJob"}

in_each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


@cache
def rendered(overlay: Path) -> list[Plain]:
    """All objects of an overlay, rendered by `kubectl kustomize`."""
    done = subprocess.run([KUBECTL, "kustomize", overlay], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: Path, kind: str) -> Iterator[Plain]:
    return (thing for thing in rendered(overlay) if thing["kind"] == kind)


def base(name: str) -> list[Plain]:
    """The objects of one file of the base."""
    return list(yaml.safe_load_all((KUBERNETES / "base" / name).read_text()))


def built_in_objects(thing: Plain) -> list[Plain]:
    """The object itself, or the jobs and pod templates inside a custom resource."""
    if thing["kind"] not in CUSTOM_KINDS:
        return [thing]
    name = thing["metadata"]["name"]
    if thing["kind"] == "JobSet":
        return [
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": one["template"]["spec"]}
            for one in thing["spec"]["replicatedJobs"]
        ]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group["template"]}
        for group in ray_groups(thing)
    ]


def ray_groups(rayjob: Plain) -> list[Plain]:
    """The head group and the worker groups of a RayJob's cluster."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(overlay: Path) -> list[Plain]:
    """The spec of every pod template of an overlay."""
    plain = [one for thing in rendered(overlay) for one in built_in_objects(thing)]
    templates = [thing.get("template") or thing.get("spec", {}).get("template") for thing in plain]
    return [template["spec"] for template in templates if template]
