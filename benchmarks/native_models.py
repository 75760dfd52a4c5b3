"""What attention guidance adds to a call of ComfyUI's video models: time, memory, and whether the result is right.

    python benchmarks/native_models.py                        # CUDA where there is one, else the CPU
    python benchmarks/native_models.py --families wan ltx     # some families only
    python benchmarks/native_models.py --quick                # seconds, small sizes, nothing is written

ComfyUI is found at COMFYUI_PATH or ~/comfy/ComfyUI. The models are its classes with random weights: whole, at the
sizes of clips, on CUDA; a block or two of them, and fewer frames, on a CPU. One model call has one conditional prompt.
Compared are the model as it is (``plain``), ``separate`` soft and ``focus_fg`` (both by region channels), ``separate``
hard (by partition), ``cross_text``, ``separate`` whose gains each head finds for a share of attention (``share``), and
as the plain alternative a ready-made dense bias [N, N] of ``separate`` soft that is added at the same attention calls
(``dense``). The mask covers 30 % of the picture and moves. Finding gains is a part of a run's first call, so that it
is among the tables.

Calls alternate, and each ratio is the median of the ratios to the plain call of the same turn. Tables are made in the
first call of a run and measured by themselves. Extra memory is the peak of a call, tables included, less that of the
plain call; it is also measured around one attention call, since elsewhere in a block more may be in use. Last come
single calls of whole clips, on a CPU with one head: self-attention of Wan 1.3B at 832 x 480 x 81 (``film``, 32,760
tokens) and of LTX-2 at 768 x 512 x 121 (6,144), joint attention of MiniMax H3 at 1344 x 768 x 124 (37,966).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from shared import native_cases as cases
from shared.measuring import RESULTS, ROOT, describe, module, ratios_of, seconds

if TYPE_CHECKING:
    from torch import Tensor

REPEATS = 5
PROGRESS = 0.1


@dataclass(frozen=True)
class Clip:
    """One attention call of a whole clip of a model.

    Attributes:
        kind: of attention.
        grid: frames, rows and columns of its video tokens.
        heads, head_dim: of the model.
        pixels: frames, height and width of its masks.
        text, sound: tokens before the video's in a joint sequence.
    """

    kind: Literal["self", "joint"]
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    pixels: tuple[int, int, int]
    text: int = 0
    sound: int = 0

    @property
    def tokens(self) -> int:
        """Of the sequence."""
        frames, rows, columns = self.grid
        return self.text + self.sound + frames * rows * columns


CLIPS = {
    # Wan 1.3B at 832 x 480 x 81.
    "film": Clip("self", (21, 30, 52), 12, 128, (81, 480, 832)),
    # MiniMax H3 at 1344 x 768 x 124 with sound.
    "h3": Clip("joint", (37, 24, 42), 56, 128, (124, 768, 1344), text=256, sound=414),
    # LTX-2 at 768 x 512 x 121.
    "ltx2": Clip("self", (16, 16, 24), 32, 128, (121, 512, 768)),
}
QUICK_CLIPS = {
    "film": replace(CLIPS["film"], grid=(6, 15, 26), pixels=(21, 240, 416)),
    "h3": replace(CLIPS["h3"], grid=(7, 12, 21), pixels=(22, 192, 336), text=64, sound=80),
    "ltx2": replace(CLIPS["ltx2"], grid=(4, 16, 24), pixels=(25, 512, 768)),
}
LONG_VARIANTS = ("plain", "channels", "partition", "share", "dense")


# --- measuring --------------------------------------------------------------------------------------------------------


class Bench:
    """A model on a device, ready to be called."""

    def __init__(self, case: cases.Case, device: str) -> None:
        self.case, self.device = case, device
        self.masks = cases.film_masks(case.pixels)
        self.patcher = cases.build(case, device)
        generator = torch.Generator().manual_seed(1)
        model = self.patcher.model
        self.noise = torch.randn(case.latents, generator=generator).to(device)
        extras = {"pooled_output": lambda length: torch.randn(1, length, generator=generator)}
        # A quarter of the text is padding.
        extras["attention_mask"] = lambda length: (torch.arange(length)[None] < length * 3 // 4).long()
        conditions = model.extra_conds(
            cross_attn=torch.randn(1, *case.text, generator=generator),
            noise=self.noise,
            device=torch.device(device),
            latent_shapes=[list(case.latents)],
            **{name: extras[name](length) for name, length in case.inputs.items()},
        )
        rows = case.latents[0]
        self.inputs = {name: value.process_cond(rows, area=None).cond for name, value in conditions.items()}
        self.inputs = {name: v.to(device) if hasattr(v, "to") else v for name, v in self.inputs.items()}
        self.sigma = torch.full((rows,), float(model.model_sampling.percent_to_sigma(PROGRESS)), device=device)

    def call(self, patches: Sequence[Any]) -> Callable[[], Tensor]:
        """One call of the model under patches, as a sampler makes it within a run."""
        from mask_guided_video.backbones.host_hooks import RUN_KEY, RunFacts
        from mask_guided_video.backbones.registry import install_patches

        patched = install_patches(self.patcher, patches)
        options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
        options.update(cond_or_uncond=[0], uuids=[], sigmas=self.sigma[:1])
        options[RUN_KEY] = RunFacts(0, {})
        apply_model = self.patcher.model.apply_model
        return lambda: apply_model(self.noise, self.sigma, transformer_options=dict(options), **self.inputs)

    def variant(self, name: str, dense: bool = False) -> Callable[[], Tensor]:
        """One call of the model in one of the variants."""
        return self.call([] if name == "plain" else [cases.guide_patch(name, self.masks, True, dense)])

    def sites(self) -> cases.Recorder:
        """The sites of a call of the model.

        Raises:
            RuntimeError: no attention call was recognised, so that nothing would be measured.
        """
        recorder = cases.Recorder()
        self.call([recorder])()
        if not recorder.found:
            raise RuntimeError(f"no attention call of {self.case.family} was recognised: its backbone is broken.")
        return recorder


def measure_times(calls: Mapping[str, Callable[[], Tensor]], device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Time calls in turns; also the results of the first turn, which warms up and makes the tables."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    results = {name: call() for name, call in calls.items()}
    for _ in range(REPEATS):
        for name, call in calls.items():
            taken = seconds(call, device)
            wall[name].append(round(taken[0], 6))
            busy[name].append(round(taken[1], 6))
    found: dict[str, Any] = {"seconds": wall, "ratio": ratios_of(wall)}
    if device == "cpu":
        found.update(processor_seconds=busy, processor_ratio=ratios_of(busy))
    return found, results


def compare(bench: Bench, results: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Relative distance of each guided result from the dense bias's, and for scale of the dense bias's from plain."""
    found = {}
    # Of gains that each head finds there is no one bias; the tests read its probabilities.
    for name in (name for name in bench.case.variants[1:-1] if name != "share"):
        same = results["dense"] if name == "channels" else bench.variant(name, dense=True)()
        size = float(same.abs().max())
        apart, effect = (float((same - results[other]).abs().max()) / size for other in (name, "plain"))
        found[name] = {"difference": float(f"{apart:.2e}"), "effect": float(f"{effect:.2e}")}
    return found


