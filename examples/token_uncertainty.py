"""generate() with the uncertainty of each token: a small GPT-2 over characters, whose tied head alone is Bayesian.

It learns to write like a file of Python's standard library. Then it goes on after a beginning of that kind, and after
one of another kind. Needs transformers.

    python examples/token_uncertainty.py
"""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import bensemble
from bensemble.likelihoods import Categorical
from convert import bayesify, last_layer

LENGTH = 40


def encoded(text: str) -> Tensor:
    """Characters as numbers."""
    return torch.tensor([min(ord(c), 127) for c in text])


def windows(text: Tensor, step: int) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Batches of windows and, for each position, the character that follows."""
    found = text.unfold(0, LENGTH + 1, step)
    return [({"input_ids": part[:, :-1]}, part[:, 1:]) for part in found.split(32)]


def main() -> None:
    torch.manual_seed(0)
    text = encoded(inspect.getsource(argparse)[:40_000])
    train, held_out = text[:-6_000], text[-6_000:]
    config = GPT2Config(
        vocab_size=128, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    net = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(8):
        for inputs, target in windows(train, 31):
            optimizer.zero_grad()
            logits = net(**inputs).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
            optimizer.step()
    net.eval()

    tokens = Categorical(dim=-1)
    example = {"input_ids": train[None, :LENGTH]}
    bnn = bayesify(net, include=last_layer(net, example), example_inputs=example)
    print(bensemble.fit_posterior(bnn, windows(train, LENGTH), likelihood=tokens, val_loader=windows(held_out, LENGTH)))

    alone, unknown = [], []
    for prompt in ("        if self.option_strings is None:\n"[-30:], "Quantum hamsters, 42 of them: "):
        ids = encoded(prompt)[None]
        out = bnn.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)
        p = bensemble.predict(bnn, {"input_ids": out}, likelihood=tokens)
        new = slice(ids.shape[1] - 1, -1)  # position t says which character comes at t + 1
        print(f"\n{prompt!r} goes on, with entropy and mutual information in nats")
        columns = out[0, ids.shape[1] :], p.entropy[0, new], p.mutual_information[0, new]
        for token, entropy, mutual in zip(*columns, strict=True):
            print(f"  {chr(token)!r}  {entropy:.2f}  {mutual:.2f}")
        print(f"  mean entropy {p.entropy[0, new].mean():.2f}")
        alone.append(bensemble.predict(net, {"input_ids": out}, likelihood=tokens).entropy[0, new].mean())
        unknown.append(p.mutual_information[0, new].mean())
    print(f"\nbefore: entropy of the network alone {alone[0]:.2f}, and {alone[1]:.2f} nats after the strange beginning")
    print(f"after:  about the same; new is what the head does not know, {unknown[0]:.3f} and {unknown[1]:.3f} nats")


if __name__ == "__main__":
    main()
