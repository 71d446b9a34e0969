"""LoRA with uncertainty: adapters of peft on a Hugging Face classifier, their posterior, and that of the last layer.

The task: from which file of Python's standard library is a line of 32 characters? A small BERT over characters learns
three files; LoRA adapters (and a new head) then learn three others. Needs transformers and peft.

    python examples/lora_classifier.py
"""

from __future__ import annotations

import importlib
import inspect

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import bensemble
from convert import bayesify, export_onnx, last_layer

LENGTH = 32


def lines_of(modules: list[str]) -> tuple[Tensor, Tensor]:
    """Characters of lines, (N, LENGTH), and the number of the module each comes from."""
    rows, labels = [], []
    for number, name in enumerate(modules):
        text = inspect.getsource(importlib.import_module(name))
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 20][:600]
        rows += [[min(ord(c), 127) for c in line[:LENGTH].ljust(LENGTH)] for line in lines]
        labels += [number] * len(lines)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return torch.tensor(rows)[order], torch.tensor(labels)[order]


def batches(x: Tensor, y: Tensor) -> list[tuple[dict[str, Tensor], Tensor]]:
    return [({"input_ids": a}, b) for a, b in zip(x.split(64), y.split(64), strict=True)]


def train(net: nn.Module, data: list[tuple[dict[str, Tensor], Tensor]], epochs: int) -> None:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 2e-3)
    for _ in range(epochs):
        for inputs, target in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(**inputs).logits, target).backward()
            optimizer.step()
    net.eval()


def scores(prediction: bensemble.ClassPrediction, y: Tensor) -> str:
    """Accuracy in percent, NLL in nats, and the expected calibration error over ten bins in points."""
    confidence, answer = prediction.probs.max(1)
    right = (answer == y).float()
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [(confidence[bins == b] - right[bins == b]).sum().abs() for b in range(10)]
    return f"accuracy {100 * right.mean():.1f} %, NLL {nll(prediction, y):.3f}, ECE {100 * sum(gaps) / len(y):.1f}"


def nll(prediction: bensemble.ClassPrediction, y: Tensor) -> float:
    return float(-prediction.probs[range(len(y)), y].clamp_min(1e-30).log().mean())


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        num_labels=3, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    base = BertForSequenceClassification(config)
    train(base, batches(*lines_of(["argparse", "tarfile", "_pydecimal"])), 12)
    x, y = lines_of(["turtle", "mailbox", "ast"])
    parts = list(zip(x.split([900, 300, len(x) - 1200]), y.split([900, 300, len(x) - 1200]), strict=True))
    net = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"]))
    loader, val, (x_test, y_test) = batches(*parts[0]), batches(*parts[1]), parts[2]
    train(net, loader, 12)
    example, test = {"input_ids": x[:2]}, {"input_ids": x_test}

    alone = bensemble.predict(net, test, likelihood="categorical")
    print("adapter alone       ", scores(alone, y_test))
    held_out = bensemble.predict(net, {"input_ids": parts[1][0]}, likelihood="categorical")
    tempered = bensemble.calibrate(held_out, parts[1][1]).apply(alone)
    print("with one temperature", scores(tempered, y_test))

    adapters = bayesify(net, include="*lora_*", example_inputs=example)
    bensemble.fit_posterior(adapters, loader, likelihood="categorical", structure="kronecker", val_loader=val)
    print("posterior of LoRA   ", scores(bensemble.predict(adapters, test, likelihood="categorical"), y_test))

    head = bayesify(net, include=last_layer(net, example), example_inputs=example)
    print(bensemble.fit_posterior(head, loader, likelihood="categorical", val_loader=val))
    sure = bensemble.predict(head, test, likelihood="categorical")
    print("last layer          ", scores(sure, y_test))
    report = export_onnx(head, "lora.onnx", example, outputs="uncertainty", likelihood="categorical")
    print(f"lora.onnx: {report.size / 1e3:.0f} kB, max error {report.max_error:.1e}")
    print(f"before: NLL {nll(alone, y_test):.3f}, the adapter alone; {nll(tempered, y_test):.3f} with one temperature")
    print(f"after:  NLL {nll(sure, y_test):.3f}, the last layer Bayesian, in one file")


if __name__ == "__main__":
    main()
