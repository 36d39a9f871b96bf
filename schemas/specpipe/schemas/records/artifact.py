"""The files of an artifact, and names that all formats have."""

MODEL_TENSORS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VALIDATION_FILE = "validation.json"
CARD_FILE = "README.md"
ARTIFACT_FOLDER = "checkpoint"

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"
