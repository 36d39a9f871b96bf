"""`--worker-index auto` reads what the scheduler says."""

import pytest

from specpipe.pipeline.launch.worker_index import own_share
from specpipe.schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("environment", "count", "share"),
    [
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, None, (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 1, (0, 1)),
        ({"JOB_COMPLETION_INDEX": "3"}, 5, (3, 5)),
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "3",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            None,
            (2, 4),
        ),
    ],
)
def test_schedulers(environment: dict[str, str], count: int | None, share: tuple[int, int]) -> None:
    found = own_share(environment, count)
    assert (found["worker_index"], found["worker_count"]) == share


def test_tasks_of_array_jobs_have_each_a_share_of_their_own() -> None:
    shares = [
        own_share(
            {
                "SLURM_PROCID": str(task),
                "SLURM_NTASKS": "3",
                "SLURM_ARRAY_TASK_ID": str(job),
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            None,
        )
        for job in range(1, 5)
        for task in range(3)
    ]
    assert [share["worker_index"] for share in shares] == [*range(12)]
    assert {share["worker_count"] for share in shares} == {12}


@pytest.mark.parametrize(
    ("environment", "count", "words"),
    [
        ({}, 4, "give a number"),
        ({"JOB_COMPLETION_INDEX": "1"}, None, "needs --worker-count"),
        ({"JOB_COMPLETION_INDEX": "4"}, 4, "worker 4 of 4"),
        ({"JOB_COMPLETION_INDEX": "x"}, 4, "'x', not a number"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 4, "SLURM says 2"),
        ({"SLURM_PROCID": "1"}, None, "worker 1 of 1"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, None, "SLURM_ARRAY_TASK_COUNT is None"),
    ],
)
def test_what_does_not_fit(environment: dict[str, str], count: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        own_share(environment, count)
