"""A tiny random model of every family, each with a tokenizer of its family's kind; nothing is downloaded."""
import functools
import json

import torch
from tiny_models import WORLD
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from modmem.masked_lm import MaskedLM
from modmem.world import world_vocabulary

SENTENCES = [one.text.replace("[MASK]", one.fact.object) for one in (*WORLD.train, *WORLD.test)]
BERT_LIKE = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


@functools.cache
def byte_pairs(*special):
    "Train byte-level BPE on the world: pieces and merges."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@functools.cache
def sentence_pieces(unknown, *special):
    "Train a Unigram model on the world, so small that most words split: pieces and scores."
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=list(special), unk_token=unknown, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]


def word_piece():
    import transformers

    return transformers.BertTokenizerFast(vocab={piece: number for number, piece in enumerate(world_vocabulary())})


def like_mpnet():
    import transformers

    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    pieces = dict.fromkeys([*special, *(piece for piece in world_vocabulary() if not piece.startswith("["))])
    return transformers.MPNetTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


def like_roberta():
    import transformers

    vocabulary, merges = byte_pairs("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=AddedToken("<mask>", lstrip=True))


def like_xlm_roberta():
    import transformers

    pieces = sentence_pieces("<unk>", "<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return transformers.XLMRobertaTokenizer(vocab=pieces, mask_token=AddedToken("<mask>", lstrip=True))


def like_deberta():
    import transformers

    pieces = sentence_pieces("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
    return transformers.DebertaV2Tokenizer(vocab=pieces, unk_id=3)


def byte_level(mask_takes_space=True):
    "Byte-level BPE with BERT's special tokens, as ModernBERT has it."
    import transformers
    from tokenizers import decoders

    vocabulary, merges = byte_pairs(*BERT_LIKE.values())
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=mask_takes_space)
    tokenizer.decoder = decoders.ByteLevel()
    names = BERT_LIKE | {"mask_token": AddedToken("[MASK]", lstrip=mask_takes_space)}
    from tokenizers.processors import TemplateProcessing

    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


DISENTANGLED = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
FAMILIES = {  # name -> model_type, tokenizer, settings that only this family has
    "bert": ("bert", word_piece, {}),
    "bert-byte-level": ("bert", lambda: byte_level(mask_takes_space=False), {}),
    "roberta": ("roberta", like_roberta, {"type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", like_xlm_roberta, {"type_vocab_size": 1}),
    "electra": ("electra", word_piece, {"embedding_size": 16}),
    "distilbert": ("distilbert", word_piece, {"hidden_dim": 64}),
    "albert": ("albert", word_piece, {"embedding_size": 16}),
    "mpnet": ("mpnet", like_mpnet, {}),
    "deberta-v2": ("deberta-v2", like_deberta, DISENTANGLED | {"conv_kernel_size": 3}),
    "deberta-v3": ("deberta-v2", like_deberta, DISENTANGLED | {"legacy": False, "share_att_key": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}),
    "modernbert": ("modernbert", byte_level, {"global_attn_every_n_layers": 2, "local_attention": 6}),
}


def tiny_family(name, num_blocks=3, seed=0):
    "A model of hidden size 32 with random weights; a new one at each call."
    import transformers

    model_type, make_tokenizer, settings = FAMILIES[name]
    tokenizer = make_tokenizer()
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos", "cls", "sep")}
    shape = {"hidden_size": 32, "num_hidden_layers": num_blocks, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(model_type, vocab_size=len(tokenizer), initializer_range=0.2, **special, **shape, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedLM(transformers.AutoModelForMaskedLM.from_config(config), tokenizer)
