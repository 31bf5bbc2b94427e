"""What `eyas doctor` starts twice: two ranks meet, add up, and part."""

import sys

import torch

from train.distributed import join, leave, rank, sum_over_ranks, world_size


def main() -> int:
    """0 where the sum over the ranks is right."""
    join()
    device = torch.device("cuda", rank()) if torch.cuda.is_available() else torch.device("cpu")
    total = sum_over_ranks(torch.full((1024,), rank() + 1.0, device=device))
    expected = world_size() * (world_size() + 1) / 2
    right = world_size() > 1 and bool((total == expected).all())
    leave()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
