"""`specpipe run`."""

from pathlib import Path
from typing import Any

import click

from specpipe.pipeline.terminal.console import note, show
from specpipe.pipeline.terminal.flags import flag, flags_of
from specpipe.pipeline.terminal.local_folder import LocalFolder
from specpipe.pipeline.terminal.options import json_option, with_options
from specpipe.schemas.errors import ConfigError
from specpipe.schemas.records.job import JobReport
from specpipe.schemas.settings.stages import DumpConfig, ExportConfig


@click.command(short_help="Run a spec-draft job: dump, train and export in one folder.")
@click.argument("job", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=LocalFolder(), help="Folder of the job.")
@click.option("--status", type=LocalFolder(), help="Say where this folder's job is.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file with sections dump, train and export: settings that the job has no field for.",
)
@with_options(
    flags_of(
        (DumpConfig, ExportConfig),
        {"Stages": ("--backend", flag("--validation", "--validate", "validation"))},
    )
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, help="Ranks that train (torchrun)."
)
@click.option("--time-limit", type=click.FloatRange(min=0), help="Seconds; then save and exit 5.")
@json_option
def run(
    job: Path | None,
    out: Path | None,
    status: Path | None,
    config_file: Path | None,
    backend: str | None,
    validation: tuple[str, ...] | None,
    processes: int,
    time_limit: float | None,
    as_json: bool,
) -> None:
    """Run a spec-draft fine-tuning job, as the Token Factory API takes it, on this machine.

    \b
      specpipe run sample_data/job.json --out runs/job
      specpipe run --status runs/job

    JOB is the request body: model, training_file (a path or URL), method, seed, suffix. Dump,
    train, export and report run one after the other in OUT, which ends with
    checkpoint/model.safetensors, checkpoint/config.json, metrics.jsonl under the API's names, and
    report.html. Killed or stopped at any moment, the same command goes on; a finished job does
    nothing. Hyperparameters that are left out are the API's (n_epochs 1, loss kl, ...), not those
    of `specpipe train`: docs/jobs.md has both.

    \b
    What the API has no field for comes by --config:
      dump:   {backend: vllm, generate: {temperature: 1.0}}
      train:  {draft_vocab_size: 32000, state_loss: 0}
      export: {validation: [structure, replay, serve]}
    """
    from specpipe.pipeline.job.folder import JobFolder
    from specpipe.pipeline.job.status import job_report

    if status is not None:
        if job is not None or out is not None:
            raise ConfigError("--status DIR stands alone: without JOB and --out")
        report = job_report(JobFolder(status))
    else:
        if job is None or out is None:
            raise ConfigError("give JOB.json and --out DIR, or --status DIR")
        flags: dict[str, dict[str, Any]] = {}
        if backend is not None:
            flags["dump"] = {"backend": backend}
        if validation is not None:
            flags["export"] = {"validation": list(validation)}
        report = _run(job, out, config_file, flags, processes, time_limit)
    show("Job", _rows(report), report.model_dump(mode="json"), as_json=as_json)


def _run(
    job: Path,
    out: Path,
    config_file: Path | None,
    flags: dict[str, dict[str, Any]],
    processes: int,
    time_limit: float | None,
) -> JobReport:
    from specpipe.pipeline.job.folder import JobFolder
    from specpipe.pipeline.job.runner import JobRunner
    from specpipe.pipeline.job.settings import job_settings, read_job, read_sections
    from specpipe.pipeline.job.status import job_report

    extra = read_sections(config_file)
    for section, given in flags.items():
        extra[section] = {**extra.get(section, {}), **given}
    settings = job_settings(read_job(job), extra, out)
    folder = JobFolder(out)
    runner = JobRunner(folder, settings, processes=processes, time_limit=time_limit, note=note)
    did_something = runner.run()
    return job_report(folder, did_nothing=not did_something)


def _rows(report: JobReport) -> list[tuple[str, str]]:
    rows = [("job", f"{report.out}, for {report.model}"), ("state", _state(report))]
    rows += [(name, _stage(report, name)) for name in report.stages]
    if report.error is not None:
        rows.append(("error", report.error.message))
    for name, value in report.metrics.items():
        if name.startswith("validation/") and ("/number_of_tokens/" in name or "loss" in name):
            rows.append((name.removeprefix("validation/"), f"{value:.4f}"))
    rows += [("artifact", path) for path in report.artifact]
    if report.report is not None:
        rows.append(("report", report.report))
    return rows


def _state(report: JobReport) -> str:
    if report.did_nothing:
        return f"{report.status}; nothing to do"
    if report.status == "stopped":
        return "stopped; the same `specpipe run` goes on"
    if report.progress is None:
        return report.status
    total = "" if report.progress.total is None else f" of {report.progress.total:,}"
    return f"{report.status}: {report.progress.done:,}{total} {report.progress.unit}"


def _stage(report: JobReport, name: Any) -> str:
    stage = report.stages[name]
    if stage.status in ("running", "stopped") and report.running != name:
        return "stopped"
    if stage.started_at is None or stage.finished_at is None:
        return stage.status
    again = f", {stage.attempts} attempts" if stage.attempts > 1 else ""
    return f"{stage.status} in {stage.finished_at - stage.started_at:.0f} s{again}"
