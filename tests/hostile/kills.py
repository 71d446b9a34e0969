"""A process that writes for ever and is killed: ``python -m tests.hostile.kills DEED COUNT FOLDER``.

One kill comes at a random moment, the next one in the middle of a write, and so on. Every child is a fork of one
process that has everything imported, so that a kill costs no start. After each kill the file must be one of those that
were written whole; at the end nothing but the file may be left.
"""

from __future__ import annotations

import contextlib
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
from bensemble.checkpoint.writing import LOCK
from convert import bayesify, export_onnx
from tests.remembering import remember_operators

__all__ = ["DEEDS"]

X = torch.linspace(-1, 1, 3 * 64).reshape(3, 64)
STEPS, EVERY = 60, 5


def network(seed: int = 0) -> nn.Module:
    """A network of half a million weights, so that writing it takes time."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 3))


class Versions:
    """Writes one of two models again and again; the file must always be one of the two.

    Attributes:
        window: Seconds from the first byte of a new file until it takes the place of the old one, about.
    """

    window: float

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
        found = self.read(self.path)
        assert any(torch.allclose(found, known, atol=1e-5) for known in self.known), "another model"

    def finish(self) -> None:
        """Write once more, as the next run does."""
        self.write(self.models[0])
        self.check()


class Saving(Versions):
    """``bensemble.save``."""

    window = 0.002

    def write(self, model: nn.Module) -> None:
        bensemble.save(model, self.path)

    def read(self, path: Path) -> Tensor:
        return bensemble.load(path, network()).eval()(X).detach()


class Exporting(Versions):
    """``export_onnx``, which runs the file before it takes the old one's place."""

    window = 0.3

    def write(self, model: nn.Module) -> None:
        export_onnx(model, self.path, X[:1])

    def read(self, path: Path) -> Tensor:
        reader = os.fork()  # ONNX Runtime's threads must not be there when the next child is forked
        if not reader:
            status = 1
            try:
                from convert import OnnxModel

                torch.save(OnnxModel(path)(X), f"{self.path}-out")
                status = 0
            finally:  # whatever happens, this process must not go on as its parent does
                os._exit(status)
        assert os.waitpid(reader, 0)[1] == 0, "the file does not run"
        out = Path(f"{self.path}-out")
        found = torch.load(out)
        out.unlink()
        return found


class Training:
    """A loop that checkpoints and goes on from its checkpoint: it ends, bit for bit, where an undisturbed one ends."""

    window = Saving.window

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"
        self.start_again()
        self.expected = self.train()
        self.start_again()

    def bare(self) -> nn.Module:
        """The network to train; its buffer counts the steps."""
        bare = network()
        bare.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        return bare

    def start_again(self) -> None:
        """Put a model that has seen no step in the checkpoint's place."""
        bensemble.save(bayesify(self.bare()), self.path)

    def read(self, path: Path) -> nn.Module:
        return bensemble.load(path, self.bare())

    def train(self) -> dict[str, Tensor]:
        """All steps that are left; the noise of a step depends on its number alone."""
        bnn = self.read(self.path).train()
        optimizer = torch.optim.SGD(bensemble.param_groups(bnn, lr=1e-2, rho_lr=1e-2))
        for step in range(int(bnn.steps), STEPS):
            torch.manual_seed(step)
            loss = bnn(X).square().mean() + 1e-6 * bensemble.kl_divergence(bnn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bnn.steps += 1
            if (step + 1) % EVERY == 0:
                bensemble.save(bnn, self.path)
        return bnn.state_dict()

    def work(self) -> None:
        """What a child does until it is killed."""
        while True:
            self.train()
            self.start_again()

    def check(self) -> None:
        """Raise unless the file is a checkpoint."""
        steps = int(self.read(self.path).steps)
        assert steps % EVERY == 0, f"a checkpoint of step {steps}"

    def finish(self) -> None:
        """Train to the end, and write once more."""
        state = self.train()
        assert all(torch.equal(value, self.expected[name]) for name, value in state.items()), "another end"
        self.start_again()


DEEDS: dict[str, Callable[[Path], Versions | Training]] = {
    "save": Saving,
    "export": Exporting,
    "train": Training,
}


class Marksman:
    """Kills children, every second one in the middle of a write, and notes where each kill fell.

    Attributes:
        fell: How many kills fell where; a new file that cannot be read was half written.
    """

    def __init__(self, doing: Versions | Training, seed: str, longest: float) -> None:
        self.doing, self.rng, self.longest = doing, random.Random(seed), longest
        self.fell = dict.fromkeys(["between writes", "before the new file", "half written", "before the rename"], 0)
        self._seen: set[Path] = set()

    def kill(self, child: int, in_a_write: bool) -> None:
        """Wait for the moment, kill, and look at what is left."""
        try:
            while in_a_write and not any(_new_file(folder) for folder in self._folders()):
                time.sleep(self.doing.window / 100)
            delay = self.rng.choice([0.0, self.rng.random()])  # a file is half written for a moment only
            time.sleep(delay * self.doing.window if in_a_write else self.rng.uniform(0, self.longest))
        finally:  # without it the child would go on for ever
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        folders = self._folders()
        self.fell[self._place(folders)] += 1
        self._seen.update(folders)

    def _folders(self) -> list[Path]:
        """Where the child writes."""
        path = self.doing.path
        return [folder for folder in path.parent.glob(f".{path.name}.*.tmp") if folder not in self._seen]

    def _place(self, folders: list[Path]) -> str:
        if not folders:
            return "between writes"
        new = _new_file(folders[0])
        if new is None:
            return "before the new file"
        try:
            self.doing.read(new)
        except Exception:
            return "half written"
        return "before the rename"


def _new_file(folder: Path) -> Path | None:
    """The file that is being written, which a library may call as it likes."""
    with contextlib.suppress(FileNotFoundError):  # the folder is gone again
        return next((folder / name for name in os.listdir(folder) if name != LOCK), None)
    return None


def main(deed: str, count: int, folder: Path) -> None:
    """Start a child and kill it, so many times; print where the kills fell."""
    torch.set_num_threads(1)
    remember_operators()
    start = time.monotonic()
    doing = DEEDS[deed](folder)
    marksman = Marksman(doing, deed, max(0.05, (time.monotonic() - start) / 2))
    for number in range(count):
        child = os.fork()
        if not child:
            doing.work()
            os._exit(0)
        marksman.kill(child, in_a_write=number % 2 == 1)
        try:
            doing.check()
        except Exception as err:
            raise SystemExit(f"after kill {number}: {type(err).__name__}: {err}") from err
        time.sleep(1.1)  # a file of the last second may belong to somebody who is about to lock it
    doing.finish()
    left = sorted(path.name for path in folder.iterdir())
    print(f"{count} kills: {', '.join(f'{n} {where}' for where, n in marksman.fell.items())}; left: {', '.join(left)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
