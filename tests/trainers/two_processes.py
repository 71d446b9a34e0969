"""Accelerate, Hugging Face's Trainer and Lightning on two processes, under torchrun, whose processes Lightning joins.

Run as a module from the project's root; its arguments are the trainer and an empty folder.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify
from tests.engines.processes import leave

TRAINER, FOLDER = sys.argv[1:]
X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Net(nn.Module):
    """A network that answers as those of transformers do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = bayesify(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), prior="normal")

    def forward(self, x, labels=None):
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def accelerate_run():
    """Two batches for each step, clipped gradients, the KL in the loss."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = Net()
    optimizer = torch.optim.Adam(bensemble.param_groups(net, lr=1e-2))
    model, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(TensorDataset(X, Y), 8))
    set_seed(1, device_specific=True)  # noise of its own in each process
    for _ in range(20):
        for x, y in loader:
            with accelerator.accumulate(model):
                nll, kl = model(x, y)["loss"], bensemble.kl_divergence(model)
                accelerator.backward(bensemble.elbo_loss(nll, kl, len(X), beta=0.1))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


def huggingface_run():
    """The KL once per optimizer step, by a callback."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class KL(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            torch.manual_seed(1 + args.process_index)  # the Trainer seeds all processes alike

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            (0.1 / len(X) * bensemble.kl_divergence(model)).backward()

    net = Net()
    options = TrainingArguments(
        FOLDER, num_train_epochs=20, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    optimizer = torch.optim.Adam(bensemble.param_groups(net, lr=1e-2))
    Trainer(net, options, train_dataset=data, callbacks=[KL()], optimizers=(optimizer, None)).train()
    return net


def lightning_run():
    """The strategy "ddp", with bf16 autocast, clipped gradients and two batches for each step."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def on_fit_start(self):
            torch.manual_seed(1 + self.global_rank)

        def training_step(self, batch):
            x, y = batch
            kl = bensemble.kl_divergence(self.net)
            return bensemble.elbo_loss(self.net(x, y)["loss"], kl, len(X), beta=0.1)

        def configure_optimizers(self):
            return torch.optim.Adam(bensemble.param_groups(self.net, lr=1e-2))

    module = Module()
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=20, accelerator="cpu", devices=2, strategy="ddp", precision="bf16-mixed", gradient_clip_val=1.0,
        accumulate_grad_batches=2, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, Y), 8))
    return module.net


torch.set_num_threads(1)
trained = {"accelerate": accelerate_run, "transformers": huggingface_run, "lightning": lightning_run}[TRAINER]()
mine = torch.cat([p.detach().flatten() for p in trained.parameters()])
everywhere = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(everywhere, mine)
assert torch.equal(*everywhere), "the processes have different parameters"
first = torch.rand(4)
dist.all_gather(draws := [torch.empty(4) for _ in range(2)], first)
assert not torch.equal(*draws), "the processes draw the same noise"
correct = (trained.eval()(X, Y)["logits"].argmax(1) == Y).float().mean()
summary = bensemble.posterior_summary(trained)
if dist.get_rank() == 0:
    print(f"{float(correct):.2f} right, KL {summary['kl']:.1f}")
assert correct > 0.8
leave()
