"""A Bayesian transformer with Hugging Face's Trainer and gradient accumulation: the KL counts once per optimizer step.

Needs `pip install transformers accelerate`. The configuration is tiny, and nothing is downloaded.
"""

import copy
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import bensemble
from convert import bayesify


class KLCallback(TrainerCallback):
    """Adds the gradient of the KL once before each optimizer step, for any number of accumulated batches."""

    def __init__(self, num_data, beta):
        self.weight = beta / num_data

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        (self.weight * bensemble.kl_divergence(model)).backward()


def make_sentences(count):
    """Sentences of twelve words. The class says whether word 1 or word 2 occurs more often."""
    words = torch.randint(1, 30, (count, 12))
    words[:, ::2] = torch.randint(1, 3, (count, 6))
    labels = ((words == 1).sum(1) > (words == 2).sum(1)).long()
    return [
        {"input_ids": w, "attention_mask": torch.ones_like(w), "labels": y} for w, y in zip(words, labels, strict=True)
    ]


def main():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    train = make_sentences(512)
    bnn = bayesify(BertForSequenceClassification(config), prior="normal", prior_sigma=0.3)  # trained from scratch
    untrained = copy.deepcopy(bnn)
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=3e-3, rho_lr=1e-2))
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, num_train_epochs=10, per_device_train_batch_size=16, gradient_accumulation_steps=2,
            logging_steps=16, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        kl = KLCallback(num_data=len(train), beta=0.01)  # 17,000 weights and 512 sentences: beta = 1 is too large
        trainer = Trainer(bnn, options, train_dataset=train, callbacks=[kl], optimizers=(optimizer, None))
        trainer.model_accepts_loss_kwargs = False  # BERT's loss is a batch mean; the Trainer averages it
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"The NLL went from {losses[0]:.3f} to {losses[-1]:.3f} nats.")
    test = make_sentences(256)
    inputs, classes = (torch.stack([sentence[key] for sentence in test]) for key in ("input_ids", "labels"))
    p, before = (bensemble.predict(net, {"input_ids": inputs}, likelihood="categorical") for net in (bnn, untrained))
    right = p.probs.argmax(-1) == classes
    print(f"before: {(before.probs.argmax(-1) == classes).float().mean():.1%} correct, untrained")
    print(f"after:  {right.float().mean():.1%} correct; entropy {p.entropy[right].mean():.3f} nats, ", end="")
    print(f"for wrong answers {p.entropy[~right].mean():.3f}; mutual information {p.mutual_information.mean():.1e}")


if __name__ == "__main__":
    main()
