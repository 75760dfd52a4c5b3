"""Peekaboo's benchmark on any model in ComfyUI: prompts with boxes in, mIoU, coverage, centroid distance and AP50 out.

    python benchmarks/peekaboo_boxes.py imc_inputs.json --server http://127.0.0.1:8188 --workflow api.json \\
        --prompt-node Prompt --mask-node Masks --seed-node Seed --guide-node Guide --frames 81 --out output/imc

The list has the format of github.com/microsoft/Peekaboo, ``eval/*_inputs.json`` (LaSOT's needs ``--box-order xxyy``).
The workflow is one of yours, exported for the API. Its nodes are named by title or id, where needed with the input,
as in ``Prompt.text``. For every record the boxes become a mask video (white where the object should be), uploaded for
the mask node, such as *Load Video*; prompt, masks and seed are put in; the video is collected. With ``--guide-node``
each video is also made at strength 0, from the same seed. Then the detector looks for the subject in every frame.

All goes to ``--out``: ``masks/``, ``videos/guided/``, ``videos/unguided/`` and ``peekaboo.json``. A run that was
stopped goes on where it was. Nothing is downloaded. The example of docs/measured.md, with a server that has this
pack:

    python benchmarks/peekaboo_boxes.py benchmarks/shared/peekaboo_toybox_inputs.json --size 64x64 \\
        --workflow benchmarks/shared/peekaboo_toybox_api.json --prompt-node Prompt --subject-node Object \\
        --mask-node Masks --seed-node Seed --guide-node Guide --out output/peekaboo_toybox
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from shared.api_workflows import Workflow, film_entry, find_input, find_node, read_workflow, with_inputs
from shared.comfyui_server import ComfyUI, RunFailed
from shared.measuring import module

REPORT = "peekaboo.json"
GUIDED, UNGUIDED = "guided", "unguided"
FORMS = ("published", "corrected")
FOLDER = "peekaboo_boxes"
COLUMNS = ("clips", "miou", "miou_all_clips", "coverage", "centroid_distance", "ap50")
DONE, SOME_FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Targets:
    """Inputs of the workflow, as node and name.

    Attributes:
        prompt: takes the caption.
        masks: takes the name of the uploaded mask video.
        subject, seed, guide: take the subject, the seed, and strength 0 for the unguided video; any number of each.
        output: id of the node whose video is meant, None for the only one.
        prefix: of the names that it saves under, None where it has none.
    """

    prompt: tuple[str, str]
    masks: tuple[str, str]
    subject: tuple[tuple[str, str], ...]
    seed: tuple[tuple[str, str], ...]
    guide: tuple[tuple[str, str], ...]
    output: str | None
    prefix: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """One benchmark: what is made, and where.

    Attributes:
        records: of the list, in its order, with the seed of each.
        workflow: as it was exported.
        targets: inputs that are set.
        size: width and height of the masks in pixels.
        frames: of the masks; None takes each record's own number.
        out: folder of all that comes out.
        seconds: to wait for one video at most.
    """

    records: tuple[tuple[Any, int], ...]
    workflow: Workflow
    targets: Targets
    size: tuple[int, int]
    frames: int | None
    out: Path
    seconds: float

    @property
    def variants(self) -> tuple[str, ...]:
        """What is made of every record."""
        return (GUIDED, UNGUIDED) if self.targets.guide else (GUIDED,)

    def film(self, name: str, variant: str) -> Path | None:
        """The video of a record; None where it has not been made."""
        suffixes = module("recipes.films.decoding").FILM_SUFFIXES
        paths = (self.out / "videos" / variant / f"{name}{suffix}" for suffix in suffixes)
        return next((path for path in paths if path.is_file()), None)

    def wanted(self, record: Any, height: int, width: int) -> torch.Tensor:
        """Masks of a record for pictures of a size: bool [T, H, W]."""
        corners = record.corners(self.frames or len(record.boxes), height, width)
        return module("recipes.mask_metrics.peekaboo_protocol").draw_corners(corners, height, width)


def find_targets(workflow: Workflow, options: argparse.Namespace) -> Targets:
    """The inputs that options name.

    Raises:
        ValueError: no such node or input, one that is connected, or a strength that is no number.
    """

    def inputs(targets: Sequence[str], role: str) -> tuple[tuple[str, str], ...]:
        return tuple(find_input(workflow, target, role) for target in targets)

    output = find_node(workflow, options.output_node) if options.output_node else None
    savers = [output] if output else list(workflow)
    prefix = [(node, "filename_prefix") for node in savers if "filename_prefix" in workflow[node]["inputs"]]
    targets = Targets(
        find_input(workflow, options.prompt_node, "prompt"),
        find_input(workflow, options.mask_node, "masks"),
        inputs(options.subject_node, "subject"),
        inputs(options.seed_node, "seed"),
        inputs(options.guide_node, "guide"),
        output,
        tuple(prefix),
    )
    for number, name in targets.guide:
        value = workflow[number]["inputs"].get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"input {name!r} of the guide node {number} is {value!r}; name one that holds a number.")
    return targets


def prepared(run: Run, record: Any, seed: int, variant: str, masks: str) -> Workflow:
    """The workflow of one video.

    A prefix that nobody had before keeps the server from answering out of its cache, which names no files.
    """
    targets, token = run.targets, uuid.uuid4().hex[:8]
    values: list[tuple[tuple[str, str], Any]] = [(targets.prompt, record.caption), (targets.masks, masks)]
    values += [(target, record.subject) for target in targets.subject]
    values += [(target, seed) for target in targets.seed]
    values += [(target, 0.0) for target in targets.guide if variant == UNGUIDED]
    values += [(target, f"{FOLDER}/{record.name}_{variant}_{token}") for target in targets.prefix]
    return with_inputs(run.workflow, values)


def mask_film(run: Run, record: Any) -> Path:
    """Write the masks of a record as a video without loss."""
    width, height = run.size
    path = run.out / "masks" / f"{record.name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    masks = run.wanted(record, height, width)
    pictures = (mask.to(torch.uint8).mul(255)[..., None].expand(-1, -1, 3) for mask in masks)
    module("recipes.films.files").write_pictures(path, pictures, crf=0)
    return path


def make_film(run: Run, server: ComfyUI, record: Any, seed: int, variant: str) -> None:
    """Have the server make one video, and store it.

    Raises:
        RunFailed: the server refuses the workflow, or a node fails.
        ValueError: the server is gone, or the workflow makes no video.
    """
    suffixes = module("recipes.films.decoding").FILM_SUFFIXES
    masks = server.upload(mask_film(run, record), FOLDER)
    outputs = server.run(prepared(run, record, seed, variant, masks), run.seconds)
    entry = film_entry(outputs, suffixes, run.targets.output)
    folder = run.out / "videos" / variant
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}{Path(entry['filename']).suffix.lower()}"
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_bytes(server.fetch(entry))


def measure_film(run: Run, record: Any, variant: str, detector: Any, finding: Any) -> dict[str, Any]:
    """The protocol's measures of a video that is there, by the boxes of a detector."""
    report = module("recipes.mask_metrics.peekaboo_report")
    protocol = module("recipes.mask_metrics.peekaboo_protocol")
    path = run.film(record.name, variant)
    film = module("perception.frames").Film(module("recipes.films.files").read_film_bytes(path)[0])
    boxes = report.best_boxes(film, record.subject, detector, finding)
    found = protocol.draw_found(boxes, film.height, film.width)
    wanted = run.wanted(record, film.height, film.width)
    measured = protocol.measure_clip(wanted, found, [box is not None for box in boxes])
    return {"video": [len(film), film.height, film.width], "masks": len(wanted), **measured}


