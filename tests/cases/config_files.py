"""Configs as people write them by hand, each a copy of one that works with one thing changed.

From ArcticTraining #85, fairchem PR 658, yacs #17, pyyaml #165 (a key twice); LlamaFactory #4014, allennlp #1429, spras
#484 (1e-4 is text in YAML); parsedmarc #485, aider #4078 (`~`); tabs, byte order marks, numbers as names, off and no.
"""

from pathlib import Path

BASE = """objective: pixel
data: {shards: [in/tars/plain], canvas: 48}
masks: {context_tokens: 8, target_tokens: 3, min_patches: 2}
student: {arch: vit_tiny_patch16_224, image_size: 48, args: {depth: 2, embed_dim: 48, num_heads: 2, patch_size: 8}}
predictor: {depth: 1, width: 32, num_heads: 2}
optim: {batch: 8, steps: 4, warmup_steps: 1, lr: 1.0e-3, precision: fp32}
run: {dir: runs/cfg, micro_batch: 8, zero_stage: 0, num_workers: 0, log_every: 2, save_every: 4}
"""
_PREDICTOR = "predictor: {depth: 1, width: 32, num_heads: 2}"
_BLOCK = "predictor:\n  depth: 1\n  width: 32\n  num_heads: 2"
_REPLACED = {
    "key_twice": ("lr: 1.0e-3", "lr: 1.0e-3, lr: 1.0e-6"),
    "key_twice_block": (_PREDICTOR, f"{_BLOCK}\n  depth: 2"),
    "exponent": ("1.0e-3", "1e-3"),
    "exponent_steps": ("steps: 4,", "steps: 1e1,"),
    "float_steps": ("steps: 4,", "steps: 4.0,"),
    "comma_number": ("1.0e-3", '"0,001"'),
    "underscore": ("batch: 8, steps", "batch: 0_8, steps"),
    "octal": ("batch: 8, steps", "batch: 010, steps"),
    "crlf": ("\n", "\r\n"),
    "tab": (_PREDICTOR, _BLOCK.replace("  ", "\t")),
    "experiment_number": ("log_every: 2", "log_every: 2, experiment: 2026"),
    "experiment_date": ("log_every: 2", "log_every: 2, experiment: 2026-11-30"),
    "dir_number": ("dir: runs/cfg", "dir: 0123"),
    "dir_date": ("dir: runs/cfg", "dir: 2026-11-30"),
    "dir_tilde": ("dir: runs/cfg", "dir: ~/us-jepa-run"),
    "dir_env": ("dir: runs/cfg", "dir: $HOME/us-jepa-run"),
    "precision_no": ("precision: fp32", "precision: no"),
    "nothing_section": (_PREDICTOR, "predictor:"),
    "shards_string": ("[in/tars/plain]", "in/tars/plain"),
    "nan_lr": ("1.0e-3", ".nan"),
    "negative_lr": ("1.0e-3", "-1.0e-3"),
    "inf_lr": ("1.0e-3", ".inf"),
    "scale_swapped": ("min_patches: 2", "min_patches: 2, target_scale: [0.2, 0.1]"),
    "warmup_longer": ("warmup_steps: 1", "warmup_steps: 40"),
    "size_not_multiple": ("image_size: 48", "image_size: 50"),
    "heads_not_divide": ("num_heads: 2, patch_size", "num_heads: 5, patch_size"),
    "context_too_many": ("context_tokens: 8", "context_tokens: 64"),
    "tiny_grid": ("image_size: 48", "image_size: 16"),
    "one_patch": ("image_size: 48", "image_size: 8"),
    "canvas_small": ("canvas: 48", "canvas: 8"),
    "batch_larger": ("batch: 8, steps", "batch: 500, steps"),
}


def config_files() -> dict[str, bytes]:
    """Content of each file by its name."""
    files = {name: BASE.replace(*change).encode() for name, change in _REPLACED.items()}
    return files | {
        "plain": BASE.encode(),
        "section_twice": (BASE + "optim: {batch: 8, steps: 4, precision: fp32}\n").encode(),
        "bom": BASE.encode("utf-8-sig"),
        "empty": b"",
        "list": b"- a\n- b\n",
        "latin1": (BASE + "# Größe\n").encode("latin-1"),
    }


def write_config_files(folder: Path) -> None:
    """Write all of them as NAME.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in config_files().items():
        (folder / f"{name}.yaml").write_bytes(content)
