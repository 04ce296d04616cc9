"""From committed units to a manifest: copies across units are taken out, everything is counted.

A pure function of what the units wrote, and one that may be killed and repeated: a line that lost keeps the hashes by
which it lost, and a tar from which a clip was taken is the same when the clip is taken out again.
"""

import json
import re
import tarfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sharding.deidentify import Pseudonyms, load_key
from sharding.duplicates import find_copies
from sharding.manifest import Manifest, ShardInfo
from sharding.plan import Plan
from sharding.policy import Job, tools
from sharding.recording import Reason
from sharding.store import Store
from sharding.unit import commit, read_lines, record_name
from sharding.writer import write_shard

MANY_STUDIES = 20  # of one identifier: more are seldom one patient's
_OURS = re.compile(r"(train|val)-\d{5}-\d{3}\.tar")


def merge(job: Job, plan: Plan, plan_hash: str) -> Manifest:
    """Take copies out and write the manifest."""
    out = Store(job.out)
    for unit, rows in _find_copies_across(out, plan).items():
        _take_out(out, unit, rows)
    counts = _count(out, plan)
    if plan.num_links:
        counts.notes["links_not_followed"] = plan.num_links
    _delete_unnamed(out, {shard.name for shard in counts.shards})
    manifest = Manifest(
        codec=job.policy.codec,
        dataset=job.policy.dataset,
        plan=plan_hash,
        key_id=Pseudonyms(load_key(job.key_file)).of("key", "id"),
        pixels=job.policy.pixels,
        max_frames=job.policy.choice.max_frames,
        stride=job.policy.choice.stride,
        val_share=job.policy.val_share,
        tools=tools(),
        outcomes=dict(sorted(counts.outcomes.items())),
        certificates=dict(sorted(counts.certificates.items())),
        notes=dict(sorted(counts.notes.items())),
        shards=tuple(sorted(counts.shards, key=lambda shard: shard.name)),
    )
    manifest.save(out)
    return manifest


def _find_copies_across(out: Store, plan: Plan) -> dict[int, dict[int, Reason]]:
    """Unit -> row -> reason, for recordings that another unit's recording displaces. 25 bytes of memory per source."""
    units, rows, instances, contents, lossy = array("I"), array("I"), array("Q"), array("Q"), array("B")
    for unit in range(plan.num_units):
        for row, line in enumerate(read_lines(out, unit)):
            if "content" in line:
                units.append(unit)
                rows.append(row)
                instances.append(line["instance"])
                contents.append(line["content"])
                lossy.append(line["lossy"])
    found: dict[int, dict[int, Reason]] = defaultdict(dict)
    if units:
        hashes = np.frombuffer(instances, np.uint64), np.frombuffer(contents, np.uint64)
        for place, reason in find_copies(*hashes, np.frombuffer(lossy, np.uint8) > 0).items():
            found[units[place]][rows[place]] = reason
    return found


def _take_out(out: Store, unit: int, rows: dict[int, Reason]) -> None:
    """Remove the samples of some recordings from the tars of a unit, then say so in its outcomes."""
    lines = read_lines(out, unit)
    gone = {clip for row in rows for clip in lines[row]["clips"]}
    record = json.loads(out.read(record_name(unit)))
    shards = [_without(out, ShardInfo(**shard), gone) for shard in record["shards"]]
    for row, reason in rows.items():
        lines[row]["outcome"] = str(reason)
    commit(out, unit, [shard for shard in shards if shard.num_samples], record["refused"], lines)


def _delete_unnamed(out: Store, named: set[str]) -> None:
    """Delete tars that no unit names: emptied just now, or left by a run that was killed."""
    for name in out.names("", ".tar"):
        if name not in named and _OURS.fullmatch(name):
            out.delete(name)


def _without(out: Store, shard: ShardInfo, gone: set[str]) -> ShardInfo:
    """Write a tar again without some clips. One that is left empty is deleted later."""
    kept: list[str] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for sample in samples_of(out, shard.name):
            said = json.loads(next(data for name, data in sample if name.endswith(".json")))
            if said["clip"] not in gone:
                kept.append(sample[0][0])
                yield from sample

    num_bytes, sha256 = write_shard(out, shard.name, members())
    return shard.model_copy(update={"num_samples": len(kept), "num_bytes": num_bytes, "sha256": sha256})


def samples_of(out: Store, name: str) -> Iterator[list[tuple[str, bytes]]]:
    """The samples of a tar in its order, each as its members (file name, content)."""
    sample: list[tuple[str, bytes]] = []
    with out.open(name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise ValueError(f"member {member.name!r} is no file")
            if sample and _key(sample[0][0]) != _key(member.name):
                yield sample
                sample = []
            sample.append((member.name, content.read()))
    if sample:
        yield sample


def _key(name: str) -> str:
    return name.partition(".")[0]


@dataclass
class _Counts:
    outcomes: Counter[str] = field(default_factory=Counter)
    certificates: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    shards: list[ShardInfo] = field(default_factory=list)
    patients: "array[int]" = field(default_factory=lambda: array("Q"))
    studies: "array[int]" = field(default_factory=lambda: array("Q"))


def _count(out: Store, plan: Plan) -> _Counts:
    counts = _Counts()
    for unit in range(plan.num_units):
        for line in read_lines(out, unit):
            counts.outcomes[line["outcome"]] += 1
            if line["outcome"] == "accepted":
                counts.certificates.update(line["certificates"])
                counts.notes.update(line["notes"])
                if "patient" in line:
                    counts.patients.append(line["patient"])
                    counts.studies.append(line["study"])
        counts.shards += [ShardInfo(**shard) for shard in json.loads(out.read(record_name(unit)))["shards"]]
    counts.notes.update(_many_studies(counts.patients, counts.studies))
    return counts


def _many_studies(patients: "array[int]", studies: "array[int]") -> dict[str, int]:
    """How many identifiers of patients cover many studies, and how many studies the largest has; none: nothing."""
    if not patients:
        return {}
    pairs = np.unique(np.stack([np.frombuffer(patients, np.uint64), np.frombuffer(studies, np.uint64)], 1), axis=0)
    num_studies = np.unique(pairs[:, 0], return_counts=True)[1]
    many = num_studies[num_studies > MANY_STUDIES]
    return {"patients_of_many_studies": len(many), "studies_of_one_patient": int(many.max())} if len(many) else {}
