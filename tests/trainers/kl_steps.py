"""How far one optimizer step moves rho when the KL alone has a gradient, for several numbers of accumulated batches.

A script of its own: it needs transformers and accelerate, which the tests' environment keeps apart.
"""

import runpy
import sys
import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from convert import bayesify


class Silent(nn.Module):
    """A network whose loss is 0 whatever its weights are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 2)

    def forward(self, x, labels):
        return {"loss": 0 * self.body(x).sum()}


example = runpy.run_path(sys.argv[1])
for accumulated in (1, 2, 3):
    bnn = bayesify(Silent())
    before = bnn.body.w_rho.detach().clone()
    data = [{"x": torch.ones(3), "labels": torch.tensor(0)}] * (4 * accumulated)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=accumulated,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
            max_grad_norm=0.0,
        )  # fmt: skip
        optimizer = torch.optim.SGD(bnn.parameters(), lr=1e-2)
        kl = example["KLCallback"](num_data=10, beta=1.0)
        Trainer(bnn, options, train_dataset=data, callbacks=[kl], optimizers=(optimizer, None)).train()
    print(f"moved {float((bnn.body.w_rho.detach() - before).abs().sum()):.9f}")
