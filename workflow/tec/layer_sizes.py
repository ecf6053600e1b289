"""How much memory a model's layers take, from its GGUF file: where a search begins.

What llama.cpp puts where (`src/llama-model.cpp`): `-ncmoe n` leaves the experts of the first n
layers in host memory; `-ngl n` puts the output on the GPU and then the last n - 1 layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from gguf import GGUFReader

from tec.gguf_file import ModelInfo, split_paths
from tec.paths import ROOT

_EXPERTS = re.compile(r"ffn_(?:gate|up|gate_up|down)_exps\.weight$")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class LayerSizes:
    """Bytes of a model's tensors."""

    experts: tuple[int, ...]
    """Of each layer's expert weights."""
    others: tuple[int, ...]
    """Of each layer's other tensors."""
    output: int
    """Of the output matrix and norm; of the token embedding, where it serves as output."""

    def experts_that_fit(self, room: int) -> int:
        """Return how many layers, the last ones, can have their experts on the GPU.

        Args:
            room: bytes that all other tensors and buffers leave.
        """
        return _count(self.experts[::-1], room)

    def layers_that_fit(self, room: int) -> int:
        """Return how many of output and layers, the last ones, can be on the GPU whole.

        Args:
            room: bytes that buffers leave.
        """
        layers = [a + b for a, b in zip(self.experts, self.others, strict=True)]
        return _count([self.output, *layers[::-1]], room)

    @property
    def without_experts(self) -> int:
        """Bytes on the GPU with every expert in host memory."""
        return sum(self.others) + self.output


def _count(sizes: Sequence[int], room: int) -> int:
    """Return how many of the sizes, in order, fit together."""
    return sum(total <= room for total in accumulate(sizes))


def read_layer_sizes(model: ModelInfo) -> LayerSizes:
    """Read the sizes of a model's tensors; the model's record says that it is whole."""
    experts, others = [0] * model.n_layer, [0] * model.n_layer
    ends: dict[str, int] = {}
    for path in split_paths(ROOT / model.path, max(1, len(model.parts))):
        for tensor in GGUFReader(path).tensors:
            layer = _LAYER.match(tensor.name)
            if layer is None:
                ends[tensor.name] = int(tensor.n_bytes)
            elif int(layer[1]) < model.n_layer:
                kind = experts if _EXPERTS.search(tensor.name) else others
                kind[int(layer[1])] += int(tensor.n_bytes)
    embedding = ends.get("token_embd.weight", 0)
    norm = ends.get("output_norm.weight", 0)
    return LayerSizes(tuple(experts), tuple(others), ends.get("output.weight", embedding) + norm)
