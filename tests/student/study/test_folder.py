import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from io import StringIO
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from facts import assert_facts
from rich.console import Console

from student.study.folder import RESULT_NAME, STATES, Study, create_study, open_study, status_of
from teacher_cache.distributed.world import World
from teacher_cache.errors import RunError

ABOUT = {"optim": {"lr": 0.1, "name": "lamb"}, "model": {"name": "resnet50"}}
TASKS = ["seed-0", "seed-1", "seed-2", "seed-3"]
DONE, FAILED, RUNNING, INTERRUPTED, PENDING = STATES
FORK = multiprocessing.get_context("fork")


def make_study(folder: Path, tasks: list[str] = TASKS) -> Study:
    return create_study(folder, "seeds", ABOUT, tasks)


def work(folder: Path, seconds: float) -> None:
    """Run a job that records each task it does in a file of that task."""
    study = make_study(folder)
    for task in study.claim_tasks():
        with (folder / task / "done by").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        study.finish(task, {"accuracy": {"class": 1.0}})


def make_study_at_once(ready: Barrier, folder: Path) -> None:
    ready.wait()
    next(iter(make_study(folder).claim_tasks()))


def printed(study: Study) -> str:
    page = StringIO()
    table, line = status_of(study)
    Console(file=page, width=120).print(table)
    return page.getvalue() + line


def test_each_task_is_done_once_and_its_result_is_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    for number, task in enumerate(study.claim_tasks()):
        study.finish(task, {"number": number})
    assert [study.result(task)["number"] for task in TASKS] == [0, 1, 2, 3]
    assert list(make_study(tmp_path / "study").claim_tasks()) == [] == study.unfinished_tasks()


def test_jobs_on_one_folder_share_its_tasks_and_none_is_done_twice(tmp_path: Path) -> None:
    jobs = [FORK.Process(target=work, args=(tmp_path, 0.05)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert all(len((tmp_path / task / "done by").read_text().split()) == 1 for task in TASKS)
    assert make_study(tmp_path).unfinished_tasks() == []


def test_jobs_can_create_one_folder_at_the_same_time(tmp_path: Path) -> None:
    for number in range(30):
        ready = FORK.Barrier(4)
        jobs = [FORK.Process(target=make_study_at_once, args=(ready, tmp_path / str(number))) for _ in range(4)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            assert job.exitcode == 0


def test_a_folder_left_by_a_job_killed_while_creating_it_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".study.json.0123456789ab.tmp").write_text("{")
    assert make_study(tmp_path).unfinished_tasks() == TASKS
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(RunError) as raised:
        make_study(tmp_path / "other")
    assert_facts(raised.value, tmp_path / "other", "--out")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["photo.jpg"]


def test_the_task_of_a_killed_job_is_free_immediately(tmp_path: Path) -> None:
    job = FORK.Process(target=work, args=(tmp_path, 60))
    job.start()
    while not (tmp_path / TASKS[0] / "done by").exists():
        time.sleep(0.01)
    study = make_study(tmp_path)
    assert study.state(TASKS[0]) == RUNNING
    assert study.state(TASKS[0]) == RUNNING  # asking did not release the claim
    assert next(iter(study.claim_tasks())) == TASKS[1]
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.join()
    assert study.state(TASKS[0]) == INTERRUPTED
    assert next(iter(study.claim_tasks())) == TASKS[0]


def test_ranks_share_the_tasks(tmp_path: Path) -> None:
    shares = Counter(task for rank in range(3) for task in _settled(make_study(tmp_path), World(rank, 3)))
    assert shares == dict.fromkeys(TASKS, 1)


def _settled(study: Study, world: World) -> list[str]:
    tasks = []
    for task in study.claim_tasks(world):
        study.finish(task, {})
        tasks.append(task)
    return tasks


def test_status_lists_the_tasks_that_are_not_done(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.finish("seed-0", {"accuracy": {}})
    study.finish("seed-1", {"failed": "the loss is nan"})
    (tmp_path / "seed-2").mkdir(exist_ok=True)
    (tmp_path / "seed-2" / "journal.jsonl").touch()
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in printed(study).splitlines() if "│" in line
    ]
    assert rows == [["seed-1", FAILED], ["seed-2", INTERRUPTED], ["seed-3", PENDING]]
    assert_facts(printed(study), f"1 {DONE}", f"1 {FAILED}", f"1 {INTERRUPTED}", f"1 {PENDING}", 4)
    for task in ("seed-2", "seed-3"):
        study.finish(task, {})
    assert_facts(printed(open_study(tmp_path)), f"3 {DONE}", f"1 {FAILED}", 4)


def test_a_study_can_grow_and_keeps_its_tasks_if_fewer_are_requested(tmp_path: Path) -> None:
    make_study(tmp_path, TASKS[:2])
    assert open_study(tmp_path).tasks == tuple(TASKS[:2])
    make_study(tmp_path)
    assert make_study(tmp_path, TASKS[:1]).tasks == ("seed-0",)
    assert open_study(tmp_path).tasks == tuple(TASKS)


def test_a_folder_of_another_recipe_is_refused_with_every_differing_key(tmp_path: Path) -> None:
    make_study(tmp_path)
    other = {"optim": {"lr": 0.2, "name": "lamb", "clip": 1.0}, "model": {"name": "resnet18"}}
    before = (tmp_path / "study.json").read_text()
    with pytest.raises(RunError) as raised:
        create_study(tmp_path, "compare", other, TASKS)
    assert_facts(raised.value, tmp_path, "kind", "'seeds'", "'compare'", "model.name", "'resnet50'", "'resnet18'")
    assert_facts(raised.value, "optim.clip", 1.0, "optim.lr", 0.1, 0.2, "--out")
    assert "optim.name" not in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "study.json").read_text() == before


def test_folders_that_are_not_studies_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="--out"):
        make_study(tmp_path)
    with pytest.raises(RunError) as raised:
        open_study(tmp_path)
    assert_facts(raised.value, tmp_path, "study.json")
    (tmp_path / "study.json").write_text(json.dumps({"format": 77}))
    with pytest.raises(RunError, match=r"\bformat\b.*\b77\b"):
        open_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RunError, match=str(tmp_path / "study.json")):
        open_study(tmp_path)


def test_an_unreadable_result_is_reported_with_its_path(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.finish("seed-0", {})
    (tmp_path / "seed-0" / RESULT_NAME).write_text("[")
    with pytest.raises(RunError, match=r"seed-0/result\.json"):
        study.result("seed-0")
