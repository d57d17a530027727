"""Which half of the training data a user's conversations are in."""

import hashlib

from shared.training_formats import Split

SPLIT_SALT, VALIDATION_SHARE = "training", 0.1


def split(user_id: int, salt: str, validation_share: float) -> Split:
    """Where all of a user's conversations go, by a hash: always the same for the same salt.

    With a larger share nobody goes from validation back to training.
    """
    drawn = int.from_bytes(hashlib.blake2b(f"{salt}:{user_id}".encode(), digest_size=8).digest()) / 2**64
    return "validation" if drawn < validation_share else "train"
