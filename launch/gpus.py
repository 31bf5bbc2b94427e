"""What makers publish of their GPUs: memory, and the dense matrix rates that a plan counts with."""

from dataclasses import dataclass

from embedding.config import suggest


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    gigabytes: float
    """Memory, 10^9 bytes."""
    bf16_tflops: float
    """Dense matrix products in bf16 with sums in fp32; half of what is advertised "with sparsity"."""
    fp32_tflops: float
    """In fp32 as PyTorch computes it by default, without TF32."""
    source: str


GPUS = (
    Gpu("B200", 180, 2250, 75, "NVIDIA DGX B200 datasheet, 1/8 of the system"),
    Gpu("H200", 141, 989, 67, "NVIDIA H200 datasheet, SXM"),
    Gpu("H100", 80, 989, 67, "NVIDIA H100 datasheet, SXM"),
    Gpu("A100-80", 80, 312, 19.5, "NVIDIA A100 datasheet, 80 GB"),
    Gpu("A100-40", 40, 312, 19.5, "NVIDIA A100 datasheet, 40 GB"),
    Gpu("L40S", 48, 362, 91.6, "NVIDIA L40S datasheet"),
    Gpu("L4", 24, 121, 30.3, "NVIDIA L4 datasheet"),
    Gpu("RTX4090", 24, 165.2, 82.6, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    Gpu("RTX3090", 24, 71, 35.6, "NVIDIA Ampere GA102 whitepaper, appendix A"),
)


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, however it is written.

    Raises:
        ValueError: none in the table; names those there are.
    """
    plain = {gpu.name.casefold().replace("-", ""): gpu for gpu in GPUS}
    found = plain.get(name.casefold().replace("-", "").replace(" ", ""))
    if found is None:
        raise ValueError(f"--gpu {name}: not in the table{suggest(name, [gpu.name for gpu in GPUS])}")
    return found
