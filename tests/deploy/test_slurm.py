"""The SLURM scripts pass shellcheck, and requeue a task that SLURM preempts."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from wait import until

from student.recipe import TrainRecipe
from teacher_cache.cache.target_cache import TargetCache
from teacher_cache.config import load_recipe
from teacher_cache.data.index import ShardIndex
from teacher_cache.distributed.world import find_world
from teacher_cache.errors import RecipeError
from teacher_cache.recipe import CacheRecipe

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "deploy" / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
WAIT_SECONDS = 60
QUEUE = """#!/bin/bash
case "$1 $2" in
  requeue*) echo "$2" >> "$REQUEUED"; [ "$MAY_REQUEUE" = yes ] ;;
  "show job") echo "JobId=$3 $SCONTROL_JOB" ;;
  *) echo localhost ;;
esac
"""
STEP = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo $$ > "$STARTED"
exec "$@"
"""
RUNS = "JobState=RUNNING Reason=None PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"
CANCELLED = RUNS.replace("RUNNING", "COMPLETING")
IN_GRACE = RUNS.replace("PreemptTime=None", "PreemptTime=2026-01-01T01:00:00")
PREEMPTED = IN_GRACE.replace("RUNNING", "COMPLETING")
"""As scontrol writes them. PreemptTime is set only after preemption."""
TORCHRUN = """#!/bin/bash
[ "$ENDS" = now ] && exit 3
trap 'echo ended >> "$TRAINED"; exit 1' TERM
echo "$@" > "$TRAINED"
while [ "$ENDS" = stopped ]; do sleep 0.05; done
"""
WITHOUT_RETRIES = """#!{}
from server.cli import main
from teacher_cache.storage import object_store as bucket
bucket.RETRY["max_retries"] = 0
main()
"""


def test_the_scripts_pass_shellcheck(run_tool: Callable[..., str]) -> None:
    assert len(SCRIPTS) == 2
    run_tool("shellcheck", "--severity=style", *SCRIPTS)


def test_the_scripts_request_eight_cores_for_each_gpu_and_the_recipes_use_all(tmp_path: Path) -> None:
    """With the recipes that the commands in deploy/README.md write."""
    text = (ROOT / "deploy/README.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^((?:cp|sed) .*) ((?:cache|student)\.toml)(?=  #)", text, re.M)
    for line, name in lines:
        subprocess.run(["bash", "-c", f"{line} {tmp_path}/{name}"], cwd=ROOT, check=True, timeout=60)
    teacher = load_recipe(tmp_path / "cache.toml", CacheRecipe).job.workers
    trains = load_recipe(tmp_path / "student.toml", TrainRecipe)
    (nodes,) = re.findall(r"^sbatch --nodes (\d+) deploy/slurm/student.sbatch", text, re.M)
    assert trains.train.streams % (8 * int(nodes)) == trains.train.batch % (3 * trains.train.streams) == 0
    assert teacher is trains.machine.workers is None
    for name in ("teacher", "student"):
        asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\d+)$", (SLURM / f"{name}.sbatch").read_text(), re.M))
        gpus = int(asked.get("gpus-per-task", 0)) + int(asked.get("gpus-per-node", 0))
        assert int(asked["cpus-per-task"]) == gpus * 8, name


