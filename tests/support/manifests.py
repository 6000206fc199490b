"""Read the Kubernetes objects in deploy/, and the built-in objects inside custom resources."""

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
    """Render an overlay with `kubectl kustomize`; returns all its objects."""
    completed = subprocess.run([KUBECTL, "kustomize", overlay], capture_output=True, encoding="utf-8", timeout=60)
    assert completed.returncode == 0, completed.stderr
    return list(yaml.safe_load_all(completed.stdout))


def of_kind(overlay: Path, kind: str) -> Iterator[Plain]:
    """The objects of one kind in an overlay."""
    return (item for item in rendered(overlay) if item["kind"] == kind)


def base(name: str) -> list[Plain]:
    """The objects in one file of kubernetes/base."""
    return list(yaml.safe_load_all((KUBERNETES / "base" / name).read_text()))


def built_in_objects(resource: Plain) -> list[Plain]:
    """Return the jobs or pod templates inside a custom resource; for any other object, the object itself."""
    if resource["kind"] not in CUSTOM_KINDS:
        return [resource]
    name = resource["metadata"]["name"]
    if resource["kind"] == "JobSet":
        return [
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job["template"]["spec"]}
            for job in resource["spec"]["replicatedJobs"]
        ]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group["template"]}
        for group in ray_groups(resource)
    ]


def ray_groups(rayjob: Plain) -> list[Plain]:
    """The head group and the worker groups of a RayJob's Ray cluster."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(overlay: Path) -> list[Plain]:
    """The specs of all pod templates of an overlay, those in custom resources included."""
    built_in = [item for resource in rendered(overlay) for item in built_in_objects(resource)]
    templates = [item.get("template") or item.get("spec", {}).get("template") for item in built_in]
    return [template["spec"] for template in templates if template]
