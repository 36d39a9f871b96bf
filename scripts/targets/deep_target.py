"""Write a target with the distribution of another one and the cost of a deeper one.

Layers are put behind the last whose outputs are zero, so that they add nothing to what is computed.
A draft step is then as cheap beside the target's as it is for a real one, which no small target
offers: how many tokens to draft can be measured on a CPU.

    scripts/make_deep_target --target sample_data/target --add 24 --out runs/deep
"""

from pathlib import Path

import click
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

_ADDS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""What a layer of Llama's kind adds to the residual stream comes through these."""


@click.command()
@click.option("--target", default="sample_data/target", show_default=True)
@click.option("--add", "num_added", default=24, show_default=True, help="Layers to add.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(target: str, num_added: int, out: Path) -> None:
    """Write the deeper target to OUT."""
    shallow = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    config = AutoConfig.from_pretrained(target)
    first = config.num_hidden_layers
    config.num_hidden_layers += num_added
    torch.manual_seed(0)
    deep = AutoModelForCausalLM.from_config(config, dtype=shallow.dtype)
    deep.load_state_dict(shallow.state_dict(), strict=False)
    with torch.no_grad():
        for layer in deep.model.layers[first:]:
            for name in _ADDS:
                layer.get_parameter(name).zero_()
    input_ids = torch.arange(64)[None]
    if not torch.equal(deep(input_ids).logits, shallow(input_ids).logits):
        raise click.ClickException(f"the layers of {target} are of another kind: its logits change")
    deep.save_pretrained(out)
    AutoTokenizer.from_pretrained(target).save_pretrained(out)


if __name__ == "__main__":
    main()
