from io import StringIO

from teacher_cache.distributed.ray_logs import AGAIN, Heard

SAID = """joining Ray at head:6379
(1 of 2) is a line of one's own
\x1b[36m(TrainController pid=7)\x1b[0m Requesting resources: {'CPU': 2} * 1
\x1b[36m(PlacementGroupCleaner pid=8, ip=10.0.0.2)\x1b[0m Failed to query Ray Train Controller actor state.
(RayTrainWorker pid=9, ip=10.0.0.2) Setting up process group for: env:// [rank=0, world_size=1]
\x1b[36m(RayTrainWorker pid=9)\x1b[0m epoch 1/2: loss 1.8
\x1b[36m(RayTrainWorker pid=9)\x1b[0m epoch 1/2: loss 1.8
\x1b[33m(raylet)\x1b[0m A worker died or was killed
\x1b[36m(TrainController pid=7)\x1b[0m [FailurePolicy] RETRY
\x1b[36m(TrainController pid=7)\x1b[0m   Source: worker group
(RayTrainWorker pid=10) epoch 2/2: loss 1.5

"""
HEARD = f"""joining Ray at head:6379
(1 of 2) is a line of one's own
epoch 1/2: loss 1.8
{AGAIN}
epoch 2/2: loss 1.5

"""


def test_of_what_actors_print_the_processes_lines_are_heard_once_and_without_their_prefix() -> None:
    for size in (1, 7, 10_000):
        out = StringIO()
        heard = Heard(out)
        for start in range(0, len(SAID), size):
            heard.write(SAID[start : start + size])
        assert out.getvalue() == HEARD
