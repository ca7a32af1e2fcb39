import sys

import numpy as np
import pytest

from enn.networks.bert.tokenizer import load_tokenizer

tokenizers = pytest.importorskip("tokenizers")

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "on", "mat"]


@pytest.fixture
def folder(tmp_path):
    tokenizer = tokenizers.BertWordPieceTokenizer(
        {word: i for i, word in enumerate(VOCAB)}
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_texts(folder):
    inputs = load_tokenizer(folder, max_length=6)(["The cats", "dog sat"])
    np.testing.assert_array_equal(
        inputs.token_ids, [[2, 4, 5, 7, 3, 0], [2, 1, 6, 3, 0, 0]]
    )
    np.testing.assert_array_equal(inputs.segment_ids, np.zeros([2, 6]))
    np.testing.assert_array_equal(
        inputs.input_mask, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    )
    assert {array.dtype for array in inputs[:3]} == {np.dtype(np.int32)}


def test_pairs_of_texts_are_two_segments(folder):
    inputs = load_tokenizer(folder / "tokenizer.json", 8)([("the cat", "sat")])
    np.testing.assert_array_equal(inputs.token_ids, [[2, 4, 5, 3, 6, 3, 0, 0]])
    np.testing.assert_array_equal(inputs.segment_ids, [[0, 0, 0, 0, 1, 1, 0, 0]])


def test_long_texts_are_cut_and_keep_their_last_token(folder):
    inputs = load_tokenizer(str(folder), max_length=4)(["the cat sat on the mat"])
    np.testing.assert_array_equal(inputs.token_ids, [[2, 4, 5, 3]])


def test_stored_padding_and_truncation_give_way(folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=3)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder, 5)(["the cat sat"]).input_mask.sum() == 5


def test_no_texts(folder):
    assert load_tokenizer(folder, max_length=4)([]).token_ids.shape == (0, 4)


def test_a_single_string_is_refused(folder):
    with pytest.raises(ValueError, match="texts must be a sequence of strings"):
        load_tokenizer(folder)("the cat")


def test_wrong_length(folder):
    with pytest.raises(ValueError, match="max_length"):
        load_tokenizer(folder, max_length=0)


def test_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[bert\]"'):
        load_tokenizer(folder)
