"""The manifests are ones that Kubernetes takes, name nothing that is not there, and give no pod too much."""

import re
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from command_line import parse, words_of_limbeck
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
from teacher_cache.errors import MEND, TRY_AGAIN
from teacher_cache.recipe import CacheRecipe, load_recipe
from teacher_cache.world import find_world

YAML = sorted(DEPLOY.rglob("*.yaml"))
PLAIN = [path for path in [*KUBERNETES.glob("base/*.yaml"), RAYJOB] if path.stem != "kustomization"]
"""Whole objects, where an overlay's other files are patches."""
YAMLLINT = "{extends: default, rules: {line-length: {max: 130}, document-start: disable, braces: disable, \
comments: {min-spaces-from-content: 1}, comments-indentation: disable}}"


def teachers(overlay: Path) -> list[Plain]:
    """The teacher's job, where it is one of Kubernetes' own."""
    return [job for job in of_kind(overlay, "Job") if job["metadata"]["name"] == "limbeck-teacher"]


@in_each_overlay
def test_kubernetes_takes_every_object_of_an_overlay(overlay: Path) -> None:
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
def test_kubernetes_takes_every_object_as_it_is_written(path: Path) -> None:
    things = list(yaml.safe_load_all(path.read_text()))
    assert things
    for one in (one for thing in things for one in built_in_objects(thing)):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_the_copier_of_weights_is_a_pod_that_mounts_what_the_teacher_reads() -> None:
    pod = yaml.safe_load((DEPLOY / "copier.yaml").read_text())
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    (claim,) = (one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"])
    storage = yaml.safe_load((KUBERNETES / "base" / "storage.yaml").read_text())
    assert (pod["kind"], claim) == ("Pod", storage["metadata"]["name"])


def test_a_key_that_kubernetes_does_not_know_is_refused() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, kubernetes_validate.latest_version(), strict=True)


def test_every_file_of_a_kustomization_is_there_and_every_file_there_is_named() -> None:
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
def test_pods_run_as_nobody_write_nowhere_and_say_what_they_need(overlay: Path) -> None:
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
def test_a_pod_mounts_only_what_the_overlay_makes(overlay: Path) -> None:
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
def test_the_walk_makes_each_overlays_own_volume_before_the_rest(overlay: Path) -> None:
    """Its access modes cannot be changed afterwards."""
    walk = (DEPLOY / "README.md").read_text()
    (key, value) = re.findall(r"apply --kustomize \$overlay --selector (\S+)=(\S+)\n", walk)[0]
    (made,) = [thing for thing in rendered(overlay) if thing["metadata"].get("labels", {}).get(key) == value]
    (volume,) = of_kind(overlay, "PersistentVolumeClaim")
    assert made == volume and "base/storage.yaml" not in walk
    assert volume["spec"]["accessModes"] == ["ReadWrite" + ("Once" if overlay.name == "one-machine" else "Many")]


@in_each_overlay
def test_the_teachers_pods_share_out_all_units(overlay: Path) -> None:
    """WORLD_SIZE, which Kubernetes does not tell, is the number of pods; Kubernetes tells the rest by index."""
    assert len(teachers(overlay)) == (overlay.name != "ray")
    for job in teachers(overlay):
        spec = job["spec"]
        given = {one["name"]: one["value"] for one in spec["template"]["spec"]["containers"][0]["env"]}
        assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
        indexes = ({"JOB_COMPLETION_INDEX": str(number)} for number in range(spec["completions"]))
        worlds = [find_world(None, None, given | index) for index in indexes]
        assert [world.rank for world in worlds if world] == list(range(spec["completions"]))
        assert {world.size for world in worlds if world} == {spec["completions"]}


