"""Configs as people write them: right, or one sentence that says where and what would be right."""

import math
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.rates import load_rates
from sharding.profiles import load_profiles
from sharding.recording import InputError
from sharding.yaml_file import parse_yaml, read_yaml
from tests.cases.config_files import BASE, config_files
from train.config import PretrainConfig
from train.config_file import load_config
from train.job import make_objective

RIGHT: dict[str, dict[str, Any]] = {
    "plain": {},
    "exponent": {"optim.lr": 1e-3},
    "float_steps": {"optim.steps": 4},
    "underscore": {"optim.batch": 8},
    "bom": {"objective": "pixel"},
    "crlf": {},
    "dir_tilde": {"run.dir": Path("~/us-jepa-run").expanduser()},
    "canvas_small": {"data.canvas": 8},
    "batch_larger": {"optim.batch": 500},
}
WRONG = {
    "section_twice": "optim is given twice, in lines 6 and 8; keep one of them",
    "key_twice": "lr is given twice, in line 6, columns 46 and 58; keep one of them",
    "key_twice_block": "depth is given twice, in lines 6 and 9; keep one of them",
    "exponent_steps": "optim.steps: Input should be a valid integer, unable to parse string as an integer, not '1e1'",
    "comma_number": "optim.lr: Input should be a valid number, unable to parse string as a number, not '0,001'",
    "octal": "010 in line 6 can be read in two ways: write a number without leading zeros and colons, or text in quote",
    "tab": "not YAML: while scanning for the next token found character '\\t' that cannot start any token",
    "experiment_number": "run.experiment: Input should be a valid string, not 2026",
    "experiment_date": "run.experiment: Input should be a valid string, not datetime.date(2026, 11, 30)",
    "dir_number": "0123 in line 7 can be read in two ways: write a number without leading zeros and colons, or text in",
    "dir_date": "run.dir: must be a path; put it in quotes, not datetime.date(2026, 11, 30)",
    "dir_env": "run.dir: variables of the shell are not replaced here; write the path out, not '$HOME/us-jepa-run'",
    "precision_no": "optim.precision: must not be true or false (to YAML, also yes, no, on and off)",
    "empty": "data: missing; optim: missing; run: missing",
    "list": "holds a list; sections such as `data:` are needed",
    "nothing_section": "predictor: must be a section with keys, not None",
    "shards_string": "data.shards: must be a list, such as [this], not 'in/tars/plain'",
    "nan_lr": "optim.lr: Input should be a finite number, not nan",
    "inf_lr": "optim.lr: Input should be a finite number, not inf",
    "negative_lr": "optim.lr: Input should be greater than 0, not -0.001",
    "latin1": "line 8 is not UTF-8; it seems to be Windows-1252, in which it has 'Größe'; save the file as UTF-8",
    "scale_swapped": "masks.target_scale: the first number must not be above the second, not [0.2, 0.1]",
    "warmup_longer": "optim: warmup_steps is 40 and steps is 4; the warm-up must not be longer than the run",
    "size_not_multiple": "student.image_size 50: is no multiple of the patch of 8 pixels",
    "heads_not_divide": "timm cannot build it: dim should be divisible by num_heads",
    "context_too_many": "masks.context_tokens is 64: on a 6 x 6 grid 4 targets of 3 tokens leave 24; lower it",
    "tiny_grid": "masks.context_tokens is 8: on a 2 x 2 grid 4 targets of 3 tokens leave 0; lower it",
    "one_patch": "masks.context_tokens is 8: on a 1 x 1 grid 4 targets of 3 tokens leave 0; lower it",
}


def load(folder: Path, name: str) -> PretrainConfig:
    path = folder / f"{name}.yaml"
    path.write_bytes(config_files()[name])
    return load_config(path, [])


def load_text(folder: Path, text: str, *overrides: str) -> PretrainConfig:
    path = folder / "c.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))


