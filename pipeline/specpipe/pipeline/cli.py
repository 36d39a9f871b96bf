"""The command line: parse, load the configuration, call one stage, print, exit code.

Heavy packages are imported inside the commands that need them, so that `--help` answers at once.
"""

import io
import logging
import sys
import traceback

import click

from specpipe.pipeline.commands.artifact.convert import convert
from specpipe.pipeline.commands.artifact.export import export
from specpipe.pipeline.commands.artifact.validate import validate
from specpipe.pipeline.commands.choose import choose
from specpipe.pipeline.commands.dump.command import dump
from specpipe.pipeline.commands.plan import plan
from specpipe.pipeline.commands.prepare import prepare
from specpipe.pipeline.commands.report import report
from specpipe.pipeline.commands.run import run
from specpipe.pipeline.commands.serve_api import serve_api
from specpipe.pipeline.commands.train.command import train
from specpipe.pipeline.commands.tune import tune
from specpipe.pipeline.commands.upkeep.gc import gc
from specpipe.pipeline.commands.upkeep.inspect import inspect
from specpipe.pipeline.commands.upkeep.verify import verify
from specpipe.pipeline.machine_faults import machine_fault
from specpipe.pipeline.terminal.console import fail, json_error, note
from specpipe.schemas.errors import SpecpipeError, UnfinishedError
from specpipe.stages.process.ending import end_without_a_search
from specpipe.stages.process.parent import end_with_the_parent

# vLLM's processes import this module before vLLM. What vLLM says until it has set its logging up
# (that Triton has no CPU backend, in each process) would be written bare.
logging.getLogger("vllm").addHandler(logging.NullHandler())

EPILOG = """\b
Exit codes:
  0  done (running a finished command again does nothing and exits 0)
  2  wrong usage or configuration, or the output belongs to something else
  3  refused input
  4  damaged data, or a validation that failed
  5  stopped early or unfinished: run the same command again to continue
  6  the store, the disk or the model hub failed, or training diverged
  1  anything unforeseen (please report it)
"""


@click.group(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.version_option(package_name="specpipe")
def specpipe() -> None:
    """Train workload-specific drafters for speculative decoding, offline.

    Three stages that meet only in files, each resumable by running it again:

    \b
      specpipe dump    run the target once, write its states to a dump
      specpipe train   train a drafter from the dump, without the target
      specpipe export  write the artifact that vLLM serves, and prove it

    Each takes --config FILE.yaml; flags on the command line win over the file.
    One job of all three, from one JSON file, for cron or an orchestrator:

    \b
      specpipe run JOB.json --out DIR

    First steps: specpipe plan says what a dump of your text will take, specpipe
    prepare shows which tokens are learned, specpipe inspect what a dump holds.
    """


for command in (
    prepare,
    plan,
    dump,
    choose,
    train,
    tune,
    export,
    convert,
    validate,
    verify,
    inspect,
    gc,
    report,
    run,
    serve_api,
):
    specpipe.add_command(command)


def main() -> None:
    """Entry point: a SpecpipeError and a fault of the machine are one line and its exit code,
    anything else is a traceback."""
    try:
        end_with_the_parent()
        end_without_a_search()
        # A command that ends in Exit(code) returns its code here.
        sys.exit(specpipe.main(standalone_mode=False) or 0)
    except SpecpipeError as error:
        fail(error)
    except click.Abort:
        fail(UnfinishedError("interrupted; run the same command again to continue"))
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        note(shown.getvalue().rstrip())
        json_error(error.format_message(), "UsageError")
        sys.exit(error.exit_code)
    except Exception as error:
        if (fault := machine_fault(error)) is not None:
            fail(fault)
        note(traceback.format_exc())
        json_error(str(error), type(error).__name__)
        sys.exit(SpecpipeError.exit_code)


if __name__ == "__main__":
    main()
