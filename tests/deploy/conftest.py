"""A small encoder, its table, and a server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deploy.embed import Embedding, embed
from tests.deploy.server import Server, started
from train.vit import new_student, save_encoder

SIZE = 64


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small-encoder")
    torch.manual_seed(1)
    save_encoder(new_student("vit_tiny_patch16_224", SIZE, {"depth": 2}), folder, {"objective": "salt"})
    return folder


@pytest.fixture(scope="session")
def small_table(small_encoder: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small-table") / "frames.parquet"
    embed(Embedding(str(small_encoder)), str(shards), out)
    return out


@pytest.fixture(scope="session")
def guarded(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a token, tight limits, and certified pixels alone."""
    home = tmp_path_factory.mktemp("guarded") / "home"
    limits = ["--body-seconds", "2", "--max-mib", "4", "--seconds", "6", "--max-waiting", "6"]
    with started(small_encoder, home, *limits, with_token=True) as server:
        yield server


@pytest.fixture(scope="session")
def public(small_encoder: Path, small_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a token, with a table, and every picture."""
    home = tmp_path_factory.mktemp("public") / "home"
    with started(small_encoder, home, "--pixels", "public", "--table", str(small_table)) as server:
        yield server
