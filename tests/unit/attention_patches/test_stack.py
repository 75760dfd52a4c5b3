"""The patch stack: how calls arrive, what patches see, who is called with what."""

from __future__ import annotations

import copy
import functools
import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import attention_calls
import pytest
import torch
from region_kernels import region_attention
from torch import Tensor

from mask_guided_video.attention_patches.attention_call import AttentionCall
from mask_guided_video.attention_patches.kernels import torch_attention as functional
from mask_guided_video.attention_patches.kernels.exact import agrees, replacing_kernel
from mask_guided_video.attention_patches.kernels.torch_attention import attention, torch_attention
from mask_guided_video.attention_patches.latent_time import causal
from mask_guided_video.attention_patches.patch import Attend, AttentionPatch, Run
from mask_guided_video.attention_patches.site import SITE_KEY, AttentionSite, BatchRows, CallSize, Span
from mask_guided_video.attention_patches.stack import PatchStack

SITE = AttentionSite(
    kind="self",
    block="mid.0",
    index=0,
    total=1,
    level=0,
    grid=(1, 2, 3),
    frames=(0,),
    clip_frames=1,
    video=Span(0, 6),
    text=None,
    rows=BatchRows(samples=2),
    progress=0.1,
    sigma=10.0,
)
SITE_OF_ONE_ROW = replace(SITE, rows=BatchRows(samples=1))


def joined(seed: int = 0) -> Tensor:
    return attention_calls.joined(6, seed)


def options(stack: PatchStack, site: AttentionSite | None = SITE) -> dict[str, Any]:
    return {"optimized_attention_override": stack.override, SITE_KEY: site}


