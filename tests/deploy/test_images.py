"""The Dockerfile and the compose file, checked without building images."""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from server.demo import TEST_IMAGES, TRAIN_IMAGES

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
TARGETS = ("teacher", "student", "server")


def stages() -> dict[str, tuple[str, str]]:
    """By stage name: the base image and the instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return {name: (base, body) for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def whole(name: str) -> str:
    """All instructions of a stage and of the stages it is based on."""
    known = stages()
    base, body = known[name]
    return (whole(base) if base in known else f"FROM {base}\n") + body


def test_the_dockerfile_passes_hadolint(run_tool: Callable[..., str]) -> None:
    run_tool("hadolint", DOCKERFILE)


def test_each_target_is_pinned_runs_without_root_and_has_no_compiler() -> None:
    for name in TARGETS:
        left = whole(name)
        assert re.search(r"^FROM python:[\d.]+-slim-\w+$", left, re.MULTILINE)
        assert re.search(r"^USER 10001:10001$", left, re.MULTILINE)
        assert "USER root" not in left
        assert not re.search(r"build-essential|gcc|g\+\+|clang|pip install", left)
        assert re.search(rf"^COPY --from=build-{name} /opt/limbeck /opt/limbeck$", left, re.MULTILINE)
        assert re.search(r"^HEALTHCHECK .*", left, re.MULTILINE)
        installs = re.findall(r"^RUN .*pip install (.*)$", whole(f"build-{name}"), re.MULTILINE)
        assert len(installs) >= 3 and all("--constraint constraints.txt" in line for line in installs)


def test_copied_files_exist_and_are_not_ignored() -> None:
    root = DEPLOY.parent
    ignored = (root / ".dockerignore").read_text().splitlines()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert len(copied) >= 7
    for name in copied:
        assert (root / name).exists() and f"!{name}" in ignored


def test_compose_runs_the_demo_with_existing_files() -> None:
    plain = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = plain["services"]
    packed = [services[name]["command"] for name in ("pack-train", "pack-test")]
    limits = [int(words[words.index("--limit") + 1]) for words in packed]
    assert limits == [TRAIN_IMAGES, TEST_IMAGES]
    assert list(services)[:7] == ["pack-train", "pack-test", "teacher", "cache", "student", "export", "server"]
    for name, service in services.items():
        assert "init" not in service  # the images' entrypoint is tini
        for before, how in service.get("depends_on", {}).items():
            assert before in services and how["condition"] == "service_completed_successfully"
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            if place.startswith("."):
                assert (DEPLOY / place).exists(), f"{name} mounts {place}"
        if "build" in service:
            assert service["build"]["target"] in TARGETS
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
