"""Models of a few thousand weights: BERT with the world's WordPiece, ALBERT with a SentencePiece of its own."""
import functools
import itertools
import json

import torch

from modmem.facts import Benchmark, Evidence, Fact
from modmem.masked_lm import MaskedLM
from modmem.pretraining import PretrainingConfig
from modmem.synthetic import WorldRecipe, make_blank_model
from modmem.world import make_world

torch.set_num_threads(1)


def make_small_world(num_subjects=12):
    "The facts of a few people, all in memory."
    world = make_world(num_subjects)
    return Benchmark(world.facts[:], world.train[:], world.test[:], world.name)


WORLD = make_small_world()


def tiny_bert(num_blocks=3, seed=0):
    "A BERT of hidden size 32 with random weights; a new one at each call."
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "initial_std": 0.2}
    return make_blank_model(WorldRecipe(num_blocks=num_blocks, **shape, pretraining=PretrainingConfig(seed=seed)))


@functools.cache
def sentence_pieces():
    "Train a Unigram model on the world, so small that most words split: pieces and scores."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([one.text.replace("[MASK]", one.fact.object) for one in (*WORLD.train, *WORLD.test)], trainer)
    return [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]


def tiny_albert(num_blocks=3, seed=0):
    "An ALBERT, whose blocks are one, with a SentencePiece tokenizer; a new one at each call."
    import transformers

    tokenizer = transformers.AlbertTokenizer(vocab=sentence_pieces(), model_max_length=64)
    config = transformers.AlbertConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=num_blocks, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedLM(transformers.AlbertForMaskedLM(config), tokenizer)


TINY = {"bert": tiny_bert, "albert": tiny_albert}


def ask(text, answer, number=0):
    "An evidence about nobody in particular."
    return Evidence(Fact(f"t{number}", "ada", "birthplace", answer), text)


def snapshot(masked_lm):
    "All that training could change of a model: bits, flags, gradients and modes."
    weights = {
        name: (weight.detach().clone(), weight.requires_grad, weight.grad is None, weight.data_ptr())
        for name, weight in masked_lm.model.named_parameters()
    }
    return weights, [(module.training, getattr(module, "p", None)) for module in masked_lm.model.modules()]


def assert_untouched(masked_lm, before):
    "Compare a model with an earlier snapshot of it, bit by bit."
    weights, modes = snapshot(masked_lm)
    assert modes == before[1]
    for name, (weight, *flags) in weights.items():
        assert same_bits(weight, before[0][name][0]) and flags == list(before[0][name][1:]), name


def same_bits(a, b):
    "Equality that tells 0.0 from -0.0 and accepts nan."
    return torch.equal(a.detach().contiguous().view(torch.int32), b.detach().contiguous().view(torch.int32))


def assert_cuts_change_nothing(masked_lm, batch):
    "A pass that is cut at any two blocks gives the scores of the whole pass, bit for bit."
    with torch.no_grad():
        whole, embedded = masked_lm(batch), masked_lm.embed(batch)
        for first, second in itertools.combinations_with_replacement(range(len(masked_lm.blocks)), 2):
            hidden = masked_lm.run_blocks(embedded, batch, stop=first)
            hidden = masked_lm.run_blocks(hidden, batch, first, second)
            assert same_bits(masked_lm.score_slots(masked_lm.read_slots(hidden, batch, start=second)), whole)


def same_weights(one, other):
    "Whether two models agree in every bit."
    return all(same_bits(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