def test_each_of_the_files_has_an_outcome() -> None:
    assert config_files().keys() == RIGHT.keys() | WRONG.keys()
    assert len(config_files()) == 37


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_config_is_read_as_it_was_meant(name: str, tmp_path: Path) -> None:
    cfg = load(tmp_path, name)
    for key, value in {"optim.lr": 1e-3, "optim.steps": 4, "predictor.depth": 1, **RIGHT[name]}.items():
        found: Any = cfg
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    make_objective(cfg, torch.device("cpu"))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_ends_in_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        make_objective(load(tmp_path, name), torch.device("cpu"))
    assert WRONG[name] in str(error.value)
    assert "\n" not in str(error.value)


def sections(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """Every section below a model that is one key away, by its key."""
    found = []
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        found += [(name, kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return found


def holds_numbers(field: FieldInfo) -> bool:
    inner = [one for arg in get_args(field.annotation) for one in (get_args(arg) or (arg,))]
    return float in (field.annotation, *inner) or int in (field.annotation, *inner)


def fields_with_numbers() -> list[tuple[str, str, FieldInfo]]:
    return [
        (section, name, field)
        for section, kind in sections(PretrainConfig)
        for name, field in kind.model_fields.items()
        if holds_numbers(field) and get_origin(field.annotation) is not type(None)
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e9, True], ids=str)
@pytest.mark.parametrize(("section", "key", "field"), fields_with_numbers(), ids=lambda part: str(part)[:30])
def test_no_number_of_any_section_is_without_bounds(
    section: str, key: str, field: FieldInfo, value: float, tmp_path: Path
) -> None:
    if (section, key, value) == ("target", "layers", -1e9):
        pytest.skip("the teacher knows how many layers it has")
    text = str(value).replace("nan", ".nan").replace("inf", ".inf")
    is_list = get_origin(field.annotation) is tuple
    num = sum(arg is not ... for arg in get_args(field.annotation)) if is_list else 1
    written = f"[{', '.join([text] * num)}]" if is_list else text
    teacher = ("objective=salt", "teacher.source=random:test_vit") if section == "teacher" else ()
    with pytest.raises(InputError, match=rf"{section}\.{key}"):
        load_text(tmp_path, BASE, *teacher, f"{section}.{key}={written}")


def test_the_fields_are_found() -> None:
    found = {f"{section}.{key}" for section, key, _ in fields_with_numbers()}
    assert {"data.seed", "data.weights", "augment.blur_sigma", "masks.aspect", "predictor.width", "target.layers",
            "target.momentum", "optim.lr", "optim.weight_decay", "optim.betas", "run.cache_gib"} <= found  # fmt: skip
    assert len(found) >= 45


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.crop_scale=[0.9, 0.3]", "augment.crop_scale: the first number must not be above the second"),
        ("augment.crop_scale=[0, 0.3]", "augment.crop_scale.0: Input should be greater than 0, not 0"),
        ("augment.crop_aspect=[2, 1]", "augment.crop_aspect: the first number must not be above the second"),
        ("augment.blur_sigma=[2, 1]", "augment.blur_sigma: the first number must not be above the second"),
        ("augment.speckle_strength=[0.2, 0.1]", "augment.speckle_strength: the first number must not be above"),
        ("augment.contrast_range=[2, 1]", "augment.contrast_range: the first number must not be above the second"),
        ("masks.context_scale=[1, 0.8]", "masks.context_scale: the first number must not be above the second"),
        ("masks.aspect=[1.5, 0.75]", "masks.aspect: the first number must not be above the second"),
        ("masks.more=[{aspect: [2, 1]}]", "masks.more.0.aspect: the first number must not be above the second"),
        ("masks.more=[{foo: 1}]", "masks.more.0.foo: unknown key; known here: region, region_share"),
        ("optim.betas=[0.9, 1]", "optim.betas.1: Input should be less than 1, not 1"),
        ("optim.average=1", "optim.average: Input should be less than 1, not 1"),
        ("data.weights=[0]", "data: all weights are 0; give one data set a weight above 0"),
        ("predictor.num_heads=3", "predictor: width is 32; it must be a multiple of num_heads (3) and of 4"),
        ("predictor.width=30", "predictor: width is 30; it must be a multiple of num_heads (2) and of 4"),
        ("student.args={drop_path_rate: .nan}", "student.args: drop_path_rate is not finite"),
        ("optim={lr: 1, lr: 2}", "override 'optim={lr: 1, lr: 2}': lr is given twice, in line 1, columns 2 and 9"),
        ("optim.lr=[", "override 'optim.lr=[': not YAML"),
        ("optim.lr=2026-13-01", "override 'optim.lr=2026-13-01': month must be in 1..12"),
        ("optim.steps=1:30", "1:30 in line 1 can be read in two ways"),
        ("run.experiment=''", "run.experiment: String should have at least 1 character, not ''"),
        ("run.dir=''", "run.dir: must not be empty, not ''"),
    ],
)
def test_what_contradicts_itself_is_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_text(tmp_path, BASE, override)


