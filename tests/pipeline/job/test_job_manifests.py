"""The Kubernetes job of `specpipe run` and the Argo workflow: their schemas, and their commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from specpipe.pipeline.job.settings import job_settings, read_job, read_sections
from tests.dump.conftest import rows, save_target, write_lines
from tests.schedulers import environment, manifests, start_all


def kubernetes_job() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The job's spec, its pod and its container."""
    job = manifests("kubernetes_run.yaml")["Job"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return job, pod, container


def argo() -> dict[str, Any]:
    workflow: dict[str, Any] = manifests("argo_workflow.yaml")["Workflow"]
    return workflow


def test_the_kubernetes_manifest_is_valid() -> None:
    import kubernetes_validate

    objects = manifests("kubernetes_run.yaml")
    assert [*objects] == ["ConfigMap", "PersistentVolumeClaim", "Job"]
    for each in objects.values():
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_which_ends_start_another_pod() -> None:
    job, pod, container = kubernetes_job()
    # What podFailurePolicy demands.
    assert pod["restartPolicy"] == "Never"
    ignored, fatal = job["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fatal["action"] == "FailJob"
    assert fatal["onExitCodes"]["containerName"] == container["name"]
    assert fatal["onExitCodes"]["operator"] == "In"
    codes = set(fatal["onExitCodes"]["values"])
    # 5 says to go on; 137 is a process that was killed.
    assert {1, 2, 3, 4} <= codes
    assert codes.isdisjoint({5, 137})
    assert job["backoffLimit"] > 1
    assert job["podReplacementPolicy"] == "Failed"
    assert pod["terminationGracePeriodSeconds"] >= 600


def test_the_pod_of_the_job_has_what_it_needs_and_no_more() -> None:
    _, pod, container = kubernetes_job()
    objects = manifests("kubernetes_run.yaml")
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == set(volumes)
    config = volumes["config"]["configMap"]["name"]
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert config == objects["ConfigMap"]["metadata"]["name"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert f"--out={mounts['data']}/job" in container["args"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--processes={gpus}" in container["args"]
    assert f"workers: {gpus}" in objects["ConfigMap"]["data"]["job.yaml"]


def test_the_job_in_the_config_map_is_valid(tmp_path: Path) -> None:
    data = manifests("kubernetes_run.yaml")["ConfigMap"]["data"]
    _, _, container = kubernetes_job()
    for name, text in data.items():
        assert any(f"/etc/specpipe/{name}" in part for part in container["args"])
        (tmp_path / name).write_text(text)
    extra = read_sections(tmp_path / "job.yaml")
    settings = job_settings(read_job(tmp_path / "job.json"), extra, tmp_path / "out")
    assert settings.dump.data == ("s3://bucket/traffic/week-47.jsonl",)
    assert settings.train.num_heads == 5


def test_the_argo_workflow_is_valid() -> None:
    from hera.workflows.models import Workflow

    workflow = argo()
    told = Workflow.model_validate(workflow)
    # Argo's model passes over what it does not know, so that it would be missing here.
    assert told.model_dump(by_alias=True, exclude_none=True, mode="json") == workflow


def test_the_argo_workflow_names_what_it_has() -> None:
    spec = argo()["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    steps = [step for [step] in templates[spec["entrypoint"]]["steps"]]
    assert [step["template"] for step in steps] == ["dump", "train", "export"]
    assert {spec["entrypoint"], *(step["template"] for step in steps)} == set(templates)
    volumes = {volume["name"] for volume in spec["volumes"]}
    for name in ("dump", "train", "export"):
        container = templates[name]["container"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert yaml.safe_load(spec["podSpecPatch"])["terminationGracePeriodSeconds"] >= 600
    assert spec["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize(
    ("status", "exit_code", "again"),
    [("Error", "-1", True), *(("Failed", str(code), code == 5) for code in range(1, 7))],
)
def test_which_steps_argo_tries_again(status: str, exit_code: str, again: bool) -> None:
    """The expression is Argo's, but reads the same in Python but for `||`."""

    last = SimpleNamespace(status=status, exitCode=exit_code)
    steps = [each for each in argo()["spec"]["templates"] if "container" in each]
    strategy = steps[0]["retryStrategy"]
    assert all(step["retryStrategy"] == strategy for step in steps)
    # Without `Always`, a step whose pod was lost is not asked about.
    assert strategy["retryPolicy"] == "Always"
    expression = strategy["expression"].replace("||", "or")
    assert eval(expression, {"asInt": int, "lastRetry": last}) is again


@pytest.mark.slow
def test_the_steps_of_the_argo_workflow(tmp_path: Path) -> None:
    """Each container's own command, one step after the other, the dump's side by side."""
    target, data = save_target(tmp_path / "target"), write_lines(tmp_path / "data", rows(60))
    spec = argo()["spec"]
    given = {parameter["name"]: parameter["value"] for parameter in spec["arguments"]["parameters"]}
    given |= {"target": str(target), "data": str(data), "dump": str(tmp_path / "dump")}
    given |= {"folder": str(tmp_path / "drafter"), "backend": "hf", "workers": "2"}
    templates = {template["name"]: template for template in spec["templates"]}

    def step(name: str, index: str = "") -> list[str]:
        container = templates[name]["container"]
        command: list[str] = container["command"] + container["args"]
        for variable, value in given.items():
            there = f"{{{{workflow.parameters.{variable}}}}}"
            command = [part.replace(there, value) for part in command]
        command = [part.replace("{{inputs.parameters.index}}", index) for part in command]
        assert not any("{{" in part for part in command)
        return command

    for commands in ([step("dump", "0"), step("dump", "1")], [step("train")], [step("export")]):
        done = start_all(commands, [environment(tmp_path, {})] * len(commands))
        assert [code for code, _, _ in done] == [0] * len(commands), done
    assert (tmp_path / "drafter" / "artifact" / "checkpoint" / "model.safetensors").exists()
