"""Training on two processes that continues after one is killed: torchrun restarts both from the last checkpoint.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else torch 2.13 may connect to dead processes
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/elastic_digits.py digits

writes digits.pt after every epoch and digits.safetensors at the end. If a process is killed, the result is the same,
because data order and noise depend only on the epoch. Alone it starts itself, without a name twice: once with a kill.
"""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import bensemble
from convert import bayesify


def write_whole(state, path):
    """Replace a file atomically: if this process is killed, the file is either the old one or the new one."""
    with open(f"{path}.new", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def main(name, kill=""):
    dist.init_process_group("gloo", timeout=timedelta(minutes=1))  # a process that hangs longer counts as dead
    torch.set_num_threads(1)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    train = TensorDataset(x[:1297].float() / 16, y[:1297])
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(train, batch_size=32, sampler=sampler)

    torch.manual_seed(0)
    bnn = bayesify(nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)), prior="normal", prior_sigma=0.3)
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=3e-3, rho_lr=1e-2))
    start = 0
    if os.path.exists(f"{name}.pt"):
        state = torch.load(f"{name}.pt", weights_only=True)
        bnn.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"Process {dist.get_rank()} goes on after epoch {(start := state['epoch'])}.", flush=True)
    ddp = DistributedDataParallel(bnn)
    for epoch in range(start, 20):
        if kill and epoch == 10 and dist.get_rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        sampler.set_epoch(epoch)
        torch.manual_seed(1000 * epoch + dist.get_rank())  # each process draws its own noise
        for inputs, targets in loader:
            nll, kl = nn.functional.cross_entropy(ddp(inputs), targets), bensemble.kl_divergence(ddp)
            optimizer.zero_grad()
            bensemble.elbo_loss(nll, kl, len(train), beta=0.1).backward()
            optimizer.step()
        if dist.get_rank() == 0:
            state = {"model": bnn.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            write_whole(state, f"{name}.pt")
    if dist.get_rank() == 0:
        bensemble.save(bnn, f"{name}.safetensors")
        p = bensemble.predict(bnn, x[1297:].float() / 16, likelihood="categorical")
        print(f"{(p.probs.argmax(-1) == y[1297:]).float().mean():.1%} correct; entropy {p.entropy.mean():.3f} nats.")
    dist.barrier()  # a process that left earlier would break the connections of the other
    dist.destroy_process_group()


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        sys.exit(main(*sys.argv[1:]))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for arguments in [sys.argv[1:]] if sys.argv[1:] else [["whole"], ["killed", "kill"]]:
        subprocess.run([*torchrun, "--max-restarts", "3", __file__, *arguments], check=True)
    if not sys.argv[1:]:
        whole, killed = (torch.load(f"{name}.pt", weights_only=True)["model"] for name in ("whole", "killed"))
        apart = max(float((whole[key] - killed[key]).abs().max()) for key in whole)
        print(f"before: an undisturbed run\nafter:  one that lost a process; the weights differ by at most {apart:.0e}")
