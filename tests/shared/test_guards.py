"""Secrets in a message: what is one, and what only looks like one."""

import pytest

from shared.errors import SecretInMessage
from shared.guards import refuse_secrets

# Published examples, which open nothing that anybody uses: BIP-39's and BIP-32's test vectors, Bitcoin's wiki.
PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"
SPANISH = "ábaco abdomen abeja abierto abogado abono aborto abrazo abrir abuelo abuso acabar"
LONG_PHRASE = " ".join(["abandon"] * 23 + ["art"])
IMPORT_FORMAT = "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ"
EXTENDED = (
    "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi"
)
HASH = "e9873d79c6d87dc0fb6a5778633389f4453213303da61f20bd67fc233aa33262"
SIGNATURE = "5VERv8NMvzbJMEkV8xnrLkEaWRtSz9CosKDYjCJjBRnbJLgp8uirBgmQpjKhoR4tjF3ZpRzrFmBV6UjKdiSZkQUW"[:88]


@pytest.mark.parametrize(
    "message",
    [
        PHRASE,
        f"my wallet is {PHRASE} can you check the balance?",
        PHRASE.upper(),
        PHRASE.replace(" ", ", "),
        "\n".join(f"{number}. {word}" for number, word in enumerate(PHRASE.split(), 1)),
        LONG_PHRASE,
        f"is this right: {IMPORT_FORMAT}?",
        EXTENDED,
        "-----BEGIN EC PRIVATE KEY-----\nMHQCAQEE",
        str(list(range(64))),
        f"My private key is 0x{HASH}, why can't I import it?",
        f"{HASH} <- secret key, is it safe?",
        f"мой приватный ключ {HASH}",
        SPANISH,
        f"mi frase semilla: {SPANISH}",
        "ma phrase: " + SPANISH.replace("abeja", "abeille"),
        PHRASE.replace("a", "а"),  # Cyrillic
        "\u200b".join(PHRASE),
        PHRASE.replace("worth", "wurth"),
        f"my seed phrase: {PHRASE.replace('year', 'yaer').replace('worth', 'wurth')}",
        PHRASE.replace("thank year", "thank and then year"),
        "first legal, second winner, third thank, fourth year, fifth wave, sixth sausage, seventh worth, eighth useful,"
        " ninth legal, tenth winner, eleventh thank, twelfth yellow",
    ],
)
def test_a_seed_phrase_or_a_private_key_is_refused(message: str) -> None:
    with pytest.raises(SecretInMessage) as refused:
        refuse_secrets(message)

    assert message[:12] not in refused.value.message


@pytest.mark.parametrize(
    "message",
    [
        "What is a seed phrase, and where do I write it down?",
        "Is my private key safe with Tonkeeper?",
        " ".join(PHRASE.split()[:11]),
        "How do I swap a token in a market where the price of the coin is very small and the pool has a large fee?",
        "Recovery phrase: Settings → Security → Backup → Show recovery phrase → Enter PIN → Done → Close → Finish",
        "Seed phrase: twelve random English words generated during wallet setup, giving full access to funds",
        "mi frase semilla: no la encuentro, ¿qué hago ahora con el dinero que tengo en la cartera?",
        f"What happened in transaction {HASH}?",
        f"Why did 0x{HASH} fail?",
        f"Solana signature {SIGNATURE}",
        "EQAvlWFDxGF2lXm67y4yzC17wYKD9A0guwPkMs1gOsM__NOT",
        "0x7a250d5630B4cF539739dF2C5dAcb4c659F2488D and bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq",
        IMPORT_FORMAT[:-1] + "K",
        "[1, 2, 3]",
        "",
    ],
)
def test_what_only_looks_like_one_is_not(message: str) -> None:
    refuse_secrets(message)


def test_a_long_message_is_looked_through_at_once() -> None:
    for message in (
        "legal the " * 20_000,
        "5" * 200_000,
        "0x" * 100_000,
        "[1," * 60_000,
        "my private key is " * 20_000,
        "my seed phrase: abaco " * 10_000,
        "first the, second the, third " * 5_000,
        "legal legal slid " * 10_000,
    ):
        refuse_secrets(message)
