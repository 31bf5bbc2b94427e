"""The dense heads after pooling that sentence-transformers' layout knows: EmbeddingGemma and asymmetric students have
them."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from embedding.layout import DenseSpec, require_weights

ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation for activation in (nn.Identity, nn.Tanh, nn.GELU, nn.ReLU, nn.SiLU)
}


class Dense(nn.Module):
    """A sentence-transformers Dense module on pooled vectors: activation(linear(x))."""

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"Dense activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, in_features] -> [N, out_features]."""
        out: Tensor = self.activation(self.linear(x_ND.to(self.linear.weight.dtype)))
        return out

    def spec(self, folder: str) -> DenseSpec:
        """What the layout keeps of this module when it is saved in `folder`."""
        linear = self.linear
        activation = type(self.activation).__name__
        return DenseSpec(folder, linear.in_features, linear.out_features, linear.bias is not None, activation)


def load_dense(folder: Path, spec: DenseSpec) -> Dense:
    """The module that a model's folder holds.

    Raises:
        ValueError: its weights are not there, or its activation is none of ours.
    """
    require_weights(folder / spec.folder)
    dense = Dense(spec.in_features, spec.out_features, spec.bias, spec.activation)
    dense.load_state_dict(load_file(folder / spec.folder / "model.safetensors"))
    return dense
