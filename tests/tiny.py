"""Tiny networks of transformers as folders that `save_pretrained` writes, and sets to show them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

WORDS = "good bad fine poor a film the plot".split()
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _named(names):
    if names is None:
        return {"num_labels": 10}
    return {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}


def resnet_folder(folder, names):
    """A ResNet of two blocks with random weights and its own image processor."""
    import transformers
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.ResNetForImageClassification(
            transformers.ResNetConfig(**sizes, **_named(names))
        )
    model.save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 16}).save_pretrained(folder)
    return folder


def bert_folder(folder, names, pad_token="[PAD]", kind="Bert", most=8, places=16):
    """A BERT, or one of its kin, of two blocks with random weights and a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate([*MARKS, *WORDS])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    own.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token=pad_token, unk_token="[UNK]", model_max_length=most
    )
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(vocabulary),
        intermediate_size=24,
        max_position_embeddings=places,
        pad_token_id=MARKS.index("[PAD]"),
        **sizes,
        **_named(names),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


def sized_images(root, names=("cat", "dog", "eel"), per_class=8):
    """A folder of images of many sizes, whose classes differ in their mean colour."""
    make = np.random.default_rng(0)
    for split in ("train", "test"):
        for k, name in enumerate(names):
            place = root / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = make.normal(60 * (k + 1), 40, (12 + i, 17 + i, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root


def texts_folder(root, n=24):
    """Sentences of one to nine words with their sentiment, whole numbers without names."""
    root.mkdir(parents=True, exist_ok=True)
    make = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = [i % 2 for i in range(n)]
        lengths = make.integers(1, 10, n)
        texts = [
            " ".join(make.choice(WORDS[4 * (1 - y) : 4 * (1 - y) + 5], length))
            for y, length in zip(labels, lengths, strict=True)
        ]
        pq.write_table(pa.table({"text": texts, "label": labels}), root / f"{split}.parquet")
    return root
