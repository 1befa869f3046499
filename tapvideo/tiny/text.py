"""The embedded model's tokenizer and text encoder: a word-level vocabulary and a small `UMT5EncoderModel`."""

import random

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from tapvideo.tiny import scenes

TEXT_DIM = 64
CAPTION_TOKENS = 24  # the longest caption has 23 words, and its end mark
_UNSAID = "unsaid"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower-cased, closed by `</s>` so that the empty prompt is a token too."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *scenes.vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A new two-layer encoder of width `TEXT_DIM`."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            tie_word_embeddings=False,
        )
    )


@torch.no_grad()
def embed(tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, captions: list[str]) -> Float[Tensor, "b l d"]:
    """Caption embeddings as `WanPipeline` makes them: zero behind the last token."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=CAPTION_TOKENS, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None]


class AttributeHeads(nn.Module):
    """Linear heads that read the whole caption's attributes off every token; they only exist during training."""

    def __init__(self) -> None:
        super().__init__()
        per_object = ((*scenes.COLORS, _UNSAID), (*scenes.SHAPES, _UNSAID), (*scenes.MOTIONS, _UNSAID))
        whole = (tuple(scenes.COLORS), scenes.TEXTURES, ("0", "1", "2"))
        self.classes = (*per_object, *per_object, *whole)
        self.heads = nn.ModuleList(nn.Linear(TEXT_DIM, len(names)) for names in self.classes)

    def targets(self, scene: scenes.Scene) -> list[int]:
        """Class numbers of a scene, one a head."""
        unsaid = scenes.SceneObject(_UNSAID, _UNSAID, _UNSAID)
        first, second = (*scene.objects, unsaid)[:2]
        said = [first.color, first.shape, first.motion, second.color, second.shape, second.motion]
        said += [scene.background, scene.texture, str(len(scene.extras))]
        return [names.index(value) for names, value in zip(self.classes, said, strict=True)]

    def loss(self, hidden: Float[Tensor, "b l d"], mask: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy over all tokens and heads, and the share of right answers."""
        total, right = hidden.new_zeros(()), 0.0
        for head, target in zip(self.heads, targets.T, strict=True):
            logits = head(hidden)[mask]
            expected = target[:, None].expand(mask.shape)[mask]
            total = total + nn.functional.cross_entropy(logits, expected)
            right += (logits.argmax(-1) == expected).float().mean().item()
        return total, right / len(self.heads)


def train_step(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, heads: AttributeHeads, rng: random.Random
) -> tuple[Tensor, float]:
    """Loss and accuracy on one batch of fresh captions."""
    batch = [scenes.sample_scene(rng) for _ in range(64)]
    tokens = tokenizer([scenes.caption(s) for s in batch], padding=True, return_tensors="pt").to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    targets = torch.tensor([heads.targets(s) for s in batch], device=encoder.device)
    return heads.loss(hidden, tokens.attention_mask.bool(), targets)
