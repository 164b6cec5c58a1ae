"""What the libraries themselves kept of a run, read back: curves, config, group, status."""

import json
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("tensorboard", "trackio", "mlflow", "wandb")
BLOCK, HEAD = 32768, 7  # of the LevelDB log that a .wandb file is


@dataclass
class Told:
    """One run. `curves`: name → [(step, value)], in the order told."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    name: str = ""
    status: str = ""
    files: set[str] = field(default_factory=set)

    def add(self, name: str, step: int, value: float) -> None:
        self.curves.setdefault(name, []).append((step, value))


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of metrics.jsonl and of the record, under the names that trackers use."""
    found = Told()
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for key, value in row.items():
            if key != "step":
                name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
                found.add(name, row["step"], float(value))
    record = json.loads((run / "record.json").read_text())
    for when, step in (("before", 0), ("after", (record.get("training") or {}).get("steps"))):
        for key, value in ((record.get("metrics") or {}).get(when) or {}).items():
            found.add(f"{when}/{key}", step, value)
    return found.curves


def state(run: Path) -> dict:
    return json.loads((run / "tracker.json").read_text())


def read(kind: str, run: Path, folder: Path) -> Told:
    """The run of tracker `kind` that a run folder names. `folder`: tracker.folder."""
    return {"tensorboard": _tensorboard, "trackio": _trackio, "mlflow": _mlflow, "wandb": _wandb}[kind](run, folder)


def _tensorboard(run: Path, folder: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, found = EventAccumulator(state(run)["id"]).Reload(), Told(name=state(run)["run_name"])
    for tag in events.Tags()["scalars"]:
        found.curves[tag] = [(one.step, one.value) for one in events.Scalars(tag)]
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    lines = [line.strip() for line in texts.get("config/text_summary", "").splitlines()]
    found.config = dict(line.split("=", 1) for line in lines if line)
    found.status = texts.get("status/text_summary", "running")
    found.files = {"record.json"} & {"record.json" if "record/text_summary" in texts else ""}
    return found


def _trackio(run: Path, folder: Path) -> Told:
    own = state(run)["id"]
    file = next(one for one in folder.glob("*.db") if _knows(one, own))
    with sqlite3.connect(file) as store:
        rows = store.execute(
            "select step, metrics, run_name from metrics where run_id = ? order by id", (own,)
        ).fetchall()
        (config,) = store.execute("select config from configs where run_id = ?", (own,)).fetchone()
        kept = store.execute(
            "select manifest from artifact_versions v join run_artifact_links l on l.artifact_version_id = v.id where l.run_id = ?",
            (own,),
        ).fetchall()
    found = Told(config=json.loads(config), name=rows[0][2])
    for step, values, _ in rows:
        for name, value in json.loads(values).items():
            found.add(name, step, value)
    found.group, found.status = found.config["_Group"], found.config.get("status", "running")
    found.files = {entry["path"] for (text,) in kept for entry in json.loads(text)}
    return found


def _knows(file: Path, own: str) -> bool:
    with sqlite3.connect(file) as store:
        return bool(store.execute("select 1 from configs where run_id = ?", (own,)).fetchone())


def _mlflow(run: Path, folder: Path) -> Told:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    kept = client.get_run(state(run)["id"])
    found = Told(config=kept.data.params, name=kept.info.run_name, status=kept.info.status)
    found.group = kept.data.tags.get("peftrun.sweep")
    for name in kept.data.metrics:
        found.curves[name] = [(one.step, one.value) for one in client.get_metric_history(kept.info.run_id, name)]
    found.files = {one.path for one in client.list_artifacts(kept.info.run_id)}
    return found


def _wandb(run: Path, folder: Path) -> Told:
    """Every file of the id, oldest first: an offline run that goes on is a second one. A process of its own writes the last one to its end."""
    for _ in range(200):
        found, ended = _of_files(sorted(folder.glob(f"wandb/offline-run-*-{state(run)['id']}/*.wandb")))
        if ended:
            break
        time.sleep(0.2)
    return found


def _of_files(files: list[Path]) -> tuple[Told, bool]:
    from wandb.proto import wandb_internal_pb2 as proto

    found, ended = Told(status="running"), False
    for file in files:
        ended = False
        for data in _records(file.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            _take(found, record)
            ended |= record.WhichOneof("record_type") == "exit"
    return found, ended


def _take(found: Told, record) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        found.name, found.group = record.run.display_name, record.run.run_group or None
        found.config |= {(one.key or one.nested_key[0]): one.value_json for one in record.run.config.update}
    elif kind == "history":
        row = {(one.key or "/".join(one.nested_key)): json.loads(one.value_json) for one in record.history.item}
        for name, value in row.items():
            if name.split("/")[0] in ("train", "eval") and name != "train/global_step":
                found.add(name, row["train/global_step"], value)
    elif kind == "summary":
        for one in record.summary.update:
            name = one.key or "/".join(one.nested_key)
            if name.split("/")[0] in ("before", "after"):
                found.curves[name] = [(-1, json.loads(one.value_json))]
            elif name == "run/status":
                found.status = json.loads(one.value_json)
    elif kind == "artifact":
        found.files |= {one.path for one in record.artifact.manifest.contents}


def _records(data: bytes):
    """The records of a LevelDB log, after the seven bytes that say it is one of Weights & Biases."""
    place, parts = HEAD, b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + HEAD + length > len(data):
            return  # it is being written
        parts += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # whole, last
            yield parts
            parts = b""
