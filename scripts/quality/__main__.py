"""How good are drafters as they come out of the box? The defaults, architectures, and peers.

    python -m scripts.quality --out runs/quality                           the defaults
    python -m scripts.quality --out runs/quality --drafter dflash          losses of blocks
    python -m scripts.quality --out runs/quality --architectures blocks  in one pass
    python -m scripts.quality --out runs/quality --architectures final-state
    python -m scripts.quality --out runs/quality --peers                   beside speculators 0.9.0
    python -m scripts.quality --out runs/quality --peers --tables          what is done so far

Drafters are judged by the replayed tau on held-out prompts, at temperature 1 on text of temperature
1 and greedily on greedy text: the study shows the half of them that settings are chosen by (with
--report the other one), the others the other one. Every cell that is done is skipped, so that
it may be ended and run again.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from scripts.bench.train_environment import peer_python
from scripts.commands import fits
from scripts.material import Material, Text, code_material, make_dumps, sample_material
from scripts.quality import architectures, peer_tables, study
from scripts.quality.architectures import STUDIES, Architectures, Study, architecture_cells
from scripts.quality.cell import dump_of
from scripts.quality.matrix import EAGLE3, study_cells
from scripts.quality.peers import HeadToHead, layers_of_both
from scripts.targets.mtp_target import mtp_target

TEXTS: tuple[Text, ...] = ("train", "held_out", "greedy")
Number = click.IntRange(min=1)
Folder = click.Path(path_type=Path)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--out", type=Folder, default=Path("runs/prove/quality"))
@click.option("--code", type=Folder, default=Path("runs/code"), help="The code target.")
@click.option("--materials", default="gsm8k,code", help="Targets and texts, with commas.")
@click.option("--only", default="*", help="Cells whose name fits one of these patterns.")
@click.option("--prompts", type=Number, default=500, help="To train on, of each target.")
@click.option("--held-out-prompts", type=Number, default=240, help="To judge on.")
@click.option("--answers", type=Number, default=1, help="To each training prompt.")
@click.option("--epochs", type=Number, default=5, help="With --peers: passes, of both sides.")
@click.option(
    "--max-steps",
    type=Number,
    help=f"Of the study; default: the trainer's own, of architectures {architectures.STEPS}.",
)
@click.option("--seeds", type=Number, default=1, help="Of the study, and of architectures.")
@click.option(
    "--drafter",
    type=click.Choice([EAGLE3, "peagle", "dflash", "dspark"]),
    default=EAGLE3,
    help="Of the study; of the others it compares losses.",
)
@click.option("--report", is_flag=True, help="Show the half that nothing was chosen by.")
@click.option("--architectures", type=click.Choice([*STUDIES]), help="A study of architectures.")
@click.option("--peers", is_flag=True, help="The head to head.")
@click.option("--serve", is_flag=True, help="With --peers: serve what is trained with vLLM.")
@click.option("--peer-python", help="Interpreter of an environment with speculators 0.9.0.")
@click.option("--processes", type=Number, default=1, help="Trainings at the same time.")
@click.option("--tables", is_flag=True, help="Only print what is there.")
def main(peers: bool, **options: Any) -> None:
    out: Path = options["out"]
    out.mkdir(parents=True, exist_ok=True)
    known = {"gsm8k": sample_material("gsm8k"), "code": code_material("code", options["code"])}
    materials = [known[name] for name in options["materials"].split(",")]
    kinds = STUDIES[options["architectures"]] if options["architectures"] else None
    if kinds is not None and kinds.has_mtp:
        materials = [_with_mtp(out, material) for material in materials]
    if not options["tables"]:
        for material in materials:
            stored = ("--layers", layers_of_both(material.target)) if peers else _stored(kinds)
            few = _few(out, material, options["prompts"], options["held_out_prompts"])
            left = [text for text in TEXTS if not _is_dumped(out, material, text)]
            make_dumps(out, few, options["answers"], left, stored)
    (_head_to_head if peers else _architectures if kinds else _study)(out, materials, options)


def _stored(kinds: Study | None) -> tuple[str, ...]:
    """Which layers a study of architectures asks for."""
    return () if kinds is None or kinds.shares_layers else ("--for", ",".join(kinds.drafters))


def _with_mtp(out: Path, material: Material) -> Material:
    """The target as one of a family that has MTP layers."""
    config = json.loads((material.target / "config.json").read_text(encoding="utf-8"))
    family = "mimo" if config["model_type"] == "llama" else "glm4_moe"
    name = f"{material.name}-{family}"
    return replace(
        material, name=name, target=mtp_target(out / f"target-{name}", family, material.target)
    )


def _few(out: Path, material: Material, train: int, held_out: int) -> Material:
    """Of the first so many prompts."""
    paths = []
    parts = {"train": (material.train, train), "held_out": (material.held_out, held_out)}
    for part, (path, most) in parts.items():
        copy = out / f"{material.name}-{part}.jsonl"
        if not copy.exists():
            with path.open(encoding="utf-8") as lines:
                copy.write_text("".join(islice(lines, most)), encoding="utf-8")
        paths.append(copy)
    return Material(material.name, material.target, *paths)


def _is_dumped(out: Path, material: Material, text: Text) -> bool:
    return Path(dump_of(out, material.name, text), "index.json").exists()


def _study(out: Path, materials: list[Material], options: dict[str, Any]) -> None:
    names = [material.name for material in materials]
    common = {"max_steps": options["max_steps"]} if options["max_steps"] else {}
    every = study_cells(names, options["drafter"], range(options["seeds"]), common)
    cells = [cell for cell in every if fits(cell.name, options["only"])]
    if not options["tables"]:
        with ThreadPoolExecutor(options["processes"]) as pool:
            list(pool.map(lambda cell: study.train(out, [cell]), cells))
    is_reported = options["report"] or options["drafter"] != EAGLE3
    study.print_tables(out, cells, "report" if is_reported else "choose")


def _architectures(out: Path, materials: list[Material], options: dict[str, Any]) -> None:
    kinds = STUDIES[options["architectures"]]
    every = architecture_cells(kinds, [material.name for material in materials], options["seeds"])
    cells = [cell for cell in every if fits(cell.name, options["only"])]
    trainings = Architectures(kinds, out, options["max_steps"] or architectures.STEPS)
    if not options["tables"]:
        for cell in cells:  # one at a time: those at equal time ask for others
            trainings.train(cell)
    architectures.print_tables(cells, trainings)


def _head_to_head(out: Path, materials: list[Material], options: dict[str, Any]) -> None:
    python = options["peer_python"]
    if not options["tables"] and python is None and (python := peer_python()) is None:
        raise click.ClickException("there is no speculators to compare with")
    arena = HeadToHead(out, materials, python or "", options["epochs"])
    cells = list(arena.cells(options["only"]))
    if not options["tables"]:
        # One material after the other in a thread: a cell may ask for others of its group.
        shares = [[cell for cell in cells if cell.material == m.name] for m in materials]
        with ThreadPoolExecutor(options["processes"]) as pool:
            list(pool.map(lambda share: arena.run(share, to_serve=options["serve"]), shares))
    peer_tables.print_tables(cells, arena.folder)


if __name__ == "__main__":
    main()
