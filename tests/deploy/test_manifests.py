"""The manifests are valid, refer only to existing objects, and give pods no unneeded rights."""

import re
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cli_parser import parse, words_of_limbeck
from manifests import (
    DEPLOY,
    KUBERNETES,
    OVERLAYS,
    RAYJOB,
    Plain,
    base,
    built_in_objects,
    in_each_overlay,
    of_kind,
    pods,
    ray_groups,
    rendered,
)

from student.recipe import TrainRecipe
from teacher_cache.config import load_recipe
from teacher_cache.distributed.world import find_world
from teacher_cache.errors import EXIT_TRANSIENT, EXIT_USER_ERROR
from teacher_cache.recipe import CacheRecipe

YAML = sorted(DEPLOY.rglob("*.yaml"))
PLAIN = [path for path in [*KUBERNETES.glob("base/*.yaml"), RAYJOB] if path.stem != "kustomization"]
"""Complete objects; the other files of an overlay are patches."""
YAMLLINT = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, braces: disable, \
comments: {min-spaces-from-content: 1}, comments-indentation: disable}}"


def teachers(overlay: Path) -> list[Plain]:
    """The teacher's Job, if it is not a RayJob."""
    return [job for job in of_kind(overlay, "Job") if job["metadata"]["name"] == "limbeck-teacher"]


@in_each_overlay
def test_every_object_of_an_overlay_is_valid(overlay: Path) -> None:
    validated = []
    for thing in rendered(overlay):
        for one in built_in_objects(thing):
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
            validated.append(one["kind"])
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"} <= {
        *validated
    }
    assert validated.count("Job") == (2 if overlay.name == "ray" else 3)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_every_object_is_valid_before_patching(path: Path) -> None:
    things = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert things
    for one in (one for thing in things for one in built_in_objects(thing)):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_copier_pod_mounts_the_volume_of_the_teacher() -> None:
    pod = yaml.safe_load((DEPLOY / "copier.yaml").read_text())
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    (claim,) = (one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"])
    storage = yaml.safe_load((KUBERNETES / "base" / "storage.yaml").read_text())
    assert (pod["kind"], claim) == ("Pod", storage["metadata"]["name"])


def test_an_unknown_key_is_refused() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, kubernetes_validate.latest_version(), strict=True)


def test_kustomizations_name_every_file_and_only_existing_ones() -> None:
    named = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        plain = yaml.safe_load(path.read_text())
        files = [*plain["resources"], *(patch["path"] for patch in plain.get("patches", []) if "path" in patch)]
        files += [file for one in plain.get("configMapGenerator", []) for file in one["files"]]
        for file in files:
            found = (path.parent / file).resolve()
            assert found.exists(), f"{path} names {file}"
            named.add(found / "kustomization.yaml" if found.is_dir() else found)
    top = {overlay / "kustomization.yaml" for overlay in OVERLAYS}
    there = {path for path in KUBERNETES.rglob("*") if path.suffix in (".yaml", ".toml")}
    assert there - top == named - top