PLACES = ("run.dir={}", "run.copy_to={}", "run.probe={}", "data.shards=[{}]", "teacher.source={}", "teacher.weights={}")


@pytest.mark.parametrize("place", PLACES)
def test_a_path_is_what_a_shell_would_make_of_it_or_refused(place: str, tmp_path: Path) -> None:
    def load_with(path: str) -> PretrainConfig:
        teacher = ("objective=salt", "teacher.source=x") if place.startswith("teacher") else ()
        return load_text(tmp_path, BASE, *teacher, place.format(f'"{path}"'))

    assert str(Path.home() / "a") in str(load_with("~/a").model_dump())
    assert "https://host/~anna/a" in str(load_with("https://host/~anna/a").model_dump()).replace(
        "https:/h", "https://h"
    )
    with pytest.raises(InputError, match=r"~nobody-here is no user of this machine; write the path out"):
        load_with("~nobody-here/a")
    for path in ("$HOME/a", "/scratch/${USER}/a"):
        with pytest.raises(InputError, match="variables of the shell are not replaced here; write the path out"):
            load_with(path)


def test_a_store_below_home_is_written_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.tracking_uri: ~ is not replaced in a URL; write the path out"):
        load_text(tmp_path, BASE, "run.tracking_uri=sqlite:///~/mlflow.db")


def test_aliases_and_merges_are_no_repeated_keys() -> None:
    text = "base: &base {a: 1, b: 2}\none: {<<: *base, a: 3}\ntwo: *base\nthree: {<<: [*base, {c: 1}], b: 1}\n"
    assert parse_yaml(text, "it") == {
        "base": {"a": 1, "b": 2}, "one": {"a": 3, "b": 2}, "two": {"a": 1, "b": 2},
        "three": {"a": 1, "b": 1, "c": 1},
    }  # fmt: skip
    assert parse_yaml("{a: 0, b: 0.5, c: 1e3, d: 0x10, e: '010', f: 12:30pm}", "it") == {
        "a": 0, "b": 0.5, "c": "1e3", "d": 16, "e": "010", "f": "12:30pm"
    }  # fmt: skip


def test_the_same_holds_for_profiles_and_rates(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("- manufacturer: ACME\n  model: A\n  rows: 10\n  manufacturer: Other\n")
    with pytest.raises(InputError, match=r"profiles .*mine: manufacturer is given twice, in lines 1 and 4"):
        load_profiles(path)
    path.write_bytes("# Größe\n".encode("latin-1"))
    for read in (load_profiles, load_rates):
        with pytest.raises(InputError, match=r"line 1 is not UTF-8; it seems to be Windows-1252"):
            read(path)
    path.write_text('{"machine": "a", "machine": "b"}')
    with pytest.raises(InputError, match=r"rates .*mine: machine is given twice, in line 1, columns 2 and 18"):
        load_rates(path)


def test_utf_16_with_its_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("a: Größe\n".encode("utf-16"))
    assert read_yaml(tmp_path / "c.yaml", "it") == {"a": "Größe"}
