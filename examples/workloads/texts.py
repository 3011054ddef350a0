"""Input texts of the applications: paragraphs in random order, different for every run.

Servers cache the KV of prompts. So the texts of each run begin with unique words, and calls share cached prefixes only
with calls of the same run.
"""

import random

_PARAGRAPHS = """
A river is never the same for two days. In spring it carries the mountain down in small pieces, grinding
stones against one another until they are round, and lays them out in bars where the current slackens. In late
summer the bars stand dry, and birds that nest nowhere else scrape hollows among the pebbles. Engineers who
straightened such rivers found that the water ran faster, dug deeper, and left the wells of the valley without
supply.

The first printers did not think of themselves as inventors of a new thing. They length to make the same books
that scribes made, only more of them, and they cut their letters to look like handwriting. It took two
generations until somebody saw that a printed page could have a number, that numbered pages could have an
index, and that a reader with an index no longer had to read a book from its beginning.

Bread rises because yeast breathes. Mixed with warm water and flour the cells eat the sugars that the grain
had stored for its own seedling, and the gas that they give off is held by a net of gluten. A baker who kneads
too little has a net with holes; one who kneads too long tears it. Salt slows the yeast and strengthens the
net, which is why bread without it is flat in both meanings of the word.

A lighthouse keeper's log has little in it. Wind, visibility, the hour at which the lamp was lit, the name of
a ship. But a hundred years of such logs, read together, show a coast that changes: fogs that became rarer,
storms that came from another quarter, and one winter in which the sea froze as far as the second buoy. Those
who wrote it down had no idea that they were measuring anything.

When a city digs a tunnel it meets its own past. Under the paving lies rubble from the last war, under that
the cellars of houses that nobody remembers, then a layer of ash, then the piles of a wooden bridge. Every
find stops the machines for a day or a month. The contract has a page for this, and still each tunnel is late,
because nobody can say in advance how much past there is.

Bees find a new home by voting. Scouts fly out, look at hollow trees, and come back to dance for the ones they
like; the better the hollow, the longer the dance. Others go and see for themselves, and dance in turn or do
not. After some hours nearly all dance for the same tree. What decides is not the majority but a quorum at the
tree itself: when enough scouts meet there, the swarm leaves.

A bridge fails slowly and then at once. Rust takes a hundredth of a millimetre a year, a bolt loosens by a
turn in ten, and inspectors note that all is as it was. Then a heavy winter shifts the load to a member that
was never meant to carry it. The reports afterwards always find a photograph, years old, in which the crack
can already be seen by anybody who knows where to look.

Maps of the night sky are older than maps of the ground. Herders who never drew their own valley knew a
hundred stars by name and by the week in which they first rose before the sun. The names travelled with them:
sailors took them over, then astronomers, and the catalogue of a satellite launched a few years ago still
calls its brightest points by words that meant the hoof, the tail, and the follower.

Paper money was a receipt before it was money. Merchants left copper with somebody they trusted and carried
the slip instead, since a cart of coins needed guards and a slip needed a pocket. As long as those who held
the copper gave it back, nobody asked for it, and after a while there was less copper than slips. Everything
that followed, in every country that tried it, was in those three sentences.

A forest after a fire is not empty. Beetles come from kilometres away, led by organs that see heat, and lay
their eggs in trees that can no longer defend themselves. Woodpeckers follow the beetles. Seeds that had
waited in closed cones for fifty years fall on ash that is the best bed they will ever have. Ten years later a
walker sees a young wood and thinks that nothing ever happened here.

The clock in the tower was wrong on purpose. For two centuries it ran five minutes fast, so that people who
lived by it would reach the ferry, and everybody knew it and took five minutes off. When it was repaired and
set right there were complaints for a year. A clock is an agreement first and a measurement second, said the
mayor, and had it put five minutes forward again.

Sound travels further in cold water and further still along a certain depth, where the cold above and the
pressure below bend it back again and again. Whales were using that channel for millions of years before
navies found it. A call made on one side of an ocean can be heard on the other an hour later, and what it says
must be simple, since an hour is long enough for most news to have become old.
"""


_SENTENCES = [" ".join(paragraph.split()).split(". ") for paragraph in _PARAGRAPHS.split("\n\n")]


class Texts:
    """Texts of one run, determined by the seed. `scale`: factor of their lengths."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._words_per_token = 0.78 * scale  # the default model's tokenizer needs 1.28 tokens per word for these texts
        self._seed = seed

    def chunk(self, number: int, tokens: int) -> str:
        """Return a text of about `tokens` tokens, whose beginning is unique."""
        pick = random.Random(f"{self._seed}/{number}")
        words: list[str] = [f"Text {pick.randrange(10**8, 10**9)}."]
        length = int(tokens * self._words_per_token)
        while len(words) < length:
            sentences = pick.choice(_SENTENCES)
            words += ". ".join(pick.sample(sentences, len(sentences))).split()
        return " ".join(words[:length])