def measure_tables(recorder: cases.Recorder, masks: Tensor, names: Sequence[str], device: str) -> dict[str, float]:
    """Seconds that the tables of all sites of a model take in the first call of a run, attention left out."""
    found = {}
    for name in names:
        patch, total = cases.guide_patch(name, masks, True), 0.0
        for site, shape, keys in recorder.found.values():
            if not patch.acts_at(site):
                continue
            q = torch.zeros(shape, dtype=cases.data_type(device), device=device)
            k = torch.zeros(*shape[:2], keys, shape[3], dtype=q.dtype, device=device)
            times = [seconds(lambda q=q, k=k, s=site, p=patch: run_empty(p, q, k, s), device)[0] for _ in "abc"]
            total += times[0] - min(times[1:])
        found[name] = round(total, 4)
    return found


def run_empty(patch: Any, q: Tensor, k: Tensor, site: Any) -> Tensor:
    """A patch around a kernel that does no work but writes a result."""
    from mask_guided_video.attention_patches.patch import Attend

    return patch(Attend(lambda q, k, v, site, bias: empty_kernel(q, k, v), last=True), q, k, k, site)


def empty_kernel(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Write zeros: memory that is not written to would not count."""
    return q.new_empty(*q.shape[:-1], v.shape[-1]).fill_(0.0)


def peak_bytes(call: Callable[[], Tensor], device: str) -> int:
    """Peak memory of the tensors that a call makes; on a busy machine more exact than the system's figure."""
    gc.collect()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    made = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((size for _, size in made), initial=0))