def test_an_array_must_have_consecutive_indexes() -> None:
    def ranks(numbers: list[int]) -> list[int]:
        array = {"SLURM_ARRAY_TASK_COUNT": str(len(numbers)), "SLURM_ARRAY_TASK_MIN": str(min(numbers))}
        worlds = [find_world(None, None, array | {"SLURM_ARRAY_TASK_ID": str(number)}) for number in numbers]
        return [world.rank for world in worlds if world]

    assert ranks([0, 1, 2]) == ranks([5, 6, 7]) == [0, 1, 2]
    with pytest.raises(RecipeError, match=r"\b4\b.*\b2\b"):
        ranks([5, 9])


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of an array task on one machine, with small replacements of scontrol and srun."""
    for name, text in (("scontrol", QUEUE), ("srun", STEP)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    job = {"SLURM_JOB_ID": "9", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    step = job | {"SLURM_CPUS_PER_TASK": "2"}
    seen = {"REQUEUED": str(tmp_path / "requeued"), "STARTED": str(tmp_path / "started")}
    seen |= {"SCONTROL_JOB": RUNS, "MAY_REQUEUE": "yes"}
    return {**os.environ, "PATH": path, **array, **step, **seen}


def test_a_preempted_teacher_is_requeued_and_the_next_run_finishes(
    slurm: dict[str, str],
    recipe_text: Callable[..., str],
    shards: ShardIndex,
    teacher_run: Path,
    tmp_path: Path,
) -> None:
    recipe, where = tmp_path / "cache.toml", tmp_path / "cache.zarr"
    text = recipe_text("cache", shards=shards.folder, teacher=teacher_run, cache=where)
    recipe.write_text(text.replace("seeds_per_unit = 2", "seeds_per_unit = 1"))
    command = ["bash", str(SLURM / "teacher.sbatch"), str(recipe)]
    with subprocess.Popen(
        command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as task:
        until(Path(slurm["STARTED"]).exists)
        task.send_signal(signal.SIGUSR1)  # as --signal sends it
        output = task.communicate(timeout=WAIT_SECONDS)[0]
    assert task.returncode == 0, output
    assert Path(slurm["REQUEUED"]).read_text(encoding="utf-8") == "7_1\n"

    done = subprocess.run(command, env=slurm, capture_output=True, encoding="utf-8", timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stderr
    assert Path(slurm["REQUEUED"]).read_text(encoding="utf-8") == "7_1\n"
    cache = TargetCache.open(where)
    assert cache.present() == set(list(cache.layout.units())[1::2])  # the share of task 1 of 2


def test_a_task_whose_store_is_unreachable_is_requeued_a_limited_number_of_times(
    slurm: dict[str, str],
    proxy: FaultProxy,
    shards_in_bucket: str,
    recipe_text: Callable[..., str],
    teacher_run: Path,
    tmp_path: Path,
) -> None:
    """With the real command, but without retries of store requests."""
    (tmp_path / "bin" / "limbeck").write_text(WITHOUT_RETRIES.format(sys.executable))
    (tmp_path / "bin" / "limbeck").chmod(0o755)
    recipe = tmp_path / "cache.toml"
    places = {"shards": shards_in_bucket, "teacher": teacher_run, "cache": tmp_path / "a.zarr"}
    recipe.write_text(recipe_text("cache", **places))
    command = ["bash", SLURM / "teacher.sbatch", recipe]
    environment = slurm | {"AWS_ENDPOINT_URL": proxy.url}

    def run(restarts: int) -> tuple[int, str]:
        often = environment | {"SLURM_RESTART_COUNT": str(restarts)}
        done = subprocess.run(command, env=often, capture_output=True, encoding="utf-8", timeout=WAIT_SECONDS)
        return done.returncode, done.stderr

    with proxy.breaking("500", every=1):
        status, output = run(restarts=19)
    assert status == 0 and "InternalError" in output and shards_in_bucket in output, output
    assert Path(slurm["REQUEUED"]).read_text(encoding="utf-8") == "7_1\n"
    (tmp_path / "bin" / "limbeck").write_text("#!/bin/sh\nexit 75\n")
    assert run(restarts=20)[0] == 75
    assert Path(slurm["REQUEUED"]).read_text(encoding="utf-8") == "7_1\n"


@pytest.fixture
def trained(slurm: dict[str, str], tmp_path: Path) -> Path:
    """The file in which a replacement of torchrun records its arguments and its end."""
    (tmp_path / "bin" / "torchrun").write_text(TORCHRUN)
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    slurm |= {"TRAINED": str(tmp_path / "trained"), "ENDS": "stopped"}
    return tmp_path / "trained"


def test_a_preempted_student_is_stopped_and_requeued(slurm: dict[str, str], trained: Path) -> None:
    command = ["bash", str(SLURM / "student.sbatch"), "student.toml", "runs/student"]
    with subprocess.Popen(
        command, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as task:
        until(lambda: trained.exists() and trained.read_text(encoding="utf-8"))
        task.send_signal(signal.SIGUSR1)
        output = task.communicate(timeout=WAIT_SECONDS)[0]
    assert task.returncode == 0, output
    assert Path(slurm["REQUEUED"]).read_text(encoding="utf-8") == "9\n"  # after all processes exited
    words, ended = trained.read_text(encoding="utf-8").splitlines()
    assert ended == "ended" and words.startswith("--nnodes 1 ") and "--rdzv-endpoint localhost:29500 " in words
    assert words.endswith("--no-python limbeck train student.toml --out runs/student")


@pytest.mark.parametrize(("ends", "status"), [("well", 0), ("now", 3)])
def test_a_student_that_exits_by_itself_is_not_requeued(
    slurm: dict[str, str], trained: Path, ends: str, status: int
) -> None:
    command = ["bash", SLURM / "student.sbatch", "student.toml", "runs/student"]
    done = subprocess.run(
        command, env=slurm | {"ENDS": ends}, capture_output=True, encoding="utf-8", timeout=WAIT_SECONDS
    )
    assert done.returncode == status, done.stderr
    assert trained.exists() == (ends == "well") and not Path(slurm["REQUEUED"]).exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("target", "job", "may_requeue", "again"),
    [
        ("step", IN_GRACE, "yes", True),  # with GraceTime, SIGTERM goes to the steps only
        ("script", IN_GRACE, "yes", True),
        ("script", PREEMPTED, "yes", True),  # PreemptMode=CANCEL without a GraceTime
        ("script", PREEMPTED, "no", True),  # PreemptMode=REQUEUE: SLURM has requeued it already
        ("script", CANCELLED, "yes", False),
        ("step", CANCELLED, "yes", False),
        ("step", RUNS, "yes", False),  # killed by a user
        ("script", "", "yes", False),  # a cluster without preemption
    ],
)
def test_sigterm_requeues_a_preempted_task_but_not_a_cancelled_one(
    slurm: dict[str, str], trained: Path, script: Path, target: str, job: str, may_requeue: str, again: bool
) -> None:
    (trained.parent / "bin" / "limbeck").write_text(TORCHRUN)
    (trained.parent / "bin" / "limbeck").chmod(0o755)
    environment, requeued = slurm | {"SCONTROL_JOB": job, "MAY_REQUEUE": may_requeue}, Path(slurm["REQUEUED"])
    with subprocess.Popen(
        ["bash", script, "recipe.toml", "runs/a"], env=environment, stdout=subprocess.PIPE
    ) as task:
        until(lambda: trained.exists() and trained.read_text(encoding="utf-8"))
        os.kill(
            task.pid if target == "script" else int(Path(slurm["STARTED"]).read_text(encoding="utf-8")),
            signal.SIGTERM,
        )
        task.communicate(timeout=WAIT_SECONDS)
    assert trained.read_text(encoding="utf-8").splitlines()[1] == "ended"
    assert requeued.exists() == again
    assert (task.returncode == 0) == (again and may_requeue == "yes")


def test_a_task_with_a_user_error_exits_with_2_and_is_not_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(SLURM / "teacher.sbatch"), "none.toml"]
    output = subprocess.run(
        command, env=slurm, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=WAIT_SECONDS, check=False
    )
    assert output.returncode == 2 and "none.toml" in output.stderr, output.stderr
    assert not Path(slurm["REQUEUED"]).exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_a_recipe_prints_its_usage(script: Path, slurm: dict[str, str]) -> None:
    output = subprocess.run(
        ["bash", script], env=slurm, capture_output=True, encoding="utf-8", timeout=WAIT_SECONDS
    )
    assert output.returncode != 0 and f"sbatch deploy/slurm/{script.name} RECIPE" in output.stderr