@in_each_overlay
def test_pods_are_unprivileged_read_only_and_request_resources(overlay: Path) -> None:
    assert len(pods(overlay)) >= 3
    for pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 10000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            safe = container["securityContext"]
            assert safe["readOnlyRootFilesystem"] and not safe["allowPrivilegeEscalation"]
            assert safe["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert container["image"].endswith(":0.1.0")
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/dev/shm"} <= mounted


@in_each_overlay
def test_a_pod_mounts_only_objects_of_its_overlay(overlay: Path) -> None:
    made = {(thing["kind"], thing["metadata"]["name"]) for thing in rendered(overlay)}
    for pod in pods(overlay):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()


@in_each_overlay
def test_the_readme_creates_the_volume_of_the_overlay_first(overlay: Path) -> None:
    """The access modes of a volume cannot be changed later."""
    walk = (DEPLOY / "README.md").read_text()
    (key, value) = re.findall(r"apply --kustomize \$overlay --selector (\S+)=(\S+)\n", walk)[0]
    (made,) = [thing for thing in rendered(overlay) if thing["metadata"].get("labels", {}).get(key) == value]
    (volume,) = of_kind(overlay, "PersistentVolumeClaim")
    assert made == volume and "base/storage.yaml" not in walk
    assert volume["spec"]["accessModes"] == ["ReadWrite" + ("Once" if overlay.name == "one-machine" else "Many")]


@in_each_overlay
def test_the_teacher_pods_share_all_units(overlay: Path) -> None:
    """WORLD_SIZE is the number of pods, which Kubernetes does not pass; it passes only the index."""
    assert len(teachers(overlay)) == (overlay.name != "ray")
    for job in teachers(overlay):
        spec = job["spec"]
        given = {one["name"]: one["value"] for one in spec["template"]["spec"]["containers"][0]["env"]}
        assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
        indexes = ({"JOB_COMPLETION_INDEX": str(number)} for number in range(spec["completions"]))
        worlds = [find_world(None, None, given | index) for index in indexes]
        assert [world.rank for world in worlds if world] == list(range(spec["completions"]))
        assert {world.size for world in worlds if world} == {spec["completions"]}


def test_preemption_of_a_teacher_is_no_failure_and_a_user_error_is_not_retried() -> None:
    (job,) = base("teacher.yaml")
    ignore, passing, fail = job["spec"]["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore" and ignore["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert passing["action"] == "Ignore" and passing["onExitCodes"]["values"] == [EXIT_TRANSIENT]
    assert fail["action"] == "FailIndex" and fail["onExitCodes"]["values"] == [EXIT_USER_ERROR]
    assert (
        job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    )  # Kubernetes requires it for podFailurePolicy
    assert job["spec"]["activeDeadlineSeconds"] >= 7 * 24 * 3600  # ignored failures would be retried forever


def test_export_retries_temporary_errors_but_not_user_errors() -> None:
    (job,) = base("export.yaml")
    (fail,) = job["spec"]["podFailurePolicy"]["rules"]  # other failures count against backoffLimit
    assert fail["action"] == "FailJob" and fail["onExitCodes"]["values"] == [EXIT_USER_ERROR]
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert fail["onExitCodes"]["containerName"] == container["name"]


@in_each_overlay
def test_the_server_is_exposed_scaled_and_protected(overlay: Path) -> None:
    (server,) = of_kind(overlay, "Deployment")
    labels = server["spec"]["template"]["metadata"]["labels"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["args"][container["args"].index("--port") + 1] == str(ports["http"])
    paths = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    for kind, where in (("Service", ("selector",)), ("PodDisruptionBudget", ("selector", "matchLabels"))):
        (thing,) = of_kind(overlay, kind)
        wanted = thing["spec"]
        for key in where:
            wanted = wanted[key]
        assert wanted.items() <= labels.items()
    (policy,) = of_kind(overlay, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"] and not policy["spec"].get("egress")
    (let_in,) = policy["spec"]["ingress"]
    (spaces,) = [one["namespaceSelector"]["matchExpressions"][0] for one in let_in["from"]]
    assert (spaces["key"], spaces["operator"]) == ("kubernetes.io/metadata.name", "In")
    assert {server["metadata"]["namespace"], "ingress-nginx", "monitoring"} == {*spaces["values"]}
    assert let_in["ports"] == [{"protocol": "TCP", "port": "http"}] and "http" in ports
    (budget,) = of_kind(overlay, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1  # 0 would make draining a node impossible
    (scaler,) = of_kind(overlay, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == server["metadata"]["name"]
    assert "replicas" not in server["spec"]


@in_each_overlay
def test_the_commands_of_an_overlay_can_be_parsed(overlay: Path) -> None:
    """Including the arguments that patches add."""
    parsed = set()
    for pod in pods(overlay):
        for container in pod["containers"]:
            words = [*container.get("command", ["limbeck"]), *container.get("args", [])]
            called = words_of_limbeck(words)
            if len(called) > 1:  # KubeRay sets the command of Ray's pods
                parsed.add(parse(called[1:])[0])
    assert parsed >= {"train", "serve", "export"}


@in_each_overlay
def test_the_student_rendezvous_is_the_first_pod(overlay: Path) -> None:
    (jobset,) = of_kind(overlay, "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    (place,) = [word for word in container["args"] if word.startswith("--rdzv-endpoint=")]
    network, (port,) = jobset["spec"]["network"], container["ports"]
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"] and place == f"--rdzv-endpoint={first}:{port['containerPort']}"
    assert f"--nnodes={job['template']['spec']['completions']}" in container["args"]


def test_eviction_of_a_student_restarts_it_without_counting() -> None:
    (jobset,) = base("student.yaml")
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == (
        "RestartJobSetAndIgnoreMaxRestarts",
        ["PodFailurePolicy"],
    )
    (job,) = jobset["spec"]["replicatedJobs"]
    (evicted,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert evicted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_the_deployed_recipes_are_valid_and_agree() -> None:
    cache = load_recipe(KUBERNETES / "base/recipes/cache.toml", CacheRecipe)
    student = load_recipe(KUBERNETES / "base/recipes/student.toml", TrainRecipe)
    assert student.cache and student.cache.path == cache.cache.path and student.data.train == cache.data.train
    assert not cache.job.compile and not student.machine.compile  # the images hold no compiler
    assert student.cache.teacher == cache.teacher.model
    assert all(student.train.streams % gpus == 0 for gpus in (1, 2, 8, 16))


@in_each_overlay
def test_a_process_requests_a_core_per_worker_and_one_for_itself(overlay: Path) -> None:
    """Workers as in the recipes or in --set. Ray places no actor on a node with fewer cores."""
    recipes = KUBERNETES / "base" / "recipes"
    asked = {
        "teacher": load_recipe(recipes / "cache.toml", CacheRecipe).job.workers,
        "student": load_recipe(recipes / "student.toml", TrainRecipe).machine.workers,
    }
    asked["ray-worker"] = asked["teacher"]
    containers = [container for pod in pods(overlay) for container in pod["containers"]]
    for container in containers:
        if container["name"] not in asked:
            continue
        words = container.get("args", [])
        given = [int(word.partition("workers=")[2]) for word in words if "workers=" in word]
        a_pod = [int(word.partition("=")[2]) for word in words if word.startswith("--nproc-per-node=")]
        each = (given[0] if given else asked[container["name"]]) + 1
        assert int(container["resources"]["requests"]["cpu"]) >= each * (a_pod[0] if a_pod else 1)
    assert len(containers) == (5 if overlay.name == "ray" else 4)


def test_the_object_store_of_ray_takes_at_most_half_of_shared_memory() -> None:
    """The loader workers use /dev/shm too. If the store does not fit, Ray puts it into /tmp."""
    for group in ray_groups(yaml.safe_load(RAYJOB.read_text())):
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        gib = int(volumes["shared-memory"]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert 2e9 <= int(group["rayStartParams"]["object-store-memory"]) <= gib * 2**30 / 2


def test_yaml_passes_yamllint(run_tool: Callable[..., str]) -> None:
    run_tool("yamllint", "--strict", "--config-data", YAMLLINT, *YAML)
