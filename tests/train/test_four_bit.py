"""4-bit base weights: refused where they cannot be had; until they are packed, a layer is an ordinary one."""

import pytest
import torch
from torch import nn

from embedding.embedder import Embedder
from train.four_bit import FourBitLinear, in_four_bits
from train.recipe import Lora, StudentConfig
from train.student import build_student


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_is_refused(teacher: Embedder, student_config: StudentConfig) -> None:
    config = student_config.model_copy(update={"lora": Lora(rank=2, alpha=4, four_bit=True)})
    with pytest.raises(ValueError, match="four_bit needs a CUDA device, and there is none here; set it to false"):
        build_student(config, teacher, 0)


def test_before_it_is_packed_the_layer_and_its_state_are_ordinary() -> None:
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    x = torch.randn(3, 8)
    expected = plain(x)
    in_four_bits(plain, ["0", "2"])
    assert [type(module) for module in plain] == [FourBitLinear, nn.ReLU, FourBitLinear]
    assert torch.equal(plain(x), expected)
    assert {name: tensor.tolist() for name, tensor in plain.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    plain.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert not plain(x).any()
