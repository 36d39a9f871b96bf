"""What stands in docs/mtp.md.

python -m scripts.mtp masks --out DIR      the peer's mask and input beside ours, in tau
python -m scripts.mtp engine --out DIR     vLLM beside the replay, for each of --families
python -m scripts.mtp stitched --out DIR   a stitched checkpoint beside an untouched one
"""

import argparse
import json
from pathlib import Path

from scripts.mtp.peer import VARIANTS, trained_as
from scripts.targets.mtp_target import mtp_target
from specpipe.schemas.settings.stages import ConvertConfig, DumpConfig, ExportConfig, GenerateConfig
from specpipe.schemas.settings.train import TrainConfig
from specpipe.stages.dump.run import run as dump
from specpipe.stages.export.convert import run as convert
from specpipe.stages.export.run import run as export
from specpipe.stages.train.run import run as train
from specpipe.stages.validate.serve.engine import EngineRequest, decode

SAMPLE = Path(__file__).parents[2] / "sample_data"
DRAFTS = 3
FAMILIES = ["mimo", "glm4_moe", "qwen3_5"]
CODE = Path("runs/code")
"""Where scripts/make_code_target has put its target, of which Qwen3.5's is made."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts.mtp", description=__doc__)
    parser.add_argument("what", choices=("masks", "engine", "stitched"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "masks":
        masks(options.out, options.steps, options.seeds)
    for family in options.families if options.what == "engine" else ():
        engine(options.out, family, options.steps)
    if options.what == "stitched":
        stitched(options.out, options.steps)


def dumps(out: Path, family: str) -> tuple[Path, Path]:
    """The dump of what the target wrote, and one of what it wrote to other prompts."""
    target = out / "target"
    if not target.exists():
        mtp_target(target, family, *([CODE / "target"] if family == "qwen3_5" else []))
    layers = json.loads((target / "config.json").read_text())["num_hidden_layers"]
    folders = []
    for part in ("train", "held_out"):
        folders.append(out / f"dump_{part}")
        dump(
            DumpConfig(
                target=str(target),
                data=(str(texts(family, part)),),
                generate=GenerateConfig(max_tokens=128) if family == "qwen3_5" else None,
                out=str(folders[-1]),
                backend="hf",
                layers=(layers,),
            )
        )
    return folders[0], folders[1]


def texts(family: str, part: str) -> Path:
    """What the target wrote; of Qwen3.5's kind the prompts that it answers."""
    return CODE / f"{part}.jsonl" if family == "qwen3_5" else SAMPLE / part / "generated.jsonl"


def trained(out: Path, family: str, name: str, steps: int, seed: int = 0) -> list[float]:
    """The replayed tau at temperature 1, by draft tokens, of a fresh layer."""
    of_train, held_out = dumps(out, family)
    result = train(
        TrainConfig(
            dump=str(of_train),
            eval_dump=str(held_out),
            out=str(out / name),
            drafter={"kind": "mtp"},
            num_heads=DRAFTS,
            max_steps=steps,
            batch_tokens=2048,
            learning_rate=3e-3,
            eval_every=steps,
            seed=seed,
        )
    )
    assert result.best is not None
    return list(result.best.replay_temperature_1.tau)


def masks(out: Path, steps: int, seeds: int) -> None:
    """On GLM-4-MoE's kind, which takes the normed state."""
    print("| trained with | seed | tau, 1 draft token | 2 | 3 |\n|---|---|---|---|---|", flush=True)
    for seed in range(seeds):
        for number, variant in enumerate(VARIANTS):
            with trained_as(variant):
                tau = trained(out, "glm4_moe", f"run-{seed}-{number}", steps, seed)
            cells = " | ".join(f"{value:.3f}" for value in tau)
            print(f"| {variant} | {seed} | {cells} |", flush=True)


def artifact(out: Path, family: str, steps: int, *levels: str) -> Path:
    name = f"{family}-run"
    trained(out / family, family, name, steps)
    folder = out / family / "-".join(("artifact", *levels))
    export(
        ExportConfig(
            checkpoint=str(out / family / name),
            out=str(folder),
            validation=("structure", "replay", *levels),
            serve_prompts=32,
            serve_max_tokens=64,
            serve_batch_sizes=(1,),
            serve_speculative_tokens=(DRAFTS,),
        )
    )
    return folder


def engine(out: Path, family: str, steps: int) -> None:
    folder = artifact(out, family, steps, "serve")
    found = json.loads((folder / "validation.json").read_text())["serve"]
    for run in found["runs"]:
        same = run["lossless_greedy"]
        print(f"| {family} | unchanged | {same['num_identical']} of {same['num_prompts']} |")
        for name in ("greedy", "temperature_1"):
            tau = run[name]
            measured, replayed = tau["tau_measured"], tau["tau_replayed"]
            print(f"| {family} | {name} | {measured:.4f} | {replayed:.4f} | {tau['passed']} |")


def stitched(out: Path, steps: int) -> None:
    """The same prompts, seeds and drafts, the layer beside the target and in its checkpoint."""
    folder = artifact(out, "mimo", steps) / "checkpoint"
    target, whole = out / "mimo" / "target", out / "mimo" / "stitched"
    convert(
        ConvertConfig(source=str(folder), out=str(whole), format="stitched", target=str(target))
    )
    lines = (SAMPLE / "held_out" / "generated.jsonl").read_text().splitlines()[:16]
    prompts = [json.loads(line)["input_ids"][:24] for line in lines]
    of = {}
    for name, (model, drafter) in {"beside": (target, folder), "in it": (whole, whole)}.items():
        result = decode(
            EngineRequest(
                target=str(model),
                artifact=str(drafter.resolve()),
                method="mtp",
                num_draft_tokens=DRAFTS,
                prompts=prompts,
                max_tokens=64,
                temperatures=[0.0, 1.0],
                seed=0,
            )
        )
        of[name] = [(run.output_ids, run.accepted_per_round) for run in result.decoded]
    for at, temperature in enumerate((0, 1)):
        (texts, rounds), (others, other_rounds) = of["beside"][at], of["in it"][at]
        assert rounds is not None
        is_same = texts == others and rounds == other_rounds
        num = sum(map(len, rounds))
        accepted = sum(map(sum, rounds))
        print(f"| temperature {temperature} | {num} rounds | {accepted} accepted | {is_same} |")


if __name__ == "__main__":
    main()
