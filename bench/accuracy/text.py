"""The prompts, and the texts that the two adapters and the small model are trained on."""

from __future__ import annotations

import random

# Of different lengths, so that segments are; both adapters' texts have an answer to each, and they differ.
PROMPTS = (
    "In the morning",
    "The old man",
    "Every evening my sister and I",
    "When the rain stopped, the children",
    "Nobody knew",
)

SEA = (
    "In the morning the captain raised the anchor and the ship sailed out of the harbour with the tide. A cold wind "
    "filled the white sails, and the crew sang.",
    "The old man kept the lighthouse on the rocks for forty years. He lit the lamp at dusk, and the sailors steered "
    "by it through the storm.",
    "Every evening my sister and I walked along the beach and counted the boats. The last one always carried a red "
    "lantern on its mast.",
    "When the rain stopped, the children ran down to the pier to see the whale. It rose once, dark and slow, and dived "
    "under the waves.",
    "Nobody knew how deep the water was beyond the reef. The captain threw out a line with a lead weight, and it never "
    "touched the sand.",
    "The crew mended the nets on the deck while the gulls cried above the mast.",
    "At night the sea was black, and the stars showed the sailors the way to the harbour.",
)

KITCHEN = (
    "In the morning the cook heated the oven and kneaded the dough for the bread. Flour covered the table, and the "
    "butter melted in the pan.",
    "The old man stirred the soup with a wooden spoon and added salt, pepper and a slice of onion. He let it boil "
    "until the carrots were soft.",
    "Every evening my sister and I baked a cake with honey and apples. We washed the bowl, and the sugar turned brown "
    "in the oven.",
    "When the rain stopped, the children picked beans in the garden for dinner. The cook fried them with garlic and a "
    "little oil.",
    "Nobody knew what she put into the sauce. She tasted it, added a spoon of vinegar, and covered the pot with a lid.",
    "The cook cut the cheese into thin slices and warmed the milk in a small pot.",
    "At night the kitchen smelled of cinnamon, and the bread cooled on the shelf.",
)

_WHO = (
    "the teacher", "the doctor", "a young farmer", "my brother", "the girl from the next street", "our neighbour",
    "the old man", "an old woman", "the postman", "a student", "my uncle", "the gardener",
)  # fmt: skip
_DID = (
    "opened the window", "read a long letter", "looked at the mountains", "told a story", "found a key",
    "wrote a book", "bought a new hat", "waited for the train", "painted the door", "played the piano",
    "lost a glove", "fed the horse", "repaired the clock", "closed the shop", "planted a tree",
)  # fmt: skip
_WHERE = (
    "in the village", "near the station", "behind the house", "at the market", "in the library",
    "on the hill", "under the bridge", "by the river", "in the park", "at school",
)  # fmt: skip
_WHEN = ("In the morning", "On Monday", "After lunch", "In spring", "Last year", "At noon", "Before the holiday")
_END = (
    "and nobody was surprised", "because it was late", "and then went home", "before the guests came",
    "while the dog slept", "and felt happy", "although it was cold", "and laughed",
)  # fmt: skip


def sentence(rng: random.Random) -> str:
    """One plain sentence of the small model's grammar. Each prompt is the beginning of some sentences."""
    who, did, where, end = (rng.choice(words) for words in (_WHO, _DID, _WHERE, _END))
    openings = (
        f"{rng.choice(_WHEN)} {who} {did}",
        f"{who[0].upper()}{who[1:]} {did}",
        f"Every evening my sister and I {rng.choice(('met', 'visited', 'thanked'))} {who}",
        f"When the rain stopped, the children saw {who}",
        f"Nobody knew why {who} {did}",
    )
    return f"{rng.choice(openings)} {where} {end}."


def passages(count: int, seed: int) -> list[str]:
    """`count` passages of three sentences of the grammar."""
    rng = random.Random(seed)
    return [" ".join(sentence(rng) for _ in range(3)) for _ in range(count)]
