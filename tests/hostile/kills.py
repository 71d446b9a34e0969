"""A process that writes for ever and is killed at random moments: ``python -m tests.hostile.kills DEED COUNT FOLDER``.

Every child is a fork of one process that has everything imported, so that a kill costs no start. After each kill the
file must be one of those that were written whole; at the end nothing but the file may be left.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bensemble
from convert import bayesify, export_onnx

__all__ = ["DEEDS"]

X = torch.linspace(-1, 1, 3 * 64).reshape(3, 64)
STEPS, EVERY = 60, 5


def network(seed: int = 0) -> nn.Module:
    """A network of half a million weights, so that writing it takes time."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 3))


class Versions:
    """Writes one of two models again and again; the file must always be one of the two."""

    def __init__(self, folder: Path) -> None:
        self.models = [bayesify(network(seed)).eval() for seed in (1, 2)]
        self.path = folder / "model"
        self.write(self.models[0])
        self.known = [model(X).detach() for model in self.models]

    def work(self) -> None:
        """What a child does until it is killed."""
        for turn in range(10**9):
            self.write(self.models[turn % 2])

    def check(self) -> None:
        """Raise unless the file is one of the two."""
        found = self.read()
        assert any(torch.allclose(found, known, atol=1e-5) for known in self.known), "another model"

    def finish(self) -> None:
        """Write once more, as the next run does."""
        self.write(self.models[0])
        self.check()


class Saving(Versions):
    """``bensemble.save``."""

    def write(self, model: nn.Module) -> None:
        bensemble.save(model, self.path)

    def read(self) -> Tensor:
        return bensemble.load(self.path, network()).eval()(X).detach()


class Exporting(Versions):
    """``export_onnx``, which runs the file before it takes the old one's place."""

    def write(self, model: nn.Module) -> None:
        export_onnx(model, self.path, X[:1])

    def read(self) -> Tensor:
        reader = os.fork()  # ONNX Runtime's threads must not be there when the next child is forked
        if not reader:
            from convert import OnnxModel

            torch.save(OnnxModel(self.path)(X), f"{self.path}-out")
            os._exit(0)
        assert os.waitpid(reader, 0)[1] == 0, "the file does not run"
        out = Path(f"{self.path}-out")
        found = torch.load(out)
        out.unlink()
        return found


class Training:
    """A loop that checkpoints and goes on from its checkpoint: it ends, bit for bit, where an undisturbed one ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"
        self.expected = self.train(folder / "undisturbed")
        (folder / "undisturbed").unlink()

    def start(self, path: Path) -> nn.Module:
        """The model at its last checkpoint; its buffer counts the steps."""
        bare = network()
        bare.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        return bensemble.load(path, bare) if path.exists() else bayesify(bare)

    def train(self, path: Path, pause: float = 0.0) -> dict[str, Tensor]:
        """All steps that are left; the noise of a step depends on its number alone."""
        bnn = self.start(path).train()
        optimizer = torch.optim.SGD(bensemble.param_groups(bnn, lr=1e-2, rho_lr=1e-2))
        for step in range(int(bnn.steps), STEPS):
            torch.manual_seed(step)
            loss = bnn(X).square().mean() + 1e-6 * bensemble.kl_divergence(bnn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bnn.steps += 1
            if (step + 1) % EVERY == 0:
                bensemble.save(bnn, path)
        return bnn.state_dict()

    def work(self) -> None:
        self.train(self.path)

    def check(self) -> None:
        if self.path.exists():
            steps = int(self.start(self.path).steps)
            assert steps % EVERY == 0, f"a checkpoint of step {steps}"

    def finish(self) -> None:
        state = self.train(self.path)
        assert all(torch.equal(value, self.expected[name]) for name, value in state.items()), "another end"
        bensemble.save(self.start(self.path), self.path)


DEEDS: dict[str, Callable[[Path], Versions | Training]] = {
    "save": Saving,
    "export": Exporting,
    "train": Training,
}


def main(deed: str, count: int, folder: Path) -> None:
    """Start a child and kill it, so many times; print how many were killed in the middle of a write."""
    torch.set_num_threads(1)
    rng, start = random.Random(deed), time.monotonic()
    doing = DEEDS[deed](folder)
    longest = max(0.05, (time.monotonic() - start) / 2)
    in_a_write: set[Path] = set()
    for number in range(count):
        child = os.fork()
        if not child:
            doing.work()
            os._exit(0)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        in_a_write.update(folder.glob(".model.*.tmp"))
        try:
            doing.check()
        except Exception as err:
            raise SystemExit(f"after kill {number}: {type(err).__name__}: {err}") from err
        time.sleep(1.1)  # a file of the last second may belong to somebody who is about to lock it
    doing.finish()
    left = sorted(path.name for path in folder.iterdir())
    print(f"{count} kills, {len(in_a_write)} of them in a write; left: {', '.join(left)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
