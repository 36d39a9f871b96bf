"""Run a DAG once, in Airflow's own process without a scheduler; a program, for Airflow's Python.

    python airflow_run.py FILE.py CONF.json

Its last line is JSON: the state of the run, and state and number of tries of each task.
AIRFLOW_HOME has a database, and AIRFLOW__CORE__DAGS_FOLDER is the folder of FILE.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag  # type: ignore[import-not-found]


def main() -> None:
    file, conf = map(Path, sys.argv[1:])
    bag = DagBag(str(file))
    assert not bag.import_errors, bag.import_errors
    [dag] = bag.dags.values()
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=0)
    run = dag.test(run_conf=json.loads(conf.read_text()))
    tasks = {task.task_id: (task.state, task.try_number) for task in run.get_task_instances()}
    print(json.dumps({"state": run.state, "tasks": tasks}), flush=True)


if __name__ == "__main__":
    main()
