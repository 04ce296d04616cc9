"""`us-jepa promote`: a finished run into the model registry, and into use only where it beats what is in use."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.card import probe_text
from deploy.export import export_encoder
from deploy.promotion import Comparison, beats, load_comparison
from eval.encoders import open_encoder
from eval.probe_tables import ProbeTable, load_tables
from sharding.recording import InputError
from train.mlflow_store import in_one_sentence, recorded_run
from train.registry import CANDIDATE, CHAMPION, Entry, Version, find_alias, register, set_alias, set_tags

NOT_PROMOTED = 3  # exit code: all that was asked is done, and the encoder is candidate, not champion
_MAX_DESCRIPTION = 5000  # characters, what MLflow's databases hold


@dataclass(frozen=True)
class Promotion:
    """What is promoted.

    Attributes:
        run: directory of a finished pretraining.
        probe: folder of a comparison with the run's student in it; None is the only one below RUN/probe.
        name: of the registered model.
        data_licence: for the model card.
        force: into use whatever the paired test says.

    """

    run: Path
    probe: Path | None
    name: str = "us-jepa"
    data_licence: str = ""
    force: bool = False


@dataclass(frozen=True)
class Promoted:
    """What a promotion came to: a sentence, and whether the encoder is champion now, or only candidate."""

    text: str
    is_champion: bool


def promote(asked: Promotion) -> Promoted:
    """Register a run's encoder as `candidate`, and as `champion` where it beats the present one.

    Beating: a significant paired difference of macro F1 on a set at least, and none against it on any. The first
    encoder of a registry becomes champion as it comes. The same command again changes nothing.

    Returns:
        what was done. An encoder that does not beat the champion is registered, and stays candidate.

    Raises:
        InputError: the two were not compared, or the run is not finished, probed, or in MLflow; then nothing is
            registered. Or MLflow refuses or does not answer.

    """
    client, run_id = recorded_run(asked.run)
    folder = asked.probe or _only_probe(asked.run)
    comparison, identity = load_comparison(folder), open_encoder(str(asked.run)).identity
    if identity not in comparison.names:
        known = ", ".join(comparison.names.values())
        raise InputError(f"probe {folder}: the encoder of {asked.run} is not in it (it has {known}); {_advice(asked)}")
    with in_one_sentence(f"promote {asked.run}", "the same command goes on with it"):
        champion = find_alias(client, asked.name, CHAMPION)
        wins, reason = _judge(comparison, identity, champion, asked)
        tables = load_tables(folder)
        with tempfile.TemporaryDirectory() as scratch:
            export = export_encoder(asked.run, Path(scratch) / "export", "hf", tables, asked.data_licence)
            version = register(client, Entry(asked.name, run_id, identity, _description(asked.run, tables)), export)
        set_alias(client, asked.name, version, CANDIDATE)
        said = f"{asked.name} version {version.number}"
        if not wins and not asked.force:
            text = f"{said} is registered as {CANDIDATE}, and is not promoted: {reason}. --force does it anyway"
            return Promoted(text, is_champion=False)
        set_alias(client, asked.name, version, CHAMPION)
        because = reason if wins else f"forced, though: {reason}"
        set_tags(client, asked.name, version, {"us_jepa.promoted_because": because})
    return Promoted(f"{said} is {CHAMPION}: {reason}" + ("" if wins else " (forced)"), is_champion=True)


def _judge(comparison: Comparison, identity: str, champion: Version | None, asked: Promotion) -> tuple[bool, str]:
    """Whether it goes into use, and why.

    Raises:
        InputError: the champion is in no comparison with it, and nobody forces it.

    """
    if champion is None:
        return True, "there was no champion"
    if champion.identity == identity:
        return True, "it was champion already"
    who = f"the champion, version {champion.number}"
    if champion.identity not in comparison.names:
        reason = f"{who}, is not in the comparison {comparison.folder}"
        if not asked.force:
            raise InputError(f"promote {asked.run}: {reason}; {_advice(asked, champion)}")
        return False, reason
    duels = comparison.duels(identity, champion.identity)
    wins = beats(duels)
    return wins, f"it {'beats' if wins else 'does not beat'} {who}, in the paired test ({'; '.join(map(str, duels))})"


def _advice(asked: Promotion, champion: Version | None = None) -> str:
    others = "" if champion is None else ",CHAMPION"
    where = "" if champion is None else f" (CHAMPION: the run directory or export of MLflow run {champion.run_id})"
    return (
        f"compare them on the same sets first: `us-jepa probe --encoders {asked.run}{others} --sets ... --out DIR`, "
        f"then --probe DIR{where}"
    )


def _only_probe(run: Path) -> Path:
    found = sorted(path.parent for path in (run / "probe").glob("*/results.json"))
    if len(found) != 1:
        raise InputError(
            f"promote {run}: {len(found)} finished probes below {run / 'probe'}; name one with --probe DIR"
        )
    return found[0]


def _description(run: Path, tables: Sequence[ProbeTable]) -> str:
    said = [f"Encoder of run `{run.resolve().name}`.", *map(probe_text, tables)]
    return "\n\n".join(said)[:_MAX_DESCRIPTION]
