"""The text tower against transformers' BERT on the same weights."""

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from lotlip.model import TextTowerConfig
from lotlip.model.packing import pack
from lotlip.model.pretrained import load_bert
from lotlip.model.text_tower import TextTower

VOCAB_SIZE = 60
CLS, SEP = 2, 3


def bert(num_words: int = VOCAB_SIZE) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=num_words,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        initializer_range=0.3,  # features that differ much from token to token
        attn_implementation="eager",
    )
    return BertModel(config).eval()


def tower_config(num_corner_tokens: int) -> TextTowerConfig:
    return TextTowerConfig(
        num_corner_tokens=num_corner_tokens,
        vocab_size=VOCAB_SIZE,
        context_length=24,
        num_positions=40,
        width=32,
        num_layers=3,
        num_heads=4,
    )


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    bert().save_pretrained(folder)
    return folder


def make_tower(folder, num_corner_tokens: int) -> TextTower:
    torch.manual_seed(1)
    tower = TextTower(tower_config(num_corner_tokens))
    load_bert(tower, str(folder))
    torch.nn.init.normal_(tower.embeddings.corners, std=0.5)
    return tower.eval()


def padded_ids(num_corner_tokens: int, lengths=(9, 4, 14, 1)) -> Tensor:
    """Texts of so many words, with a separator in the middle of the longer ones."""
    generator = torch.Generator().manual_seed(7)
    control = [CLS, *range(VOCAB_SIZE, VOCAB_SIZE + num_corner_tokens)]
    texts = []
    for length in lengths:
        words = torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist()
        if length > 5:
            words[length // 2] = SEP
        texts.append(torch.tensor([*control, *words, SEP]))
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)


def features(tower: TextTower, ids: Tensor) -> Tensor:
    """[CLS] and corner tokens of each text: [n, 1 + m, D]."""
    packed = pack(ids, tower.config.num_corner_tokens)
    return tower(packed).unflatten(0, (len(ids), -1))


def mask_of_the_paper(ids: Tensor, m: int) -> Tensor:
    """[n, T, T], 1 where a query may look at a key, one entry after the other."""
    num_texts, length = ids.shape
    mask = torch.zeros(num_texts, length, length)
    for text in range(num_texts):
        for query in range(length):
            for key in range(length):
                if ids[text, key] == 0:
                    continue
                corner_query, corner_key = 1 <= query <= m, 1 <= key <= m
                if corner_key:
                    allowed = query == key
                elif key == 0:
                    allowed = not corner_query
                else:
                    allowed = True
                mask[text, query, key] = float(allowed)
    return mask


def reference_features(tower: TextTower, ids: Tensor, m: int) -> Tensor:
    """What the authors' text tower gives, with transformers' BERT."""
    words = bert()
    model = bert(VOCAB_SIZE + m)
    state = words.state_dict()
    table = torch.cat([state["embeddings.word_embeddings.weight"], tower.embeddings.corners])
    model.load_state_dict(state | {"embeddings.word_embeddings.weight": table.detach()})
    additive = (1.0 - mask_of_the_paper(ids, m)[:, None]) * torch.finfo(torch.float32).min
    states = model(input_ids=ids, attention_mask=additive).last_hidden_state
    return torch.tanh(model.pooler.dense(states[:, : m + 1]))


@torch.no_grad()
def test_without_corner_tokens_it_is_bert(bert_folder):
    ids = padded_ids(0)
    expected = bert()(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    got = features(make_tower(bert_folder, 0), ids)
    assert got.shape == (4, 1, 32)
    torch.testing.assert_close(got[:, 0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 2, 4])
def test_corner_features_are_those_of_bert_with_the_mask_of_the_paper(bert_folder, m):
    tower, ids = make_tower(bert_folder, m), padded_ids(m)
    expected = reference_features(tower, ids, m)
    got = features(tower, ids)
    assert got.shape == (4, 1 + m, 32)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got[:, 0] - got[:, 1]).abs().max() > 0.1  # else any mask would do


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_corner_token_changes_its_own_feature_only(bert_folder, m):
    tower, ids = make_tower(bert_folder, m), padded_ids(m)
    before = features(tower, ids)
    for corner in range(m):
        tower.embeddings.corners[corner] += torch.randn(32)
        after = features(tower, ids)
        changed = (after - before).abs().amax(dim=(0, 2)) > 1e-6
        assert changed.tolist() == [position == 1 + corner for position in range(1 + m)]
        before = after


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_cls_feature_is_that_of_bert_with_shifted_positions(bert_folder, m):
    ids = padded_ids(m)
    plain = torch.cat([ids[:, :1], ids[:, 1 + m :]], dim=1)
    positions = torch.tensor([[0, *range(m + 1, ids.shape[1])]]).expand(len(ids), -1)
    expected = bert()(
        input_ids=plain, attention_mask=(plain != 0).long(), position_ids=positions
    ).pooler_output
    got = features(make_tower(bert_folder, m), ids)[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("m", [0, 2])
def test_padding_has_no_influence(bert_folder, m):
    tower, ids = make_tower(bert_folder, m), padded_ids(m)
    longer = torch.nn.functional.pad(ids, (0, 6))
    torch.testing.assert_close(features(tower, longer), features(tower, ids), atol=1e-5, rtol=0)
    together = features(tower, ids)
    for text, feature in zip(ids, together, strict=True):
        alone = features(tower, text[text != 0][None])[0]
        torch.testing.assert_close(feature, alone, atol=1e-5, rtol=0)
    before = features(tower, longer)
    tower.embeddings.words.weight[0] = 100.0  # the row of padding
    torch.testing.assert_close(features(tower, longer), before, atol=1e-5, rtol=0)


def test_gradients_reach_every_corner_token(bert_folder):
    tower, ids = make_tower(bert_folder, 2), padded_ids(2)
    features(tower, ids)[:, 1].square().sum().backward()
    corners = tower.embeddings.corners.grad
    assert corners is not None
    assert corners[0].norm() > 1e-4
    assert corners[1].norm() == 0
    features(tower, ids)[:, 2].square().sum().backward()
    assert corners[1].norm() > 1e-4


def test_corner_tokens_start_out_different_from_each_other():
    corners = TextTower(tower_config(4)).embeddings.corners.detach()
    assert torch.pdist(corners).min() > 0.02


def test_without_corner_tokens_every_parameter_that_learns_gets_a_gradient(bert_folder):
    """DistributedDataParallel waits for the others."""
    tower = make_tower(bert_folder, 0)
    features(tower, padded_ids(0)).square().sum().backward()
    silent = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@pytest.mark.parametrize("locked_layers", [-1, 2])
def test_corner_tokens_learn_where_the_rest_is_locked(locked_layers):
    config = tower_config(2)
    tower = TextTower(
        TextTowerConfig(**{**vars(config), "locked_layers": locked_layers}),
    )
    locked = {id(parameter) for parameter in tower.locked_parameters()}
    names = {name for name, parameter in tower.named_parameters() if id(parameter) not in locked}
    learning = {"embeddings.corners"}
    if locked_layers == 2:
        learning |= {name for name in tower.state_dict() if name.startswith(("layers.2", "pooler"))}
    assert names == learning


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    tower = TextTower(TextTowerConfig(**{**vars(tower_config(2)), "dropout": 0.5}))
    ids = padded_ids(2)
    assert not torch.equal(features(tower, ids), features(tower, ids))
    tower.eval()
    assert torch.equal(features(tower, ids), features(tower, ids))
