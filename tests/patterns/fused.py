"""Modules that compute with the weights of modules they never call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern


@pattern("reads out_proj.weight without ever calling out_proj")
def attention():
    x = torch.randn(2, 5, 8)
    return nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x)


@pattern("three projections of different widths instead of a packed one")
def attention_separate():
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 7, 4), torch.randn(2, 7, 6))
    return nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True), inputs


@pattern("no biases, and learned key and value vectors that have three dimensions but one row")
def attention_bias_kv():
    x = torch.randn(5, 2, 8)
    return nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, add_zero_attn=True), (x, x, x)


class MaskedAttention(nn.Module):
    """Attention with a mask and without the attention map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


@pattern("a causal mask and no attention map take another path through the fused kernel")
def attention_masked():
    return MaskedAttention(), (torch.randn(5, 2, 8),)


@pattern("in eval and no_grad a fused kernel reads every weight of the layer and calls no child")
def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (torch.randn(2, 5, 8),)


class PaddedEncoder(nn.Module):
    """An encoder that receives the padding of its batch."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1], device=x.device)[None] >= lengths[:, None]
        return self.encoder(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0)


@pattern("padding turns the batch into a nested tensor on the fused path")
def encoder_padded():
    return PaddedEncoder(), {"x": torch.randn(3, 5, 8), "lengths": torch.tensor([5, 3, 2])}


@pattern("norms first, several layers made by deepcopy")
def encoder_norm_first():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 5, 8),)


@pattern("cross attention: one module called with two sources")
def decoder():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerDecoder(layer, 2), (torch.randn(2, 4, 8), torch.randn(2, 5, 8))


@pattern("encoder and decoder in one module")
def transformer():
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    return model, (torch.randn(2, 5, 8), torch.randn(2, 4, 8))


class FunctionalAttention(nn.Module):
    """Hands weights of its own to the functional form, in the way of CLIP's attention pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6, 8))
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positions[:, None]
        return F.multi_head_attention_forward(
            query=x[:1], key=x, value=x, embed_dim_to_check=8, num_heads=2,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
            in_proj_weight=None, in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=self.out.weight, out_proj_bias=self.out.bias,
            use_separate_proj_weight=True, training=self.training, need_weights=False,
        )[0]  # fmt: skip


@pattern("Linear modules that serve as bags of weights for a functional call", stays=("positions",))
def attention_functional():
    return FunctionalAttention(), (torch.randn(5, 2, 8),)


class FusedQKV(nn.Module):
    """Concatenates the weights of three Linears into one product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        q, k, v = F.linear(x, weight, bias).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


@pattern("weights of several modules are concatenated before use")
def fused_qkv():
    return FusedQKV(), (torch.randn(2, 5, 6),)


@pattern("two weight matrices of different inputs, one product")
def bilinear():
    return nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4))


@pattern("a loss with Linears inside, called through log_prob as well")
def adaptive_softmax():
    return AdaptiveHead(), (torch.randn(6, 8),)


class AdaptiveHead(nn.Module):
    """Log probabilities over a vocabulary in clusters."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8], div_value=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax.log_prob(x)
