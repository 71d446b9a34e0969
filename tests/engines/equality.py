"""Two processes against one with the same global batch; run by test_processes.py under torchrun."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import bensemble

from .networks import Small, data, make, part, train
from .processes import agree, checks_of, flat, gathered, run
from .sharded import shard

ENGINES = {"DistributedDataParallel": DistributedDataParallel, "FSDP2": shard}
STEPS, SEEDS = 50, 8


def check_the_same_end_without_noise():
    for dtype, rule, options in (
        (torch.float64, torch.optim.Adam, {"lr": 1e-2}),
        (torch.float32, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    ):
        batches = [data(dtype=dtype, seed=step % 5) for step in range(STEPS)]
        alone = make(dtype=dtype).eval()  # the posterior mean; rho learns by the KL
        start = flat(alone.parameters())
        train(alone, batches, rule(alone.parameters(), **options))
        end = flat(alone.parameters())
        assert float((end - start).abs().max()) > 0.1
        for name, wrap in ENGINES.items():
            model = wrap(make(dtype=dtype).eval())
            train(model, [part(batch, dist.get_rank()) for batch in batches], rule(model.parameters(), **options))
            distance = float((flat(model.parameters()) - end).abs().max())
            if dist.get_rank() == 0:
                print(
                    f"{name}, {rule.__name__} in {dtype}: at most {distance:.1e} from one process after {STEPS} steps"
                )
            assert distance <= 1e-6, (name, rule, distance)
            assert agree(flat(model.parameters()))


def check_the_same_curve_with_noise():
    """Mean losses over seeds differ by less than five standard errors, computed from the spread over the seeds."""
    rank = dist.get_rank()
    alone = torch.cat([gathered(curve(make(network=Small), seed, 0, 1)) for seed in range(rank, 2 * SEEDS, 2)])
    for name, wrap in ENGINES.items():
        curves = []
        for seed in range(SEEDS):
            model = wrap(make(network=Small))
            curves.append(gathered(curve(model, seed, rank, 2)).mean(0))
            assert agree(bensemble.kl_divergence(model))
        curves = torch.stack(curves)
        error = (alone.var(0) / len(alone) + curves.var(0) / SEEDS).sqrt()
        apart = ((curves.mean(0) - alone.mean(0)) / error).abs()
        first, last = curves.mean(0)[[0, -1]].tolist()
        if rank == 0:
            print(f"{name}, {SEEDS} seeds: loss from {first:.3f} to {last:.3f}, ", end="")
            print(f"at most {float(apart.max()):.1f} standard errors from one process")
        assert bool((apart < 5).all()), (name, apart)
        assert last < first - 10 * float(error[-1])


def curve(model, seed, rank, size):
    """The loss of ten stages of training under noise, each the mean over five steps."""
    torch.manual_seed(1000 * seed + 10 * size + rank)
    batches = [part(data(seed=step % 5), rank, size) for step in range(STEPS)]
    losses = train(model.train(), batches, torch.optim.Adam(model.parameters(), 1e-2))
    return torch.tensor(losses).view(10, 5).mean(1)


if __name__ == "__main__":
    run(checks_of(__name__))