def collect(run: Run, connect: Callable[[], ComfyUI], judge: tuple[Any, Any], content: dict[str, Any]) -> Iterator[str]:
    """Make and measure what is missing; yields a line on each video after the content has it."""
    known = {(entry["id"], entry["variant"]) for entry in content["records"]}
    content["failed"] = []
    for record, seed in run.records:
        for variant in run.variants:
            made = run.film(record.name, variant) is not None
            if made and (record.name, variant) in known:
                continue
            started = time.monotonic()
            try:
                if not made:
                    make_film(run, connect(), record, seed, variant)
            except RunFailed as error:
                content["failed"].append({"id": record.name, "variant": variant, "error": str(error)})
                yield f"{record.name} {variant}: {error}"
                continue
            measured = measure_film(run, record, variant, *judge)
            stale = [entry for entry in content["records"] if (entry["id"], entry["variant"]) == (record.name, variant)]
            for entry in stale:
                content["records"].remove(entry)
            content["records"].append({"id": record.name, "variant": variant, "seed": seed, **measured})
            iou, seen = measured["corrected"]["iou"], measured["frames_detected"]
            words = "not defined" if iou is None else f"{iou:.3f}"
            yield (
                f"{time.monotonic() - started:6.1f} s  {record.name} {variant}: IoU {words}, "
                f"detected in {seen} of {measured['frames']} frames"
            )


