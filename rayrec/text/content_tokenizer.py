"""Token ids of content texts, by a pretrained encoder's tokenizer or T5's SentencePiece vocabulary; one JSON text, no network.

A content is "Label: text; Label: text" between a start and an end token, each field's text cut to its cap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from rayrec.text.encoder import MINILM, EncoderError, minilm_folder

_T5_SENTINELS = 100


@dataclass(frozen=True)
class ContentTokenizer:
    """json: in the form of the ``tokenizers`` package. start, end: ids around every text. vocabulary: number of ids."""

    json: str
    start: int
    end: int
    vocabulary: int

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without special tokens."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def texts(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Start, at most ``max_tokens`` ids, end; an empty list for an empty text."""
        return [[self.start, *ids[:max_tokens], self.end] if ids else [] for ids in self.pieces(texts)]

    def contents(self, fields: Sequence[tuple[str, int, Sequence[str]]]) -> list[list[int]]:
        """Ids of N contents from fields (label, cap, N texts); a field without text leaves no trace."""
        rows: list[list[int]] = [[] for _ in fields[0][2]]
        separator = self.pieces([";"])[0]
        for label, cap, texts in fields:
            before = self.pieces([f"{label}:"])[0]
            for row, ids in zip(rows, self.pieces(texts), strict=True):
                if ids:
                    row += [*(separator if row else ()), *before, *ids[:cap]]
        return [[self.start, *row, self.end] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def load_tokenizer(model: str) -> ContentTokenizer:
    """Of "minilm", an encoder's folder or hub id, or a file ``spiece.model`` of T5. Raises EncoderError when there is none."""
    if model.endswith(".model"):
        return _t5(Path(model))
    from transformers import AutoTokenizer  # seconds of imports

    try:
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder() if model == MINILM else model)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise EncoderError(f"tokenizer of {model!r}: {str(error).splitlines()[0]}") from None
    start = next((t for t in (tokenizer.cls_token_id, tokenizer.bos_token_id) if t is not None), None)
    end = next((t for t in (tokenizer.sep_token_id, tokenizer.eos_token_id) if t is not None), None)
    if end is None:
        raise EncoderError(f"tokenizer of {model!r} has no token that ends a text")
    if start is None:  # T5 knows none; its first sentinel never occurs in texts
        start = tokenizer.get_vocab().get("<extra_id_0>")
    if start is None:
        raise EncoderError(f"tokenizer of {model!r} has no token that starts a text")
    return ContentTokenizer(backend.to_str(), int(start), int(end), len(tokenizer))


def _t5(file: Path) -> ContentTokenizer:
    """A SentencePiece unigram model with T5's 100 sentinels behind it; texts start with the first sentinel and end with </s>."""
    if not file.is_file():
        raise EncoderError(f"{file}: no such file")
    pieces, charsmap = _sentencepiece(file)
    names = [name for name, _ in pieces]
    try:
        end, unknown = names.index("</s>"), names.index("<unk>")
    except ValueError:
        raise EncoderError(f"{file}: no SentencePiece model with </s> and <unk>") from None
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(_T5_SENTINELS))]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((name, 0.0) for name in sentinels)], unk_id=unknown))
    tokenizer.normalizer = normalizers.Precompiled(charsmap) if charsmap else None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *sentinels])
    start = len(names) + _T5_SENTINELS - 1  # <extra_id_0>
    return ContentTokenizer(tokenizer.to_str(), start, end, len(names) + _T5_SENTINELS)


def _sentencepiece(file: Path) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with scores, and the normalizer's table, of a SentencePiece ModelProto (fields 1 and 3.2). Raises EncoderError."""
    from transformers.utils import sentencepiece_model_pb2_new as schema

    proto = schema.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at import
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's own class differs by its version
        raise EncoderError(f"{file}: not a SentencePiece model: {error}") from None
    return [(piece.piece, piece.score) for piece in proto.pieces], proto.normalizer_spec.precompiled_charsmap
