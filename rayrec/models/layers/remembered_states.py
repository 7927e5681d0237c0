"""What a frozen text encoder says of token rows, kept so that a row is encoded once and not once an epoch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class RememberedStates:
    """At most ``most`` rows, encoded in bfloat16, kept in half precision on the CPU; those that came first stay.

    Not part of a model's weights.

    encode: ids (B, K) and which are real (B, K) to states (B, K, E); the same for a row whatever stands beside it.
    """

    def __init__(self, encode: Callable[[Tensor, Tensor], Tensor], most: int) -> None:
        self._encode, self._most = encode, most
        self._known: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, ids: Tensor, real: Tensor) -> Tensor:
        """States (B, K, E) float32, zeros where nothing is real; real tokens stand first in each row."""
        rows, lengths = ids.cpu().numpy(), real.sum(1).tolist()
        keys = [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        fresh: dict[bytes, Tensor] = {}
        if new:
            numbers = torch.tensor(list(new.values()), device=ids.device)
            width = max(lengths[i] for i in new.values())
            with torch.autocast(ids.device.type, torch.bfloat16):
                states = self._encode(ids[numbers, :width], real[numbers, :width]).to("cpu", torch.float16)
            fresh = {key: states[j, : lengths[i]].clone() for j, (key, i) in enumerate(new.items())}
            room = max(self._most - len(self._known), 0)
            self._known.update(list(fresh.items())[:room])
        found = [fresh[key] if key in fresh else self._known[key] for key in keys]
        return pad_sequence(found, batch_first=True).to(ids.device, torch.float32)