class Recorder(AttentionPatch):
    """Passes through and notes what it saw."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        super().__init__()
        self.name, self.log, self.seen = name, [] if log is None else log, []

    def __call__(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        self.log.append(self.name)
        self.seen.append((attend, q, k, v, site))
        return attend(q, k, v, site)


def test_patches_see_split_heads_and_the_site() -> None:
    q, k, v = joined(), joined(1), joined(2)
    patch = Recorder()
    out = attention(q, k, v, 3, transformer_options=options(PatchStack([patch])))
    attend, seen_q, _, _, site = patch.seen[0]
    assert seen_q.shape == (2, 3, 6, 8) and site is SITE
    assert attend.last and attend.bias is None
    assert torch.equal(out, attention(q, k, v, 3))


def test_all_call_forms_agree() -> None:
    q, k, v = joined(), joined(1), joined(2)
    mask = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    expected = attention(q, k, v, 3, mask)
    stack = PatchStack([Recorder()])
    rest = {"transformer_options": options(stack), "_inside_attn_wrapper": True, "something_new": 1}
    split = [tensor.unflatten(-1, (3, 8)).transpose(1, 2) for tensor in (q, k, v)]
    assert torch.equal(stack.override(torch_attention, q, k, v, 3, mask, **rest), expected)
    assert torch.equal(stack.override(torch_attention, q, k, v, 3, mask, None, False, False, **rest), expected)
    assert torch.equal(stack.override(torch_attention, q, k, v, heads=3, mask=mask, **rest), expected)
    assert torch.equal(stack.override(torch_attention, q=q, k=k, v=v, heads=3, mask=mask, **rest), expected)
    assert torch.equal(stack.override(torch_attention, query=q, key=k, value=v, heads=3, mask=mask, **rest), expected)
    assert torch.equal(stack.override(torch_attention, *split, 3, mask, skip_reshape=True, **rest), expected)
    out = stack.override(torch_attention, *split, 3, mask, None, True, True, **rest)
    assert torch.equal(out.transpose(1, 2).flatten(2), expected)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6), (2, 6, 6), (2, 1, 6, 6), (2, 3, 6, 6)])
def test_mask_reaches_patches_with_four_axes_and_is_kept(shape: tuple[int, ...]) -> None:
    q, k, v = joined(), joined(1), joined(2)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    patch = Recorder()
    out = attention(q, k, v, 3, mask, transformer_options=options(PatchStack([patch, Recorder()])))
    assert patch.seen[0][0].bias.ndim == 4
    assert torch.equal(out, attention(q, k, v, 3, mask))


def test_order_and_last() -> None:
    log: list[str] = []
    patches = [Recorder("outer", log), Recorder("inner", log)]
    q = joined()
    attention(q, q, q, 3, transformer_options=options(PatchStack(patches)))
    assert log == ["outer", "inner"]
    assert not patches[0].seen[0][0].last and patches[1].seen[0][0].last


def test_with_bias_adds_for_what_follows_only() -> None:
    q, k, v = joined(), joined(1), joined(2)
    own = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(3))

    def biased(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return attend.with_bias(own if attend.bias is None else attend.bias + own)(q, k, v, site)

    inner = Recorder()
    out = attention(q, k, v, 3, transformer_options=options(PatchStack([biased, biased, inner])))
    assert torch.equal(inner.seen[0][0].bias, own + own)
    assert torch.equal(out, attention(q, k, v, 3, own + own))


def test_patch_may_call_more_than_once_or_never() -> None:
    q, k, v = joined(), joined(1), joined(2)

    def twice(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return attend(q, k, v, site) + attend(q, k, 2 * v, site)

    def never(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return v

    out = attention(q, k, v, 3, transformer_options=options(PatchStack([twice])))
    torch.testing.assert_close(out, 3 * attention(q, k, v, 3))
    assert torch.equal(attention(q, k, v, 3, transformer_options=options(PatchStack([never]))), v)


def test_no_site_or_no_acting_patch_leaves_the_arguments_alone() -> None:
    class Idle(Recorder):
        def acts_at(self, site: AttentionSite) -> bool:
            return False

    calls = []

    def func(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return "result"

    for patch, site in ((Recorder(), None), (Idle(), SITE)):
        given = {"mask": None, "transformer_options": {SITE_KEY: site}, "other": 5}
        assert PatchStack([patch]).override(func, "q", "k", "v", 3, **given) == "result"
        assert calls.pop() == (("q", "k", "v", 3), given)
        assert not patch.seen
    assert PatchStack([Recorder()]).override(func, "q", "k", "v", 3) == "result"


def test_previous_override_is_called_in_place_of_the_function() -> None:
    q, k, v = joined(), joined(1), joined(2)
    seen = []

    def previous(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(kwargs)
        return func(*args, **kwargs) + 1.0

    patch = Recorder()
    stack = PatchStack([patch]).chain(previous)
    given = options(stack)
    expected = attention(q, k, v, 3) + 1.0
    assert torch.equal(attention(q, k, v, 3, transformer_options=given), expected)
    assert not patch.seen[0][0].last
    assert seen[0]["transformer_options"] is given and not seen[0]["skip_reshape"]
    # Without a site the call goes straight to it.
    assert torch.equal(attention(q, k, v, 3, transformer_options=options(stack, None)), expected)


def test_foreign_override_installed_later_may_call_ours() -> None:
    q, k, v = joined(), joined(1), joined(2)
    log: list[str] = []
    ours = PatchStack([Recorder("ours", log)])

    def later(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        log.append("later")
        return ours.override(func, *args, **kwargs) * 2.0

    given = {"optimized_attention_override": later, SITE_KEY: SITE}
    assert torch.equal(attention(q, k, v, 3, transformer_options=given), 2.0 * attention(q, k, v, 3))
    assert log == ["later", "ours"]


def test_function_that_joins_heads_all_the_same() -> None:
    def stubborn(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert kwargs["skip_output_reshape"]
        return torch_attention(q, k, v, heads, mask, skip_reshape=kwargs["skip_reshape"])

    q, k, v = joined(), joined(1), joined(2)
    out = PatchStack([Recorder()]).override(stubborn, q, k, v, 3, transformer_options={SITE_KEY: SITE})
    assert torch.equal(out, attention(q, k, v, 3))


def test_calls_keep_the_layout_in_which_they_came() -> None:
    q, k, v = joined(), joined(1), joined(2)
    seen: list[tuple[tuple[int, ...], bool]] = []

    def function(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        seen.append((q.shape, kwargs["skip_reshape"]))
        return torch_attention(q, k, v, heads, mask, **kwargs)

    def one_row(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return torch.cat((attend(q[:1], k[:1], v[:1], site), attend(q[1:], k[1:], v[1:], site)))

    def longer(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return attend(*(torch.cat((tensor, tensor), dim=3) for tensor in (q, k, v)), site)[..., :8]

    given = {"transformer_options": {SITE_KEY: SITE}}
    split = [tensor.unflatten(-1, (3, 8)).transpose(1, 2) for tensor in (q, k, v)]
    PatchStack([one_row]).override(function, q, k, v, 3, **given)
    PatchStack([one_row]).override(function, *split, 3, skip_reshape=True, **given)
    PatchStack([longer]).override(function, q, k, v, 3, **given)
    assert seen == [((1, 6, 24), False)] * 2 + [((1, 3, 6, 8), True)] * 2 + [((2, 3, 6, 16), True)]


def test_deepcopy_shares_the_stack() -> None:
    stack = PatchStack([Recorder()])
    assert copy.deepcopy(stack) is stack
    copied = copy.deepcopy({"transformer_options": {"optimized_attention_override": stack.override}})
    assert copied["transformer_options"]["optimized_attention_override"].__self__ is stack


def test_release_reaches_patches_that_keep_something() -> None:
    class Keeper(Recorder):
        released = 0

        def release(self) -> None:
            self.released += 1

    keeper = Keeper()
    PatchStack([keeper, Recorder()]).release()
    assert keeper.released == 1


def test_a_plain_function_is_a_patch() -> None:
    def double(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
        return 2.0 * attend(q, k, v, site)

    stack, q = PatchStack([double]), joined()
    assert torch.equal(attention(q, q, q, 3, transformer_options=options(stack)), 2.0 * attention(q, q, q, 3))
    (patch,) = stack.patches
    assert patch.acts_at(SITE) and not patch.innermost and copy.deepcopy(patch) is patch
    patch.check_run(Run(3, 8, 8))
    stack.release()


def test_what_is_planned_belongs_to_its_arguments() -> None:
    """A field of a site that only one of two calls has makes another plan, whichever field it is."""
    patch, made = Recorder(), []

    def make(layout: AttentionSite, width: int) -> int:
        made.append(layout)
        return len(made)

    assert patch.planned(make, SITE.layout, 1) == patch.planned(make, SITE.layout, 1) == 1
    assert patch.planned(make, SITE.layout, 2) == 2
    # Place in the model and in the schedule are no part of it.
    moved = replace(SITE, block="up.1", index=3, total=9, progress=0.7, sigma=2.0)
    assert moved.layout == SITE.layout and patch.planned(make, moved.layout, 1) == 1
    changes = {
        **{"kind": "joint", "level": 1, "grid": (2, 1, 3), "frames": (1,), "clip_frames": 2, "video": Span(1, 6)},
        **{"text": Span(0, 1), "rows": BatchRows((0, 1)), "extent": (1.5, 3.0), "latent_time": causal(4)},
        **{"query_frames": (0,), "key_video": Span(0, 3), "text_part": (0, 4), "key_frames": ((0,),)},
    }
    left_out = {"block", "index", "total", "progress", "sigma"}
    assert {entry.name for entry in fields(AttentionSite)} == changes.keys() | left_out
    for name, value in changes.items():
        before = len(made)
        assert patch.planned(make, replace(SITE, **{name: value}).layout, 1) == before + 1, name
    patch.release()
    assert patch.planned(make, SITE.layout, 1) == len(made) == len(changes) + 3


def test_wrong_calls_say_what_is_missing() -> None:
    stack = PatchStack([Recorder()])
    with pytest.raises(TypeError, match="lacks v, heads"):
        stack.override(torch_attention, joined(), joined(), transformer_options={SITE_KEY: SITE})
    with pytest.raises(TypeError, match="at most 8 positional arguments"):
        stack.override(torch_attention, *([None] * 9), transformer_options={SITE_KEY: SITE})


@pytest.mark.parametrize("chained", [False, True])
def test_innermost_patches_come_last_in_any_order_of_stacks(chained: bool) -> None:
    log: list[str] = []
    outer, inner, explicit = Recorder("outer", log), Recorder("inner", log), Recorder("explicit", log)
    explicit.innermost = True
    stack = PatchStack([explicit, outer, inner])
    if chained:
        stack = PatchStack([explicit, outer]).chain(PatchStack([inner]).override)
    q = joined()
    attention(q, q, q, 3, transformer_options=options(stack))
    assert log == ["outer", "inner", "explicit"]
    # Nobody comes after it, and it is called with the site that the others hand on.
    assert explicit.seen[0][0].last and not inner.seen[0][0].last


def test_innermost_patches_run_once_before_another_packs_override() -> None:
    log: list[str] = []
    explicit, inner = Recorder("explicit", log), Recorder("inner", log)
    explicit.innermost = True
    behind = PatchStack([inner])

    def another(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        log.append("another")
        return behind.override(func, *args, **kwargs)

    stack = PatchStack([Recorder("outer", log)]).chain(PatchStack([explicit]).chain(another).override)
    q = joined()
    attention(q, q, q, 3, transformer_options=options(stack))
    assert log == ["outer", "explicit", "another", "inner"]
    assert not explicit.seen[0][0].last


# --- scale, grouped heads, containers ---------------------------------------------------------------------------------


def favour_second_key(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
    """Adds log(3) to the second key's logits by channels, as region guidance does."""
    of_queries = torch.ones(1, q.shape[2], 1)
    of_keys = torch.tensor([[[0.0], [math.log(3.0)]]])
    return region_attention(
        q,
        k,
        v,
        of_queries,
        of_keys,
        bias=attend.bias,
        attend=lambda q, k, v, bias: attend.with_bias(bias)(q, k, v, site),
    )


