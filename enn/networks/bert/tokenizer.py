"""Token ids from text."""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from enn import _checks, _extras
from enn.networks.bert.base import BertInput

Texts = Sequence[str] | Sequence[tuple[str, str]]


def load_tokenizer(
    path: str | os.PathLike[str], max_length: int = 128
) -> Callable[[Texts], BertInput]:
    """Returns a function from texts to the inputs of BERT.

    Longer texts are cut and shorter ones padded, so that all batches have one shape
    and `jax.jit` compiles once.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from enn.networks import bert
    >>> words = {"[PAD]": 0, "[UNK]": 1, "to": 2, "be": 3}
    >>> tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer.save("tokenizer.json")  # Or that of a checkpoint
    >>> print(bert.load_tokenizer(".", max_length=4)(["to be or"]).token_ids)
    [[2 3 1 0]]

    Args:
      path: folder with `tokenizer.json`, or such a file.
      max_length: number of tokens of every text, special ones included; at most
        `max_position_embeddings` of the network.

    Returns:
      Function of a sequence of texts, or of pairs of texts for segments 0 and 1,
      that returns a `BertInput` with int32 arrays `[len(texts), max_length]`.

    Raises:
      ImportError: without tokenizers, which the extra `bert` installs.
      ValueError: if `max_length` is not an integer >= 1; by the function for a single
        string.
    """
    tokenizers = _extras.require("tokenizers", "bert")
    _checks.positive_int("max_length", max_length)
    file = pathlib.Path(path)
    file = file if file.suffix == ".json" else file / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(
        length=max_length, pad_id=tokenizer.token_to_id("[PAD]") or 0
    )

    def tokenize(texts: Texts) -> BertInput:
        if isinstance(texts, str):
            raise ValueError(f"texts must be a sequence of strings, got {texts!r}.")
        encodings = tokenizer.encode_batch(list(texts))

        def stack(name: str) -> np.ndarray:
            rows = [getattr(encoding, name) for encoding in encodings]
            return np.array(rows, np.int32).reshape(len(rows), max_length)

        return BertInput(stack("ids"), stack("type_ids"), stack("attention_mask"))

    return tokenize
