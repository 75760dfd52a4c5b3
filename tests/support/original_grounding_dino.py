"""Files of GroundingDINO in its original format, from the package's real classes with random weights."""

import torch

from mask_guided_video.perception.detection import grounding_dino_original as original

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . ? a red blue ball square dog ##s".split()


def write_vocabulary(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def build(folder, full_size=False):
    """A model of the package itself with random weights; shapes in the file are all that tells its size."""
    from transformers import BertConfig, BertModel

    tokenizer = original.load_tokenizer(write_vocabulary(folder))
    text = {} if full_size else {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    heads = 12 if full_size else 1
    vocabulary = 30522 if full_size else 40
    shapes = {
        original._PATCHES: torch.empty(96, 3, 4, 4),
        original._BIASES: torch.empty(169, 3),
        original._QUERIES: torch.empty(900 if full_size else 30, 256),
        original._WIDENING: torch.empty(2048 if full_size else 64, 256),
        f"transformer.encoder.layers.{5 if full_size else 0}.norm": torch.empty(1),
        f"transformer.decoder.layers.{5 if full_size else 1}.norm": torch.empty(1),
    }
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=vocabulary, num_attention_heads=heads, **text))
    with original.package_with(tokenizer, bert) as package:
        return package.build_groundingdino(original.config_of(shapes))


def write(model, path):
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    # Published files have these two as well.
    state["module.label_enc.weight"] = torch.zeros(3, 256)
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, path)
