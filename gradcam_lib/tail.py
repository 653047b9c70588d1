"""Running a network from one layer on, again and again, exactly, without what lies before that layer."""

import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .layers import first_tensor, output_of

__all__ = ["Tail"]


@dataclass(eq=False)
class Call:
    """One call of a module in a forward pass, with the calls made inside it."""

    module: nn.Module
    number: int = 0  # among the calls of this module
    inside: list["Call"] = field(default_factory=list)
    output: object = None
    versions: list[int] = field(default_factory=list)
    spoiled: bool = False  # something later in the pass writes into the output


class Tail:
    """The network from a layer on.

    In one pass over the images, `recording` keeps what each module gave that had finished before the layer did. When
    the tail is run, those modules give it back instead of computing it, and the layer gives the feature maps that are
    asked for. The model's own code runs, so branches and skip connections past the layer keep their meaning.
    """

    def __init__(self, model: nn.Module, image: torch.Tensor, layer: nn.Module):
        """The first time, one pass of an image (1, C, H, W) is watched to learn the order of calls.

        Of a layer that is used several times, the last use counts.
        """
        self.model, self.layer = model, layer
        key = (tuple(map(id, model.modules())), image.shape)
        known = _orders.setdefault(model, {})
        if known.get(layer, (None, None))[0] != key:
            known[layer] = (key, learn(model, image, layer))
        self.calls = [replace(call) for call in known[layer][1]]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep, of a pass over all images, what the tail does not compute again."""
        expected = {(call.module, call.number): call for call in self.calls}
        counts: Counter[nn.Module] = Counter()

        def keep(module: nn.Module, inputs: object, output: object) -> None:
            call = expected.get((module, counts[module]))
            counts[module] += 1
            if call:
                call.output = tree_map_only(torch.Tensor, torch.clone, output) if call.spoiled else output

        with ExitStack() as hooks:
            for module in {call.module for call in self.calls}:
                hooks.callback(module.register_forward_hook(keep, prepend=True).remove)
            yield

    def __call__(self, image: torch.Tensor, n: int, X: torch.Tensor, way: str) -> Any:
        """The model's output (M, ...) for image number n, (1, C, H, W), with the layer giving X (M, ...).

        way  "narrow": what comes from before the layer has a batch of one, and meets X by broadcasting. "wide": it
             has a batch of M. "whole": it is computed again, for a batch of M.
        """
        M = len(X)
        queues: defaultdict[nn.Module, deque[Call]] = defaultdict(deque)
        if way == "whole":
            image = image.expand(M, *image.shape[1:])
            uses = self.calls[-1].number
        else:
            for call in self.calls:
                queues[call.module].append(call)
            uses = len(queues[self.layer]) - 1

        def part(t: torch.Tensor) -> torch.Tensor:
            t = t[n : n + 1]
            return t.expand(M, *t.shape[1:]) if way == "wide" else t

        def stand_in(forward: Callable[..., Any], queue: deque[Call]) -> Callable[..., Any]:
            def stub(*args: Any, **kwargs: Any) -> Any:
                if not queue:  # a use after the layer
                    return forward(*args, **kwargs)
                call = queue.popleft()
                output = tree_map_only(torch.Tensor, part, call.output)
                return tree_map_only(torch.Tensor, torch.clone, output) if call.spoiled else output

            return stub

        def give(module: nn.Module, inputs: object, output: Any) -> Any:
            nonlocal uses
            uses -= 1
            if uses < 0:
                return X if output is first_tensor(output) else (X, *output[1:])

        with ExitStack() as patches:
            for module, queue in queues.items():
                patches.enter_context(replaced(module, "forward", stand_in(module.forward, queue)))
            patches.callback(self.layer.register_forward_hook(give).remove)
            return self.model(image)


# The calls that a tail stands in for, so that they are learnt once. Forgotten with the model.
_orders: weakref.WeakKeyDictionary[nn.Module, dict[nn.Module, tuple[object, list[Call]]]] = weakref.WeakKeyDictionary()


def learn(model: nn.Module, image: torch.Tensor, layer: nn.Module) -> list[Call]:
    """The calls that finish before the layer's last one does, and that one; none where the layer is never run."""
    root = Call(model)
    open_calls = [root]
    of_layer: list[Call] = []
    counts: Counter[nn.Module] = Counter()

    def enter(module: nn.Module, inputs: object) -> None:
        call = Call(module, counts[module])
        counts[module] += 1
        open_calls[-1].inside.append(call)
        open_calls.append(call)

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        call = open_calls.pop()
        call.output, call.versions = output, [t._version for t in tensors(output)]
        if module is layer:
            of_layer.append(call)

    with ExitStack() as hooks:
        for module in model.modules():
            if module is not model:
                hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                hooks.callback(module.register_forward_hook(leave, prepend=True).remove)
        output_of(model, image)
    calls = finished_before(root, of_layer[-1]) if of_layer else []
    for call in calls:
        call.spoiled = [t._version for t in tensors(call.output)] != call.versions
        call.output, call.inside = None, []
    return calls


def finished_before(root: Call, target: Call) -> list[Call]:
    """The calls that had finished when `target` did, itself last; of calls inside one another, the outermost."""
    calls: list[Call] = []

    def walk(call: Call) -> bool:
        if call is target:
            return True
        start = len(calls)
        if any(walk(inner) for inner in call.inside):
            return True
        del calls[start:]
        calls.append(call)
        return False

    walk(root)
    return [*calls, target]


@contextmanager
def replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """An attribute of a module, for a while."""
    own = name in vars(module)
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if own:
            setattr(module, name, before)
        else:
            delattr(module, name)


def tensors(output: object) -> list[torch.Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
