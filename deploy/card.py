"""The model card: what an encoder is, how to load it, where it comes from, what it was seen to do, and its limits."""

from collections.abc import Sequence
from typing import Any

from eval.probe_tables import ProbeTable
from sharding.manifest import MANIFEST, load_manifest
from sharding.recording import InputError
from sharding.store import Store
from train.config import PretrainConfig

_LOADING = {
    "timm": 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\ntokens = model.forward_features(x)',
    "onnx": 'session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
    'embeddings, tokens = session.run(None, {"images": images, "regions": regions})',
    "torch": 'model = torch.export.load("FOLDER/model.pt2").module()\nembeddings, tokens = model(images, regions)',
}
_LOADING["hf"] = _LOADING["timm"] + (
    '\n\n# or\nmodel = transformers.AutoModel.from_pretrained("FOLDER").eval()\n'
    "tokens = model(pixel_values=x).last_hidden_state"
)
_CHECK = (  # tools notice a file that was cut short, not a weight that was altered
    "Check the files before you load them: `sha256sum -c SHA256SUMS` in this folder."
)
_NORMALISED = "`x` is `(images - {mean}) / {std}`; average the tokens whose patch has a pixel inside the region."
_POOLED = "Both inputs are float32; `embeddings` are the mean of the tokens inside the region."


def model_card(
    config: dict[str, Any], cfg: PretrainConfig, to: str, tables: Sequence[ProbeTable], data_licence: str
) -> str:
    """README.md of an export.

    Args:
        config: config.json of the encoder folder.
        cfg: of the pretraining.
        to: format of the export.
        tables: probe results; where there are none, the card says so.
        data_licence: of the training data; where it is empty, the card says that nobody gave it.

    """
    described = config["pretrained_cfg"]
    channels, side, _ = described["input_size"]
    pooled = (
        _POOLED if to in ("onnx", "torch") else _NORMALISED.format(mean=described["mean"][0], std=described["std"][0])
    )
    parts = [
        _front_matter(to),
        f"# {config['architecture']}, pretrained on ultrasound with us-jepa",
        f"Input: `images` (B, {channels}, {side}, {side}), grey levels in 0..1; the ultrasound region, stretched to "
        "its 2 and 98 % grey levels and fitted into a black square. Output: patch tokens, row by row.",
        f"```python\n{_LOADING[to]}\n```",
        _CHECK,
        pooled,
        "## Training\n\n" + _bullets(_origin(config) | _recipe(cfg)),
        "## Data\n\n" + "\n".join(map(_data_set, cfg.data.shards)),
        f"Licence of the data: {data_licence or 'not given by whoever exported this; ask before you pass it on'}.",
        "## Probe\n\n" + ("\n\n".join(map(probe_text, tables)) or "Not probed when it was exported."),
        "## Use\n\nFor research: features for classifiers, retrieval and segmentation heads that are trained and "
        "validated on your own labelled data, with patients kept apart.",
        "## Limits\n\nNo medical device, and not evaluated for diagnosis. Features may carry scanner, site and "
        "operator. Frames unlike the training data (other organs, probes, Doppler colour) were not tested.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(to: str) -> str:
    library = {"onnx": "onnx", "torch": "pytorch"}.get(to, "timm")
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction", "tags: [ultrasound, us-jepa]"]
    return "\n".join(["---", *lines, "---"])


def _recipe(cfg: PretrainConfig) -> dict[str, Any]:
    """What the method's settings were, in the words of the config."""
    masks = cfg.masks
    recipe = {
        "batch": cfg.optim.batch,
        "learning_rate": cfg.optim.lr,
        "predictor": f"depth {cfg.predictor.depth}, width {cfg.predictor.width}, {cfg.predictor.mode}",
        "context": f"{masks.context_tokens} tokens, scale {masks.context_scale}",
        "targets": f"{masks.num_targets} blocks, scale {masks.target_scale}, region {'on' if masks.region else 'off'}",
        "target_normalisation": cfg.target.normalisation,
        "loss": cfg.target.loss,
    }
    return recipe | ({"teacher": _teacher(cfg)} if cfg.teacher else {})


def _teacher(cfg: PretrainConfig) -> str:
    """Its kind; a path of the training machine says nothing to others."""
    assert cfg.teacher is not None
    return "a run of us-jepa" if "/" in cfg.teacher.source else cfg.teacher.source


def _data_set(place: str) -> str:
    """A line on one data set, without its path."""
    if not Store(place).exists(MANIFEST):
        return "- tars without a manifest"
    manifest = load_manifest(place)
    certificates = ", ".join(f"{number} by {name}" for name, number in sorted(manifest.certificates.items()))
    frames = f"{manifest.num_samples()} frames, pixels {manifest.pixels}"
    return f"- {manifest.dataset}: {frames}; clips certified: {certificates}"


def _origin(config: dict[str, Any]) -> dict[str, Any]:
    """Facts that the run wrote: hashes of data, teacher and weights, commit, steps."""
    facts: dict[str, Any] = config["us_jepa"]
    if not facts:
        raise InputError("model card: the encoder's config.json says nothing of its training (us_jepa); export a run")
    return facts


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {key}: `{value}`" for key, value in facts.items())


def probe_text(table: ProbeTable) -> str:
    """A probe table in Markdown, with its verdict."""
    header, *rows = table.rows
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ("---",) * len(header), *rows)]
    return f"Probe `{table.protocol}` on {table.name}. {table.verdict}\n\n" + "\n".join(lines)
