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
    # 2250 dense (4500 with sparsity) and 80: HGX B200 at 1,000 W in NVIDIA's Blackwell architecture brief, as
    # https://glennklockwood.com/garden/processors/B200 quotes it. The modules on sale have 180 GB of its 192:
    # "NVIDIA B200-SXM-180GB" in https://github.com/mlcommons/inference_results_v6.0 (closed/Nebius/systems).
    Gpu("B200", 180, 2250, 80, "NVIDIA Blackwell architecture brief, HGX B200"),
    # 141 GB, 989 (1,979 with sparsity), and the compute units of the H100:
    # https://itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html
    Gpu("H200", 141, 989, 67, "NVIDIA H200 datasheet, SXM"),
    # 989.4 (1,978.9 with sparsity) and 66.9: https://glennklockwood.com/garden/processors/h100
    Gpu("H100", 80, 989, 67, "NVIDIA H100 datasheet, SXM"),
    # 312 (624 with sparsity) and 19.5: https://glennklockwood.com/garden/processors/A100, from
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    Gpu("A100-80", 80, 312, 19.5, "NVIDIA A100 datasheet, 80 GB"),
    # The same; https://upb-pc2.atlassian.net/wiki/spaces/PC2DOK/pages/1900609 has those of the cards it runs.
    Gpu("A100-40", 40, 312, 19.5, "NVIDIA A100 datasheet, 40 GB"),
    # 362.05 (733 with sparsity) and 91.6: https://www.mullet.se/product.html?product_id=355414
    Gpu("L40S", 48, 362, 91.6, "NVIDIA L40S datasheet"),
    # 242 with sparsity: https://grokipedia.com/page/NVIDIA_L4_vs_L40S; 30.3: https://fpsbench.com (L4, 30.29)
    Gpu("L4", 24, 121, 30.3, "NVIDIA L4 datasheet"),
    # 165.15 (330.3 with sparsity) and 82.58: https://waredb.com/processor/nvidia-geforce-rtx-4090
    Gpu("RTX4090", 24, 165.2, 82.6, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
)
"""`source` is the maker's own sheet; the page above each figure, read in November 2026, repeats what it says."""


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
