"""GPUs and cores are divided among engines."""

import pytest

from specpipe.pipeline.launch.devices import engine_environments, gpus_per_engine, visible_gpus
from specpipe.pipeline.launch.ray import cores_per_engine
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.settings.stages import DumpConfig


def config(**changes: object) -> DumpConfig:
    return DumpConfig.model_validate({"target": "t", "data": "d", "out": "o"} | changes)


def test_each_engine_has_gpus_of_its_own() -> None:
    engine = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    settings = config(workers=2, engine=engine)
    assert gpus_per_engine(settings, "vllm") == 4
    assert gpus_per_engine(settings, "hf") == 1
    gpus = visible_gpus(settings, {"CUDA_VISIBLE_DEVICES": "8, 1,GPU-7f,3,4,5,6,7"})
    made = engine_environments(settings, gpus, 4, 64, {"HOME": "/h"})
    assert [of["CUDA_VISIBLE_DEVICES"] for of in made] == ["8,1,GPU-7f,3", "4,5,6,7"]
    assert [(of["HOME"], of["OMP_NUM_THREADS"]) for of in made] == [("/h", "32")] * 2


def test_cores_are_divided_where_there_is_no_gpu() -> None:
    settings = config(workers=3, device="cpu")
    gpus = visible_gpus(settings, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert gpus == []
    made = engine_environments(settings, gpus, 1, 8, {})
    assert [of["OMP_NUM_THREADS"] for of in made] == ["2"] * 3
    own = engine_environments(settings, gpus, 1, 8, {"OMP_NUM_THREADS": "7"})
    assert own[0]["OMP_NUM_THREADS"] == "7"
    assert visible_gpus(config(), {"CUDA_VISIBLE_DEVICES": ""}) == []


def test_too_few_gpus_and_one_gpu_for_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="need 4 GPUs, this machine shows 3"):
        engine_environments(config(workers=2), ["0", "1", "2"], 2, 8, {})
    with pytest.raises(ConfigError, match="names one GPU"):
        engine_environments(config(workers=2, device="cuda:1"), ["0", "1"], 1, 8, {})


@pytest.mark.parametrize(
    ("nodes", "engines", "cores"), [([4], 2, 2), ([1, 1], 2, 1), ([8, 3], 3, 3), ([64, 2], 2, 32)]
)
def test_an_engines_cores_on_ray(nodes: list[int], engines: int, cores: int) -> None:
    assert cores_per_engine(nodes, engines) == cores
    assert sum(node // (cores + 1) for node in nodes) < engines


def test_a_ray_cluster_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 CPU cores in all"):
        cores_per_engine([2, 1], 4)
