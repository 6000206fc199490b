"""JobSet and RayJob have only fields that their operators know, with the right types."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from manifests import RAYJOB, Plain, base, in_each_overlay, of_kind, ray_groups
from pydantic import ValidationError as ModelError

RAYJOB_SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())


def validate_jobset(jobset: Plain) -> None:
    """Validate against the JobSet types of Kubeflow Trainer's client, which are generated from JobSet's own.

    Pods are left out: test_manifests.py validates them, and these types do not accept quantities such as "8Gi".
    """
    copy = deepcopy(jobset)
    for job in copy["spec"]["replicatedJobs"]:
        job["template"]["spec"]["template"] = {}
    model = JobsetV1alpha2JobSet.model_validate(copy, strict=True, extra="forbid", by_alias=True, by_name=False)
    assert (model.api_version, model.kind) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def validate_rayjob(rayjob: Plain) -> None:
    Draft202012Validator(RAYJOB_SCHEMA).validate(rayjob)


def test_the_schema_of_rayjob_is_a_schema() -> None:
    Draft202012Validator.check_schema(RAYJOB_SCHEMA)


@in_each_overlay
def test_the_jobset_of_an_overlay_has_only_known_fields(overlay: Path) -> None:
    (jobset,) = of_kind(overlay, "JobSet")
    validate_jobset(jobset)


@in_each_overlay
def test_the_rayjob_of_an_overlay_has_only_known_fields(overlay: Path) -> None:
    rayjobs = list(of_kind(overlay, "RayJob"))
    assert len(rayjobs) == (overlay.name == "ray")
    for rayjob in rayjobs:
        validate_rayjob(rayjob)
        for group in ray_groups(rayjob)[1:]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("spec.failurePolicy.maxRestart", lambda spec: spec["failurePolicy"].update(maxRestart=1)),
        ("spec.network.enableDnsHostnames", lambda spec: spec["network"].update(enableDnsHostnames=True)),
        ("spec.network.enable_dns_hostnames", lambda spec: spec["network"].update(enable_dns_hostnames=True)),
        ("spec.replicatedJobs.0.replicas", lambda spec: spec["replicatedJobs"][0].update(replicas="1")),
        (
            "spec.replicatedJobs.0.template.spec.completion",
            lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(completion=2),
        ),
        ("spec.failurePolicy.rules.0.action", lambda spec: spec["failurePolicy"]["rules"][0].pop("action")),
    ],
)
def test_a_wrong_field_of_a_jobset_is_refused(field: str, change: Callable[[Plain], None]) -> None:
    (jobset,) = base("student.yaml")
    change(jobset["spec"])
    with pytest.raises(ModelError) as refused:
        validate_jobset(jobset)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [field]


@pytest.mark.parametrize(
    ("place", "named", "change"),
    [
        ("spec", "entryPoint", lambda spec: spec.update(entryPoint="a")),
        ("spec", "shutdownAfterJobFinishes", lambda spec: spec.pop("shutdownAfterJobFinishes")),
        ("spec.submissionMode", "HttpMode", lambda spec: spec.update(submissionMode="HttpMode")),
        ("spec.backoffLimit", "-1", lambda spec: spec.update(backoffLimit=-1)),
        (
            "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus",
            "0",
            lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        ),
        (
            "spec.rayClusterSpec.workerGroupSpecs.0",
            "minReplica",
            lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplica=1),
        ),
    ],
)
def test_a_wrong_field_of_a_rayjob_is_refused(place: str, named: str, change: Callable[[Plain], None]) -> None:
    rayjob = yaml.safe_load(RAYJOB.read_text())
    change(rayjob["spec"])
    with pytest.raises(ValidationError) as refused:
        validate_rayjob(rayjob)
    assert ".".join(map(str, refused.value.absolute_path)) == place and named in refused.value.message