def summarise(content: dict[str, Any]) -> dict[str, Any]:
    """Both forms of every measure per variant, over the records that both variants have."""
    variants = list(dict.fromkeys(entry["variant"] for entry in content["records"]))
    names = [{entry["id"] for entry in content["records"] if entry["variant"] == variant} for variant in variants]
    common = set.intersection(*names) if names else set()
    summarise_clips = module("recipes.mask_metrics.peekaboo_protocol").summarise_clips
    return {
        variant: summarise_clips(
            [entry for entry in content["records"] if entry["variant"] == variant and entry["id"] in common]
        )
        for variant in variants
    }


def table(summary: dict[str, Any]) -> str:
    """A row per variant and form."""
    lines = [f"{'':22}" + "".join(f"{name:>18}" for name in COLUMNS)]
    for variant, forms in summary.items():
        for form in FORMS:
            cells = (_cell(forms[form][name]) for name in COLUMNS)
            lines.append(f"{variant + ', ' + form:22}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "not defined"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def open_content(path: Path, made: dict[str, Any], judged: dict[str, Any]) -> dict[str, Any]:
    """What a run before has recorded, or a new content; measures of another judge are dropped.

    Raises:
        ValueError: the videos in the folder were made in another way, or nothing says how.
    """
    if not path.is_file():
        if (path.parent / "videos").exists():
            raise ValueError(
                f"{str(path.parent)!r} has videos and no {path.name} that says how they were made; "
                "choose another --out."
            )
        return {"settings": {"made": made, "judged": judged}, "records": [], "failed": []}
    content = json.loads(path.read_text(encoding="ascii"))
    before = content["settings"]["made"]
    other = [name for name in made if before.get(name) != made[name]]
    if other:
        raise ValueError(
            f"the videos in {str(path.parent)!r} were made with another {', '.join(other)}; choose another --out."
        )
    if content["settings"]["judged"] != judged:
        content["settings"]["judged"], content["records"] = judged, []
    return content


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the records and their summary; the file is replaced when it is complete."""
    content["summary"] = summarise(content)
    ordered = {key: content[key] for key in ("settings", "summary", "failed", "records")}
    # Not rounded: the summary of a run that goes on is that of one which was never stopped.
    with module("weight_files.writing").replacing(path) as temporary:
        temporary.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n", encoding="ascii")


def picture_size(text: str) -> tuple[int, int]:
    """``576x320`` as width and height; even, as the videos of masks want it."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 2 and int(side) % 2 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"it is {text!r}; give an even width and height, such as 576x320")
    return int(sides[0]), int(sides[1])


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description="Peekaboo's benchmark on a workflow of a running ComfyUI.")
    found.add_argument("list", type=Path, help="prompts with boxes, in the format of Peekaboo's eval/*_inputs.json")
    found.add_argument("--workflow", type=Path, required=True, help="exported for the API")
    found.add_argument("--server", default="http://127.0.0.1:8188")
    found.add_argument("--prompt-node", required=True, metavar="NODE", help="title or id, or NODE.INPUT")
    found.add_argument("--mask-node", required=True, metavar="NODE", help="such as Load Video; takes the mask video")
    found.add_argument("--seed-node", action="append", required=True, metavar="NODE", help="any number of them")
    found.add_argument("--subject-node", action="append", default=[], metavar="NODE", help="takes the object's words")
    found.add_argument(
        "--guide-node", action="append", default=[], metavar="NODE", help="strength 0 makes the video without guidance"
    )
    found.add_argument("--output-node", metavar="NODE", help="whose video is meant, where there are several")
    found.add_argument("--box-order", choices=("xyxy", "xxyy"), default="xyxy", help="xxyy for LaSOT's list")
    found.add_argument("--frames", type=int, help="of the workflow's video (default: a record's number of boxes)")
    found.add_argument("--size", type=picture_size, default=(576, 320), help="of the masks (default: 576x320)")
    found.add_argument("--seed", type=int, default=0, help="of the first record; each next one has the next")
    found.add_argument("--limit", type=int, help="only the first so many records")
    found.add_argument("--seconds", type=float, default=3600, help="to wait for one video at most")
    found.add_argument("--detector", type=Path, help="a GroundingDINO (default: the Toybox detector)")
    found.add_argument("--device", help="of the detector (default: cpu)")
    found.add_argument("--box-threshold", type=float, default=0.35)
    found.add_argument("--text-threshold", type=float, default=0.25)
    found.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    found.add_argument("--out", type=Path, default=Path("output") / "peekaboo")
    return found