def model_peaks(bench: Bench, recorder: cases.Recorder) -> dict[str, Any]:
    """Peak memory of a model call and of its largest attention call by itself in every variant, tables included."""
    from mask_guided_video.attention_patches.stack import PatchStack

    case, device = bench.case, bench.device
    largest, shape, keys = max(
        (entry for entry in recorder.found.values() if entry[0].kind in ("self", "joint")), key=lambda entry: entry[2]
    )
    qkv = random_qkv((shape[0], shape[2], shape[1] * shape[3]), device, cases.data_type(device))
    found: dict[str, Any] = {"model": {}, "attention": {}, "dense_bias": {}}
    for name in case.variants:
        patches = [] if name == "plain" else [cases.guide_patch(name, bench.masks, True)]
        ready = {"model": 0, "attention": 0}
        if name == "dense":
            bias = patches[0].bias(largest, qkv[0].new_empty(shape), keys)
            ready["attention"] = bias.numel() * bias.element_size()
            for site, size, length in recorder.found.values():
                if patches[0].acts_at(site):
                    patches[0].bias(site, qkv[0].new_empty(size), length)
            ready["model"] = patches[0].bytes
            found["dense_bias"] = ready
        found["model"][name] = ready["model"] + peak_bytes(bench.call(patches), device)
        if name != "cross_text" or largest.kind == "joint":
            # Tables are made anew.
            patches = patches if name in ("plain", "dense") else [cases.guide_patch(name, bench.masks, True)]
            call = one_attention(PatchStack(patches), qkv, shape[1], largest)
            found["attention"][name] = ready["attention"] + peak_bytes(call, device)
    return found