def two_keys() -> tuple[Tensor, Tensor, Tensor]:
    """One query and two keys of one head of four channels; at scale 1/4 the second key has twice the share."""
    q = torch.tensor([[[[4.0, 0.0, 0.0, 0.0]]]])
    k = torch.tensor([[[[0.0, 0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0, 0.0]]]])
    v = torch.tensor([[[[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]]])
    return q, k, v


@pytest.mark.parametrize(("scale", "share"), [(None, 12 / 13), (0.5, 12 / 13), (0.25, 6 / 7), (0.0, 3 / 4)])
def test_a_scale_of_the_call_is_for_its_own_products_only(scale: float | None, share: float) -> None:
    """exp(scale * 4 * log 2) * 3 against 1, whatever the scale: 4 * 3, 4 * 3, 2 * 3 and 1 * 3."""
    given = {} if scale is None else {"scale": scale}
    stack = PatchStack([favour_second_key])
    out = attention(*two_keys(), 1, skip_reshape=True, transformer_options=options(stack), **given)
    torch.testing.assert_close(out, torch.full((1, 1, 4), share))
    plain = attention(*two_keys(), 1, skip_reshape=True, transformer_options=options(stack, None), **given)
    torch.testing.assert_close(plain, torch.full((1, 1, 4), (share / (1 - share) / 3) / (share / (1 - share) / 3 + 1)))


def test_a_scale_is_handed_on_where_no_patch_acts() -> None:
    seen: list[Any] = []

    def function(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        seen.append((q, kwargs.get("scale")))
        return torch_attention(q, k, v, heads, mask, **kwargs)

    q, k, v = two_keys()
    for site in (None, SITE):
        given = {"scale": 0.25, "skip_reshape": True, "transformer_options": {SITE_KEY: site}}
        PatchStack([Recorder()]).override(function, q, k, v, 1, **given)
    assert seen[0][0] is q and seen[0][1] == 0.25
    # Where one acts, its patch sees queries for which d ** -0.5 = 1/2 does the same.
    assert seen[1][1] is None and seen[1][0].tolist() == [[[[2.0, 0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("split", [False, True])
def test_grouped_heads_reach_patches_once_for_each_head_of_q(split: bool) -> None:
    """Two heads of q share the one head of k and v."""
    q, k, v = two_keys()
    q = torch.cat((q, 0.0 * q), dim=1)
    tensors = (q, k, v) if split else tuple(tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
    patch = Recorder()
    stack = PatchStack([patch, favour_second_key])
    given = {"enable_gqa": True, "skip_reshape": split, "transformer_options": options(stack)}
    out = attention(*tensors, 2, **given)
    assert [tensor.shape for tensor in patch.seen[0][1:4]] == [(1, 2, 1, 4), (1, 2, 2, 4), (1, 2, 2, 4)]
    torch.testing.assert_close(out, torch.tensor([[[12 / 13] * 4 + [3 / 4] * 4]]))
    unguided = attention(*tensors, 2, **given | {"transformer_options": {}})
    torch.testing.assert_close(unguided, torch.tensor([[[4 / 5] * 4 + [1 / 2] * 4]]))


class Container:
    """As the host's ``AttentionTensorContainer``: one owner, who gives the tensor away."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def peek(self) -> Tensor:
        assert self.tensor is not None
        return self.tensor

    def take(self) -> Tensor:
        tensor, self.tensor = self.peek(), None
        return tensor


class FreeingKernel:
    """A kernel that frees q, k and v when it has made its own form of them, and notes which are then still held."""

    def __init__(self) -> None:
        self.held: list[bool] = []

        def function(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            return torch_attention(q, k, v, heads, mask, **kwargs)

        def in_containers(q: Container, k: Container, v: Container, heads: int, **kwargs: Any) -> Tensor:
            tensors = [container.take() for container in (q, k, v)]
            watched = [weakref.ref(tensor) for tensor in tensors]
            out = torch_attention(*tensors, heads, **kwargs)
            del tensors
            self.held += [reference() is not None for reference in watched]
            return out

        def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
            return function(*args, **kwargs)

        function.container_function = override.container_function = in_containers
        self.function, self.override = function, override


@pytest.mark.parametrize("place", ["host", "override", "behind another stack"])
def test_containers_reach_the_kernel_that_frees_them(place: str) -> None:
    freeing = FreeingKernel()
    stack = PatchStack([favour_second_key], host=freeing.function)
    if place != "host":
        stack = stack.chain(freeing.override)
    if place == "behind another stack":
        stack = PatchStack([Recorder()]).chain(stack.override)
    for site in (None, lambda size, options: None):
        containers = [Container(tensor) for tensor in two_keys()]
        given = {"skip_reshape": True, "transformer_options": options(stack, site)}
        out = stack.override.container_function(*containers, 1, **given)
        torch.testing.assert_close(out, torch.full((1, 1, 4), 4 / 5))
    assert freeing.held == [False] * 6


@pytest.mark.parametrize("place", ["host", "override"])
def test_guided_calls_in_containers_are_guided(place: str) -> None:
    freeing = FreeingKernel()
    stack = PatchStack([favour_second_key], host=freeing.function)
    stack = stack if place == "host" else stack.chain(freeing.override)
    containers = [Container(tensor) for tensor in two_keys()]
    asked: list[CallSize] = []

    def finder(size: CallSize, options: dict[str, Any]) -> AttentionSite:
        asked.append(size)
        return SITE_OF_ONE_ROW

    given = {"skip_reshape": True, "transformer_options": options(stack, finder)}
    out = stack.override.container_function(*containers, 1, **given)
    torch.testing.assert_close(out, torch.full((1, 1, 4), 12 / 13))
    assert asked == [(1, 2, 4)] and all(container.tensor is None for container in containers)


def test_without_a_kernel_for_containers_the_host_takes_the_tensors_out() -> None:
    def plain(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs)

    assert not hasattr(PatchStack([]).override, "container_function")
    assert not hasattr(PatchStack([], plain, FreeingKernel().function).override, "container_function")


# --- kernels that cannot carry guidance -------------------------------------------------------------------------------


def int8(tensor: Tensor) -> Tensor:
    """A tensor with one scale of 127 steps for all of it."""
    step = tensor.abs().max() / 127
    return (tensor / step).round() * step


class Kernel:
    """An attention function that notes how wide the queries of its calls were; ``way`` says what it does to them."""

    def __init__(self, way: str = "exact", name: str = "attention_of_another_pack") -> None:
        self.way, self.widths = way, []

        def function(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            self.widths.append(q.shape[-1] if kwargs.get("skip_reshape") else q.shape[-1] // heads)
            if way == "refuses" and self.widths[-1] != 8:
                raise ValueError(f"head width {self.widths[-1]} is not 8")
            if way == "rounds":
                q, k = int8(q), int8(k)
            if way == "leaves keys out":
                k, v = (tensor[..., :-2, :] for tensor in (k, v))
            return torch_attention(q, k, v, heads, mask, **kwargs)

        function.__name__, function.__qualname__ = name, f"somewhere.<locals>.{name}"
        self.function = function

    def set_on_a_model(self) -> Any:
        """The override with which the host gives one model another attention function: it looks at nothing else."""
        optimized_attention = self.function

        def optimized_attention_override(_: Any, *args: Any, **kwargs: Any) -> Tensor:
            return optimized_attention(*args, **kwargs)

        return optimized_attention_override


def far_apart(attend: Attend, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> Tensor:
    """The first three tokens and the last three do not see each other, by channels of 1000."""
    regions = torch.tensor([[[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3])
    kernel = lambda q, k, v, bias: attend.with_bias(bias)(q, k, v, site)  # noqa: E731
    return region_attention(q, k, v, regions, regions - 1.0, 1000.0, bias=attend.bias, attend=kernel)


def guided(stack: PatchStack, func: Any = torch_attention, site: AttentionSite | None = SITE, **kwargs: Any) -> Tensor:
    return stack.override(func, joined(), joined(1), joined(2), 3, transformer_options={SITE_KEY: site}, **kwargs)


EXPECTED = guided(PatchStack([far_apart]))
PLACES = ("host", "override", "behind another stack")


def with_kernel(place: str, kernel: Kernel, patches: Sequence[Any] = (far_apart,)) -> tuple[PatchStack, Any]:
    """A stack and the function it is given, with a kernel as the host's own or set on the model."""
    if place == "host":
        return PatchStack(patches), kernel.function
    stack = PatchStack(patches).chain(kernel.set_on_a_model())
    if place == "behind another stack":
        stack = PatchStack(patches).chain(PatchStack([]).chain(kernel.set_on_a_model()).override)
    return stack, torch_attention


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["rounds", "leaves keys out", "refuses"])
def test_guided_calls_are_exact_without_a_kernel_that_loses_guidance(place: str, way: str, caplog: Any) -> None:
    kernel = Kernel(way)
    stack, func = with_kernel(place, kernel)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            torch.testing.assert_close(guided(stack, func), EXPECTED)
    # Measured once, by its first guided result.
    assert kernel.widths == [16] and caplog.text.count("attention_of_another_pack") == 1
    unguided = guided(stack, func, None)
    assert kernel.widths == [16, 8]
    assert torch.equal(unguided, kernel.function(joined(), joined(1), joined(2), 3))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["attention_sage", "attention3_sage", "attention_comfy_kitchen_int8", "fp8_attention"])
def test_kernels_that_say_that_they_round_are_not_tried(place: str, name: str) -> None:
    kernel = Kernel("rounds", name)
    stack, func = with_kernel(place, kernel)
    torch.testing.assert_close(guided(stack, func), EXPECTED)
    assert kernel.widths == []
    guided(stack, func, None)
    assert kernel.widths == [8]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["attention_of_another_pack", "attention_pytorch", "attention_flash"])
def test_exact_kernels_serve_guided_calls(place: str, name: str) -> None:
    kernel = Kernel(name=name)
    stack, func = with_kernel(place, kernel)
    for _ in range(2):
        torch.testing.assert_close(guided(stack, func), EXPECTED)
    assert kernel.widths == [16, 16]


@pytest.mark.parametrize("place", PLACES)
def test_a_kernel_that_knows_the_hosts_request_is_asked(place: str) -> None:
    asked: list[bool] = []
    kernel = Kernel(name="attention_sage")

    def attention_sage(
        q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        asked.append(kwargs.get("low_precision_attention", True))
        q, k = (int8(q), int8(k)) if asked[-1] else (q, k)
        return torch_attention(q, k, v, heads, mask, **kwargs)

    kernel.function = attention_sage
    stack, func = with_kernel(place, kernel)
    torch.testing.assert_close(guided(stack, func), EXPECTED)
    guided(stack, func, None)
    assert asked == [False, True]


def test_flash_attention_gets_no_mask() -> None:
    kernel = Kernel(name="attention_flash")
    stack, func = with_kernel("host", kernel, [Recorder()])
    mask = torch.zeros(6, 6)
    assert torch.equal(guided(stack, func, mask=mask), torch_attention(joined(), joined(1), joined(2), 3, mask))
    assert kernel.widths == []


def sparse(long: int, previous: Any = None) -> tuple[Any, list[int]]:
    """An override that leaves keys out of long calls and hands on the short ones, and the lengths of those it kept."""
    kept: list[int] = []

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
        if q.shape[-2] < long or mask is not None:
            return func(q, k, v, heads, mask=mask, **kwargs)
        kept.append(q.shape[-2])
        return torch_attention(q, k[..., :-2, :], v[..., :-2, :], heads, **kwargs)

    return override, kept


def test_an_override_that_keeps_guided_calls_is_left_out_of_them(caplog: Any) -> None:
    override, kept = sparse(long=6)
    stack = PatchStack([far_apart]).chain(override)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(guided(stack), EXPECTED)
    assert kept == [6] and caplog.text.count("sparse.<locals>.override rounds, leaves out") == 1
    guided(stack, site=None)
    assert kept == [6, 6]


def test_an_override_that_hands_guided_calls_on_stays_in_them(caplog: Any) -> None:
    override, kept = sparse(long=7)
    rounding = Kernel("rounds", "attention_sage")
    with caplog.at_level(logging.WARNING):
        # And what it hands on is computed exactly.
        torch.testing.assert_close(guided(PatchStack([far_apart]).chain(override), rounding.function), EXPECTED)

        def twice(func: Any, *args: Any, **kwargs: Any) -> Tensor:
            return 2.0 * func(*args, **kwargs)

        torch.testing.assert_close(guided(PatchStack([far_apart]).chain(twice)), 2.0 * EXPECTED)
    assert kept == [] and rounding.widths == [] and not caplog.text


def test_errors_of_the_function_below_are_not_taken_for_a_refusal() -> None:
    class Broken(RuntimeError): ...

    def func(*args: Any, **kwargs: Any) -> Tensor:
        raise Broken

    func.__name__ = "attention_pytorch"

    def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs)

    with pytest.raises(Broken):
        guided(PatchStack([far_apart]).chain(override), func)
    with pytest.raises(torch.OutOfMemoryError):
        guided(PatchStack([far_apart]), full)


def full(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    raise torch.OutOfMemoryError("no memory")


def test_only_overrides_that_hand_every_call_on_stand_for_the_kernel() -> None:
    """Behind those a patch may make several calls of one; the others may know the film that they were set up for."""
    kernel = Kernel()

    assert replacing_kernel(kernel.set_on_a_model()) is kernel.function
    assert replacing_kernel(torch.compiler.disable(kernel.set_on_a_model())) is kernel.function
    # By a name of its module, as most packs do.
    assert replacing_kernel(by_name) is torch_attention
    for other in (None, sparse(6)[0], PatchStack([]).override, Kernel, functools.partial(by_name, None), len):
        assert replacing_kernel(other) is None, other


def by_name(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return functional.torch_attention(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_measuring_tells_the_rounding_of_the_type_from_that_of_a_kernel(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 50, 64, generator=generator).to(dtype) for _ in range(3))
    call = AttentionCall.bind((q, k, v, 4), {"skip_reshape": True})
    rest = {"skip_reshape": True, "skip_output_reshape": True}
    assert agrees(torch_attention(q, k, v, 4, **rest), call)
    assert agrees(torch_attention(q, k, v, 4, skip_reshape=True), call)
    shifted = torch.cat((k[..., :-1], k[..., -1:] + 200.0), -1)
    of_shifted = AttentionCall.bind((q, shifted, v, 4), {"skip_reshape": True})
    assert not agrees(torch_attention(q, int8(shifted), v, 4, **rest), of_shifted)
    assert not agrees(torch_attention(q, k, v, 4, **rest)[:1], call)
    assert not agrees(torch.full_like(q, torch.nan), call)
