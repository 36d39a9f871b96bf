"""Level `replay`: the exported files give the trainer's acceptance."""