def random_qkv(size: Sequence[int], device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v [B, L, heads * d]."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(size, device=device, dtype=dtype, generator=generator) for _ in range(3)]


def one_attention(stack: Any, qkv: Sequence[Tensor], heads: int, site: Any, kernel: Any = None) -> Callable[[], Tensor]:
    """One attention call as a model makes it."""
    from mask_guided_video.attention_patches.kernels.torch_attention import torch_attention
    from mask_guided_video.attention_patches.site import SITE_KEY

    kernel = kernel or torch_attention
    return lambda: stack.override(kernel, *qkv, heads, transformer_options={SITE_KEY: site})


# --- one attention call of a whole clip -------------------------------------------------------------------------------


def clip_site(clip: Clip) -> Any:
    """The site of the call, in the first block; masks tell by their number how the model counts time."""
    from mask_guided_video.attention_patches.latent_time import CHUNKS_OF_17, causal
    from mask_guided_video.attention_patches.site import AttentionSite, BatchRows, Span

    times = (causal(4), causal(8), CHUNKS_OF_17)
    return AttentionSite(
        kind=clip.kind,
        block="block.0",
        index=0,
        total=30,
        level=0,
        grid=clip.grid,
        frames=tuple(range(clip.grid[0])),
        clip_frames=clip.grid[0],
        video=Span(clip.text + clip.sound, clip.tokens),
        text=Span(0, clip.text) if clip.kind == "joint" else None,
        rows=BatchRows(),
        progress=PROGRESS,
        sigma=1.0,
        latent_time=next(time for time in times if time.pixel_frames(clip.grid[0]) == clip.pixels[0]),
    )


def measure_clip(clip: Clip, device: str) -> dict[str, Any]:
    """Time, tables and exactness of one attention call with as many tokens as a clip has."""
    from mask_guided_video.attention_patches.stack import PatchStack

    site, masks = clip_site(clip), cases.film_masks(clip.pixels)
    heads, tokens = 1 if device == "cpu" else clip.heads, clip.tokens
    qkv = random_qkv((1, tokens, heads * clip.head_dim), device, cases.data_type(device))
    recorder = cases.Recorder()
    recorder.found[clip.kind, 0] = (site, (1, heads, tokens, clip.head_dim), tokens)
    tables = measure_tables(recorder, masks, ("channels", "focus_fg", "partition", "share"), device)
    stacks = {name: PatchStack([cases.guide_patch(name, masks, False)]) for name in LONG_VARIANTS[1:]}
    stacks["plain"] = PatchStack([])
    timed, results = measure_times(
        {name: one_attention(stacks[name], qkv, heads, site) for name in LONG_VARIANTS}, device
    )
    size_of = float(results["dense"].abs().max())
    apart = float((results["dense"] - results["channels"]).abs().max()) / size_of
    compared = {"channels": {"difference": float(f"{apart:.2e}")}}
    return {"tokens": tokens, "heads": heads, "timed": timed, "tables": tables, "compared": compared}


def clip_peaks(clip: Clip, device: str) -> dict[str, Any]:
    """Extra memory of that call with all heads in bfloat16; on a CPU with no work done by the kernel, to save time."""
    from mask_guided_video.attention_patches.stack import PatchStack

    site, masks = clip_site(clip), cases.film_masks(clip.pixels)
    tokens = clip.tokens
    qkv = random_qkv((1, tokens, clip.heads * clip.head_dim), device, torch.bfloat16)
    found: dict[str, Any] = {"attention": {}, "dense_bias": {"attention": tokens * tokens * 2}}
    kernel = empty_kernel if device == "cpu" else None
    for name in ("plain", "channels", "focus_fg", "partition"):
        stack = PatchStack([] if name == "plain" else [cases.guide_patch(name, masks, False)])
        found["attention"][name] = peak_bytes(one_attention(stack, qkv, clip.heads, site, kernel), device)
    return found


# --- report -----------------------------------------------------------------------------------------------------------


def shares(peaks: Mapping[str, Any]) -> dict[str, Any]:
    """Extra memory over plain, in bytes and as a share of the dense bias."""
    found: dict[str, Any] = {}
    for scope, bias in peaks["dense_bias"].items():
        scoped = peaks[scope]
        extra = {name: value - scoped["plain"] for name, value in scoped.items() if name != "plain"}
        found[scope] = {"extra": extra, "share": {name: round(value / bias, 4) for name, value in extra.items()}}
    return found


def run_case(case: cases.Case, device: str) -> dict[str, Any]:
    """Measure one model."""
    before = load_average()
    bench = Bench(case, device)
    recorder = bench.sites()
    timed, results = measure_times({name: bench.variant(name) for name in case.variants}, device)
    entry = {
        **asdict(case),
        "tokens": max(shape[2] for _, shape, _ in recorder.found.values()),
        "attention_calls": recorder.calls,
        "timed": timed,
        "load": [before, load_average()],
        "compared": compare(bench, results),
        "tables": measure_tables(recorder, bench.masks, case.variants[1:-1], device),
    }
    show(case.family, entry)
    del results
    entry["peak_bytes"] = model_peaks(bench, recorder)
    show_memory(entry["peak_bytes"])
    return entry


def run_clip(name: str, clip: Clip, device: str) -> dict[str, Any]:
    """Measure one attention call of a whole clip."""
    before = load_average()
    entry = measure_clip(clip, device)
    entry["load"] = [before, load_average()]
    sys.stdout.write(f"one attention call of a clip, {entry['heads']} heads\n")
    show(name, entry)
    entry["peak_bytes"] = clip_peaks(clip, device)
    show_memory(entry["peak_bytes"])
    return entry


def line(title: str, values: Mapping[str, float], pattern: str, missing: str = "-") -> str:
    """One row of the table."""
    cells = (format(values[name], pattern) if name in values else missing for name in cases.VARIANTS[1:])
    return f"{title:34}" + " ".join(f"{cell:>10}" for cell in cells) + "\n"


def show(name: str, entry: Mapping[str, Any]) -> None:
    """Print time and exactness."""
    timed = entry["timed"]
    plain = statistics.median(timed["seconds"]["plain"])
    rows = line(f"{name:8} {entry['tokens']:6d} tokens {plain:8.3f} s", timed["ratio"], ".3f")
    if "processor_ratio" in timed:
        rows += line("  by processor time", timed["processor_ratio"], ".3f")
    rows += line("  tables, once a run: s", entry["tables"], ".3f")
    different = {variant: value["difference"] for variant, value in entry["compared"].items()}
    sys.stdout.write(rows + line("  difference to dense, relative", different, ".1e"))
    sys.stdout.flush()


def show_memory(peaks: Mapping[str, Any]) -> None:
    """Print extra memory."""
    for scope, memory in shares(peaks).items():
        extra = {variant: value / 2**20 for variant, value in memory["extra"].items()}
        sys.stdout.write(line(f"  extra memory, {scope}: MB", extra, ".1f"))
        sys.stdout.write(line("    of the dense bias", memory["share"], ".1%"))
    sys.stdout.flush()


def load_average() -> list[float]:
    """Programs that want to run, over 1, 5 and 15 minutes; empty where the system does not say."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def run(device: str, families: Sequence[str], quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure everything, or some families, and print the table as it grows; yields each family's entry."""
    sys.stdout.write(f"{device}: ratios to the plain model\n")
    sys.stdout.write(f"{'':34}" + " ".join(f"{name:>10}" for name in cases.VARIANTS[1:]) + "\n")
    for case in cases.SIZES["quick" if quick else device]:
        if not families or case.family in families:
            yield case.family, run_case(case, device)
    for name, clip in (QUICK_CLIPS if quick else CLIPS).items():
        if not families or name in families:
            yield name, run_clip(name, clip, device)


def merged(path: Path, machine: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before on a machine of the same description, with the new entries in place of theirs."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = old.get("measured", {}) if old.get("machine") == dict(machine) else {}
    return {"machine": dict(machine), "measured": {**kept, **measured}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write ``native_models_<device>.json`` and, of clips, ``whole_clips_<device>.json`` in the results.

    Families that are given replace only theirs.
    """
    parser = argparse.ArgumentParser(description="What attention guidance adds to a call of ComfyUI's video models.")
    names = [case.family for case in cases.SIZES["cuda"]]
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--families", nargs="+", default=[], choices=[*names, *CLIPS], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, and nothing is written")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases.import_comfyui(device)
    module("attention_patches")
    machine = {**describe(device), "dtype": str(cases.data_type(device)).removeprefix("torch.")}
    threads = machine.pop("threads")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for family, entry in run(device, options.families, options.quick):
            if not options.quick:
                name = "whole_clips" if family in CLIPS else "native_models"
                path = RESULTS / f"{name}_{device}.json"
                found = merged(path, machine, {family: {"threads": threads, **entry}})
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not options.quick:
        sys.stdout.write(f"raw numbers: {RESULTS.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
