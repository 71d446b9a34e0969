"""A Bayesian network as a LightningModule. Needs `pip install lightning`."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify


class Digits(lightning.LightningModule):
    """The network, its loss and its optimizer."""

    def __init__(self, network, num_data):
        super().__init__()
        self.bnn, self.num_data = bayesify(network, prior="normal", prior_sigma=0.3), num_data

    def training_step(self, batch):
        x, y = batch
        beta = 0.1 * bensemble.kl_warmup(self.global_step, self.trainer.estimated_stepping_batches)
        nll, kl = torch.nn.functional.cross_entropy(self.bnn(x), y), bensemble.kl_divergence(self.bnn)
        return bensemble.elbo_loss(nll, kl, self.num_data, beta)

    def configure_optimizers(self):
        return torch.optim.Adam(bensemble.param_groups(self.bnn, lr=3e-3, rho_lr=1e-2))


if __name__ == "__main__":
    lightning.seed_everything(0)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    train, x_test, y_test = TensorDataset(x[:1297].float() / 16, y[:1297]), x[1297:].float() / 16, y[1297:]
    layers = torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    module = Digits(torch.nn.Sequential(*layers), num_data=len(train))
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(max_epochs=30, accelerator="cpu", **options).fit(module, DataLoader(train, 64, shuffle=True))
    p = bensemble.predict(module.bnn, x_test, likelihood="categorical")
    right, kept = p.probs.argmax(-1) == y_test, ~p.reject(share=0.1)
    print(f"before: it answers everything, {right.float().mean():.1%} right")
    print(f"after:  without the tenth of the highest entropy, {right[kept].float().mean():.1%} right")
