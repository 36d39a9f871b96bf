"""A drafter a week, as an Airflow DAG (Airflow 3): dump, train, export, each a task of its own.

A command that stopped early (exit code 5) and one whose store failed (6) are tried again, and go
on where they stopped; so is one that was killed. Wrong usage (2), refused input (3), damaged data
(4) and what nobody foresaw (1) fail their task at once, and so does 6 of a training, which may have
diverged and would again. A task that is cleared in the browser is the same command again: what is
done does nothing.

specpipe is on the workers' PATH; `folder` lies where all of them reach it.
"""

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException


class SpecpipeOperator(BashOperator):
    """A command of specpipe; what it prints last, its result as JSON, is the task's XCom."""

    final = frozenset({1, 2, 3, 4})
    """Exit codes that the same command ends with again."""

    def execute(self, context: Any) -> Any:
        try:
            return super().execute(context)
        except AirflowException as error:
            process = self.subprocess_hook.sub_process
            if process is not None and process.returncode in self.final:
                raise AirflowFailException(
                    f"exit code {process.returncode}: no retry will help; the log says what would"
                ) from error
            raise


class TrainOperator(SpecpipeOperator):
    """`specpipe train`."""

    final = SpecpipeOperator.final | {6}


with DAG(
    dag_id="specpipe",
    description="Train a drafter on the week's traffic",
    schedule="@weekly",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={
        "target": Param("meta-llama/Llama-3.1-8B-Instruct", type="string"),
        "data": Param("s3://bucket/traffic/", type="string"),
        "folder": Param("/data/drafters", type="string"),
        "dump_options": Param("--workers 8", type="string"),
        "train_options": Param("--draft-vocab-size 32000", type="string"),
        "export_options": Param("--validation structure,replay", type="string"),
    },
    default_args={
        "retries": 20,
        "retry_delay": timedelta(minutes=1),
        # SIGTERM: the command saves, and the next try goes on.
        "execution_timeout": timedelta(hours=12),
        # Parameters reach the shell as variables, never as a part of what it parses.
        "append_env": True,
        "env": {
            "target": "{{ params.target }}",
            "data": "{{ params.data }}",
            "run": "{{ params.folder }}/{{ dag_run.run_after.strftime('%Y-%m-%dT%H%M%S') }}",
            "dump_options": "{{ params.dump_options }}",
            "train_options": "{{ params.train_options }}",
            "export_options": "{{ params.export_options }}",
        },
    },
) as dag:
    dump = SpecpipeOperator(
        task_id="dump",
        bash_command=(
            'specpipe dump --target "$target" --data "$data" --out "$run/dump" $dump_options --json'
        ),
    )
    train = TrainOperator(
        task_id="train",
        bash_command=('specpipe train --dump "$run/dump" --out "$run/train" $train_options --json'),
    )
    export = SpecpipeOperator(
        task_id="export",
        bash_command=(
            'specpipe export --checkpoint "$run/train" --out "$run/artifact" $export_options --json'
        ),
    )
    dump >> train >> export