def open_run(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """The run, and what its videos depend on.

    Raises:
        ValueError: a list, workflow or option that is wrong.
    """
    lists = module("recipes.mask_metrics.box_lists")
    for name in ("frames", "limit", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give at least 1.")
    for name in ("box_threshold", "text_threshold"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name} is {getattr(options, name)}; give a value from 0 to 1.")
    records = lists.read_box_list(options.list, options.box_order)
    for record in records:
        # Refused by the detector, but only when there is a video.
        module("perception.detection.phrases").check_phrases([record.subject])
    empty, count = lists.empty_boxes(records)
    if empty:
        sys.stdout.write(f"{empty} of {count} boxes are empty; their frames have no mask.\n")
        if options.box_order == "xyxy" and 2 * empty > count:
            sys.stdout.write(
                "That is most of them: are they in the order left, right, top, bottom (--box-order xxyy)?\n"
            )
    numbered = tuple((record, options.seed + place) for place, record in enumerate(records))[: options.limit]
    workflow = read_workflow(options.workflow)
    targets = find_targets(workflow, options)
    run = Run(numbered, workflow, targets, options.size, options.frames, options.out, options.seconds)
    made = {
        "list": options.list.name,
        "list_sha256": hashlib.sha256(options.list.read_bytes()).hexdigest(),
        "workflow_sha256": hashlib.sha256(options.workflow.read_bytes()).hexdigest(),
        "nodes": {
            name: getattr(options, f"{name}_node") for name in ("prompt", "mask", "seed", "subject", "guide", "output")
        },
        "box_order": options.box_order,
        "size": list(options.size),
        "frames": options.frames,
        "seed": options.seed,
    }
    return run, made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; 0 when all is measured, 1 when videos failed, 2 for wrong input."""
    options = parser().parse_args(arguments)
    try:
        run, made = open_run(options)
        judged = {
            "detector": "Toybox" if options.detector is None else options.detector.name,
            "box_threshold": options.box_threshold,
            "text_threshold": options.text_threshold,
        }
        content = open_content(options.out / REPORT, made, judged)
        torch.set_num_threads(options.threads)
        sets = module("recipes.model_sets")
        detector = sets.load_models(sets.load_finders, options.detector, None, options.device)[0]
        finding = module("recipes.mask_metrics.recipe").Finding(options.box_threshold, options.text_threshold)
        # Asked for when a video is missing: those that are there can be judged again without a server.
        connect = cache(partial(ComfyUI, options.server))
        options.out.mkdir(parents=True, exist_ok=True)
        # Before there is a video: what made it is known, whenever the run is stopped.
        save(options.out / REPORT, content)
        for line in collect(run, connect, (detector, finding), content):
            save(options.out / REPORT, content)
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        save(options.out / REPORT, content)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return WRONG_INPUT
    sys.stdout.write(f"{table(content['summary'])}\n{options.out / REPORT}\n")
    other = sum(entry["video"][0] != entry["masks"] for entry in content["records"])
    if other:
        sys.stdout.write(f"{other} videos have another number of frames than their masks; give it with --frames.\n")
    failed = content["failed"]
    if failed:
        sys.stdout.write(f"{len(failed)} videos failed; the first one: {failed[0]['error']}\n")
    return SOME_FAILED if failed else DONE


if __name__ == "__main__":
    sys.exit(main())
