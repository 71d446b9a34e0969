"""What the workers of this folder share: they run under torchrun, each check in every process at once."""

import contextlib
import datetime
import os
import sys
import traceback
import warnings

import torch
import torch.distributed as dist


def run(checks):
    """Run the checks one after the other, and stop all processes at the first failure of one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=300))
    warnings.filterwarnings("error", message="kl_divergence|sampling|load_state_dict|predict")
    for check in checks:
        torch.manual_seed(100 + dist.get_rank())
        try:
            check()
        except BaseException:
            traceback.print_exc()
            print(f"{check.__name__} failed in process {dist.get_rank()}", flush=True)
            os._exit(1)  # torchrun stops the others, which may be waiting for this one
        dist.barrier()
    if dist.get_rank() == 0:
        print(f"{len(checks)} checks passed", flush=True)
    leave()


def leave():
    """End this process once all others are here, without Python's shutdown.

    One in a hundred processes that trained by DistributedDataParallel over gloo aborts in it ("terminate called
    without an active exception"), also with a plain network and after ``destroy_process_group``.
    """
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def checks_of(module):
    """The functions of a worker named ``check_...``, in their order."""
    return [value for name, value in vars(sys.modules[module]).items() if name.startswith("check_")]


@contextlib.contextmanager
def out_of_sight():
    """What runs within sees no process group, as if it were the only process."""
    several = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = several


def own_third(tensors):
    """Unequal shares of some tensors: the first third for process 0."""
    cut = len(tensors[0]) // 3
    part = slice(0, cut) if dist.get_rank() == 0 else slice(cut, None)
    return [tensor[part] for tensor in tensors]


def gathered(tensor):
    """The tensor of every process, stacked."""
    tensor = tensor.detach().contiguous()
    everywhere = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, tensor)
    return torch.stack(everywhere)


def agree(tensor):
    """Whether every process has the same tensor, bit for bit."""
    found = gathered(tensor)
    return all(torch.equal(found[0], other) for other in found)


def flat(tensors):
    """All values of some tensors in one vector; of sharded ones those of all processes."""
    from bensemble.models.sharding import whole

    return torch.cat([whole(tensor.detach()).flatten().double() for tensor in tensors])


def shared_folder(root, name):
    """A folder that all processes see."""
    path = os.path.join(root, name)
    os.makedirs(path, exist_ok=True)
    dist.barrier()
    return path
