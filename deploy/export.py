"""An encoder folder with a model card, for people who were not there when it was trained."""

import json
import shutil
from pathlib import Path

from eval.probe_tables import ProbeTable
from train.vit import load_encoder


def export_encoder(run_dir: Path, out: Path, tables: list[ProbeTable]) -> Path:
    """Copy a run's encoder and write README.md beside it; the copy is loaded strictly before it is handed over.

    Args:
        run_dir: finished run.
        out: folder to make or refresh.
        tables: probe results for the card.

    Raises:
        InputError: the run has no encoder, or its weights do not fit.

    """
    load_encoder(run_dir / "encoder")
    shutil.copytree(run_dir / "encoder", out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text())
    (out / "README.md").write_text(_card(config, tables))
    load_encoder(out)
    return out


def _card(config: dict[str, dict[str, str]], tables: list[ProbeTable]) -> str:
    facts = "\n".join(f"- {key}: `{value}`" for key, value in config["us_jepa"].items())
    parts = [
        f"# {config['architecture']}, pretrained with us-jepa",
        "Input: one grey channel in 0..1, normalised with the mean and deviation in config.json; region fitted into a "
        "black square. Output: patch tokens; average those inside the region.",
        f"Load: `timm.create_model('local-dir:{{folder}}', pretrained=True)`.\n\n{facts}",
        *(_probe_text(table) for table in tables),
        "Limits: a research encoder. It was not evaluated for diagnosis, and its features may carry device and site.",
    ]
    return "\n\n".join(parts) + "\n"


def _probe_text(table: ProbeTable) -> str:
    header, *rows = table.rows
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *rows)]
    return f"Linear probe on {table.name}. {table.verdict}\n\n" + "\n".join(lines)