def test_a_preempted_teacher_is_not_counted_as_failed_and_a_wrong_recipe_is_not_tried_again() -> None:
    (job,) = base("teacher.yaml")
    ignore, passing, fail = job["spec"]["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore" and ignore["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert passing["action"] == "Ignore" and passing["onExitCodes"]["values"] == [TRY_AGAIN]
    assert fail["action"] == "FailIndex" and fail["onExitCodes"]["values"] == [MEND]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes' condition for both
    assert job["spec"]["activeDeadlineSeconds"] >= 7 * 24 * 3600  # what is ignored would go on for ever


def test_an_export_that_may_pass_is_tried_again_and_one_that_must_be_mended_is_not() -> None:
    (job,) = base("export.yaml")
    (fail,) = job["spec"]["podFailurePolicy"]["rules"]  # what no rule names is counted
    assert fail["action"] == "FailJob" and fail["onExitCodes"]["values"] == [MEND]
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert fail["onExitCodes"]["containerName"] == container["name"]


@in_each_overlay
def test_the_server_is_reached_scaled_and_kept(overlay: Path) -> None:
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
    assert budget["spec"]["maxUnavailable"] == 1  # none would keep a node from ever being drained
    (scaler,) = of_kind(overlay, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == server["metadata"]["name"]
    assert "replicas" not in server["spec"]


@in_each_overlay
def test_what_the_pods_of_an_overlay_run_can_be_parsed(overlay: Path) -> None:
    """With the words that its patches have added."""
    parsed = set()
    for pod in pods(overlay):
        for container in pod["containers"]:
            words = [*container.get("command", ["limbeck"]), *container.get("args", [])]
            called = words_of_limbeck(words)
            if len(called) > 1:  # of Ray's own pods KubeRay says what they run
                parsed.add(parse(called[1:])[0])
    assert parsed >= {"train", "serve", "export"}


@in_each_overlay
def test_the_students_processes_meet_at_the_first_pod(overlay: Path) -> None:
    (jobset,) = of_kind(overlay, "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    (place,) = [word for word in container["args"] if word.startswith("--rdzv-endpoint=")]
    network, (port,) = jobset["spec"]["network"], container["ports"]
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"] and place == f"--rdzv-endpoint={first}:{port['containerPort']}"
    assert f"--nnodes={job['template']['spec']['completions']}" in container["args"]


def test_an_evicted_student_is_begun_again_and_not_counted() -> None:
    (jobset,) = base("student.yaml")
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == (
        "RestartJobSetAndIgnoreMaxRestarts",
        ["PodFailurePolicy"],
    )
    (job,) = jobset["spec"]["replicatedJobs"]
    (evicted,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert evicted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_the_recipes_that_are_deployed_can_be_read_and_fit_each_other() -> None:
    cache = load_recipe(KUBERNETES / "base/recipes/cache.toml", CacheRecipe)
    student = load_recipe(KUBERNETES / "base/recipes/student.toml", TrainRecipe)
    assert student.cache and student.cache.path == cache.cache.path and student.data.train == cache.data.train
    assert not cache.job.compile and not student.machine.compile  # the images hold no compiler
    assert student.cache.teacher == cache.teacher.model
    assert all(student.train.streams % gpus == 0 for gpus in (1, 2, 8, 16))


@in_each_overlay
def test_a_process_has_a_core_for_each_of_its_workers_and_one_more(overlay: Path) -> None:
    """The recipes' workers, or those that --set gives; Ray places no actor on a node that has fewer cores."""
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


def test_rays_object_store_fits_into_shared_memory_with_room_for_what_workers_share() -> None:
    """Where it does not, Ray keeps its objects in /tmp; Limbeck's workers hand views on through /dev/shm, too."""
    for group in ray_groups(yaml.safe_load(RAYJOB.read_text())):
        volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
        gib = int(volumes["shared-memory"]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert 2e9 <= int(group["rayStartParams"]["object-store-memory"]) <= gib * 2**30 / 2


def test_yaml_is_written_as_it_should_be(run_tool: Callable[..., str]) -> None:
    run_tool("yamllint", "--strict", "--config-data", YAMLLINT, *YAML)
